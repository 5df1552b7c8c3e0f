//! How much host memory there is to take, and how much this process holds.

use krasis_core::Bytes;

/// Memory that can be allocated without swapping, as the kernel estimates it, or nothing where
/// there is no `/proc/meminfo`.
pub fn available() -> Option<Bytes> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Memory that this process holds now, mapped files included.
pub fn resident() -> Option<Bytes> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The most that it has held since it started or [`forget_peak`] was called.
pub fn peak() -> Option<Bytes> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Makes [`peak`] begin anew, where the kernel lets it.
pub fn forget_peak() {
    // Refused, the peak is that of the whole process: larger, and still true.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// A line of a file in `/proc` that counts KiB.
fn parse(text: &str, name: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_numbers_are_read() {
        let meminfo = "MemTotal:       24641012 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(parse(meminfo, "MemAvailable:"), Some(Bytes(23_000_000 << 10)));
        assert_eq!(parse("MemTotal: 1 kB", "MemAvailable:"), None);
    }
}

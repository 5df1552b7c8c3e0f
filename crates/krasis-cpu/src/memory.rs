//! How much host memory there is to take.

use krasis_core::Bytes;

/// Memory that can be allocated without swapping, as the kernel estimates it, or nothing where
/// there is no `/proc/meminfo`.
pub fn available() -> Option<Bytes> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<Bytes> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_estimate_is_read() {
        let meminfo = "MemTotal:       24641012 kB\nMemAvailable:   23000000 kB\n";
        assert_eq!(parse(meminfo), Some(Bytes(23_000_000 << 10)));
        assert_eq!(parse("MemTotal: 1 kB"), None);
    }
}

//! Small files of the kernel: numbers, lists and words, or nothing.

use krasis_core::Bytes;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longer than `/proc/cpuinfo` of the largest machines.
const LONGEST: u64 = 16 << 20;

/// Processors and nodes with higher numbers are not believed in: Linux stops at 8192.
const NUMBER_MAX: u32 = 8192;

/// The text of `root/path`.
pub(crate) fn text(root: &Path, path: &str) -> Option<String> {
    let mut text = Vec::new();
    File::open(root.join(path)).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// A file of one word.
pub(crate) fn word(root: &Path, path: &str) -> Option<String> {
    let word = text(root, path)?.trim().to_owned();
    (!word.is_empty()).then_some(word)
}

/// A file of one number.
pub(crate) fn number(root: &Path, path: &str) -> Option<u64> {
    word(root, path)?.parse().ok()
}

/// A file of one list.
pub(crate) fn list(root: &Path, path: &str) -> Option<Vec<u32>> {
    Some(parse_list(&text(root, path)?))
}

/// Numbers as the kernel lists them, `0-3,8`, ascending. Parts that are none are left out.
pub(crate) fn parse_list(text: &str) -> Vec<u32> {
    let mut all: Vec<u32> = text.trim().split(',').filter_map(range).flatten().collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn range(part: &str) -> Option<std::ops::RangeInclusive<u32>> {
    let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
    let (first, last) = (first.parse().ok()?, last.parse::<u32>().ok()?);
    (last < NUMBER_MAX).then_some(first..=last)
}

/// The value of a line `name: value`.
pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}

/// The value of a line `name: value kB`.
pub(crate) fn kibibytes(text: &str, name: &str) -> Option<Bytes> {
    let kib: u64 = field(text, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib.checked_mul(1024)?))
}

/// The number behind `name` at the start of a line.
pub(crate) fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(' ')?;
        (found == name).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::{counter, kibibytes, parse_list};
    use krasis_core::Bytes;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        for (text, numbers) in [
            ("0-3,8\n", vec![0, 1, 2, 3, 8]),
            ("5", vec![5]),
            ("8,0-1,1", vec![0, 1, 8]),
            ("", vec![]),
            ("\n", vec![]),
            ("3-1", vec![]),
            ("x,2,-,4-y", vec![2]),
            // An absurd range must not fill the memory.
            ("0-4294967295,7", vec![7]),
        ] {
            assert_eq!(parse_list(text), numbers, "{text:?}");
        }
    }

    #[test]
    fn sizes_and_counters_are_found_by_their_whole_name() {
        let meminfo = "MemTotal:  24641012 kB\nMemFree: 1 kB\nHugePages_Total: 3\n";
        assert_eq!(kibibytes(meminfo, "MemTotal"), Some(Bytes(24_641_012 << 10)));
        assert_eq!(kibibytes(meminfo, "Mem"), None);
        assert_eq!(kibibytes(meminfo, "HugePages_Total"), None);
        assert_eq!(kibibytes("A: 18446744073709551615 kB", "A"), None);
        assert_eq!(counter("total_file 3\nfile 4\n", "file"), Some(4));
    }
}

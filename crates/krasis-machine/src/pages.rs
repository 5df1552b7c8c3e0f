//! Pages of more than 4 KiB: whether the kernel gives them by itself, and pools of them.

use crate::files;
use krasis_core::Bytes;
use std::path::Path;

/// Pages that somebody has set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Size of one.
    pub page: Bytes,
    /// How many there are.
    pub pages: u64,
    /// How many nobody uses.
    pub free: u64,
}

/// Huge pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// `always`, `madvise` or `never`: who gets transparent ones.
    pub transparent: Option<String>,
    /// Whether the kernel makes room for them at once (`always`, `madvise`) or later.
    pub defrag: Option<String>,
    /// Pools that hold at least one page, smallest pages first.
    pub pools: Vec<Pool>,
}

const TRANSPARENT: &str = "sys/kernel/mm/transparent_hugepage";
const POOLS: &str = "sys/kernel/mm/hugepages";

impl HugePages {
    /// Reads the settings below `root`.
    pub fn read(root: &Path) -> HugePages {
        let chosen = |file| chosen(&files::text(root, &format!("{TRANSPARENT}/{file}"))?);
        HugePages {
            transparent: chosen("enabled"),
            defrag: chosen("defrag"),
            pools: pools(root).unwrap_or_default(),
        }
    }
}

/// The word in brackets of `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let (word, _) = text.split_once('[')?.1.split_once(']')?;
    Some(word.to_owned())
}

fn pools(root: &Path) -> Option<Vec<Pool>> {
    let pool = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = |file| files::number(root, &format!("{POOLS}/{name}/{file}"));
        let page = Bytes(kib.checked_mul(1024)?);
        Some(Pool { page, pages: count("nr_hugepages")?, free: count("free_hugepages")? })
    };
    let mut pools: Vec<Pool> = std::fs::read_dir(root.join(POOLS)).ok()?.filter_map(pool).collect();
    pools.retain(|pool| pool.pages > 0);
    pools.sort_by_key(|pool| pool.page);
    Some(pools)
}

//! A machine that does not exist: the files of its kernel, written into a folder, for tests of what
//! a program does on machines that nobody has at hand.

use std::fs;
use std::io::Result;
use std::path::Path;

/// One NUMA node of it.
#[derive(Clone, Copy, Debug)]
pub struct FakeNode<'a> {
    /// Its number.
    pub number: u32,
    /// Its processors, as the kernel lists them.
    pub cpus: &'a str,
    /// Its memory; half of it is free.
    pub mib: u64,
}

/// What there is to say of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Fake<'a> {
    /// Processors that are switched on.
    pub online: &'a str,
    /// Processors that the process may use.
    pub cpus_allowed: &'a str,
    /// Nodes that the process may take memory from.
    pub mems_allowed: &'a str,
    /// Lists of processors that are threads of one core; others have a core of their own.
    pub cores: &'a [&'a str],
    /// NUMA nodes.
    pub nodes: &'a [FakeNode<'a>],
    /// Memory, all of it and what is available.
    pub mib: (u64, u64),
}

impl Fake<'_> {
    /// Writes the files below `root`.
    pub fn write(&self, root: &Path) -> Result<()> {
        let (total, available) = self.mib;
        put(root, "proc/meminfo", &meminfo(total, available))?;
        let status = format!(
            "Name:\tkrasis\nVmRSS:\t  2048 kB\nCpus_allowed_list:\t{}\nMems_allowed_list:\t{}\n",
            self.cpus_allowed, self.mems_allowed
        );
        put(root, "proc/self/status", &status)?;
        put(root, "sys/devices/system/cpu/online", self.online)?;
        for siblings in self.cores {
            for cpu in crate::files::parse_list(siblings) {
                let file = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
                put(root, &file, siblings)?;
            }
        }
        let numbers: Vec<String> = self.nodes.iter().map(|node| node.number.to_string()).collect();
        put(root, "sys/devices/system/node/online", &numbers.join(","))?;
        for (at, node) in self.nodes.iter().enumerate() {
            let file = |name| format!("sys/devices/system/node/node{}/{name}", node.number);
            put(root, &file("cpulist"), node.cpus)?;
            let (n, kib) = (node.number, node.mib * 1024);
            let sizes = format!("Node {n} MemTotal: {kib} kB\nNode {n} MemFree: {} kB\n", kib / 2);
            put(root, &file("meminfo"), &sizes)?;
            let far = |other: usize| if other == at { "10" } else { "21" };
            let distances: Vec<&str> = (0..self.nodes.len()).map(far).collect();
            put(root, &file("distance"), &distances.join(" "))?;
        }
        Ok(())
    }
}

/// A `/proc/meminfo`.
pub fn meminfo(total_mib: u64, available_mib: u64) -> String {
    let kib = [total_mib, available_mib].map(|mib| mib * 1024);
    format!("MemTotal: {} kB\nMemFree: 4 kB\nMemAvailable: {} kB\n", kib[0], kib[1])
}

/// Writes one file below `root`, at once, so that nobody reads half of it.
pub fn put(root: &Path, path: &str, text: &str) -> Result<()> {
    let file = root.join(path);
    let folder = file.parent().expect("a file lies in a folder");
    fs::create_dir_all(folder)?;
    let draft = folder.join(".draft");
    fs::write(&draft, format!("{text}\n"))?;
    fs::rename(draft, file)
}

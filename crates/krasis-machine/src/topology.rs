//! Processors, the cores that they are threads of, and the NUMA nodes that memory hangs on.

use crate::files;
use crate::groups::{self, Quota};
use krasis_core::Bytes;
use std::collections::BTreeMap;
use std::path::Path;

/// One logical processor that is switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its number in the kernel.
    pub number: u32,
    /// Whether this process may run there: containers and `taskset` narrow that.
    pub allowed: bool,
    /// All threads of its core, itself included, ascending.
    pub siblings: Vec<u32>,
    /// The socket.
    pub package: Option<u32>,
    /// Its NUMA node.
    pub node: Option<u32>,
}

/// One NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number in the kernel, where numbers may have holes.
    pub number: u32,
    /// Its processors; none for memory that hangs on a bus.
    pub cpus: Vec<u32>,
    /// Memory that belongs to it; nodes without any exist.
    pub total: Option<Bytes>,
    /// Memory that can be had there: unused, or used for files alone.
    pub free: Option<Bytes>,
    /// Whether this process may take memory there.
    pub allowed: bool,
    /// How far all nodes are, itself 10, in their order.
    pub distances: Vec<u32>,
}

impl Node {
    /// Whether there is memory on it.
    pub fn has_memory(&self) -> bool {
        self.total.is_some_and(|total| total > Bytes(0))
    }
}

/// One thread of a physical core that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Core {
    /// The processor.
    pub cpu: u32,
    /// Its NUMA node.
    pub node: Option<u32>,
}

/// How a machine's processors and memory hang together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Processors, ascending.
    pub cpus: Vec<Cpu>,
    /// Nodes, ascending; none where the kernel does not know the word.
    pub nodes: Vec<Node>,
    /// The share of their time that a control group leaves this process, if one does.
    pub quota: Option<Quota>,
}

const CPUS: &str = "sys/devices/system/cpu";
const NODES: &str = "sys/devices/system/node";

impl Topology {
    /// Reads the topology below `root`. Where nothing can be read, there is processor 0.
    pub fn read(root: &Path) -> Topology {
        let status = files::text(root, "proc/self/status").unwrap_or_default();
        let listed = |name| files::field(&status, name).map(files::parse_list);
        let nodes = nodes(root, listed("Mems_allowed_list"));
        let allowed = listed("Cpus_allowed_list");
        let online = files::list(root, &format!("{CPUS}/online")).or_else(|| allowed.clone());
        let cpu = |number| Cpu {
            number,
            allowed: allowed.as_ref().is_none_or(|allowed| allowed.contains(&number)),
            siblings: files::list(root, &topology(number, "thread_siblings_list"))
                .filter(|siblings| siblings.contains(&number))
                .unwrap_or_else(|| vec![number]),
            package: files::number(root, &topology(number, "physical_package_id"))
                .and_then(|package| u32::try_from(package).ok()),
            node: nodes.iter().find(|node| node.cpus.contains(&number)).map(|node| node.number),
        };
        let online = online.filter(|online| !online.is_empty()).unwrap_or_else(|| vec![0]);
        Topology { cpus: online.into_iter().map(cpu).collect(), nodes, quota: groups::quota(root) }
    }

    /// One processor of each physical core that this process may use: two threads on one core share
    /// its caches and units, which costs more than it brings where memory is the limit.
    ///
    /// Nodes take turns, so that a team with fewer threads than cores still draws on the caches and
    /// links of all. Blocks of neighbours would bring nothing: work is handed out to whoever is
    /// free, and interleaved memory is equally far from everybody.
    pub fn cores(&self) -> Vec<Core> {
        let mut nodes: BTreeMap<Option<u32>, Vec<Core>> = BTreeMap::new();
        for cpu in self.cpus.iter().filter(|cpu| cpu.allowed) {
            // Of the threads that may be used, the first stands for its core.
            let first = cpu.siblings.iter().find(|&&sibling| self.is_allowed(sibling));
            if first == Some(&cpu.number) {
                let core = Core { cpu: cpu.number, node: cpu.node };
                nodes.entry(cpu.node).or_default().push(core);
            }
        }
        let longest = nodes.values().map(Vec::len).max().unwrap_or(0);
        (0..longest)
            .flat_map(|turn| nodes.values().filter_map(move |of| of.get(turn)))
            .copied()
            .collect()
    }

    /// Threads that a team has best: one for each core, as long as they may all run all the time.
    pub fn team(&self) -> usize {
        let cores = self.cores().len();
        self.quota.as_ref().map_or(cores, |quota| cores.min(quota.threads()))
    }

    /// Processors that this process may use, threads of one core counted each.
    pub fn threads(&self) -> usize {
        self.cpus.iter().filter(|cpu| cpu.allowed).count()
    }

    /// The nodes over which memory is best spread: those with memory and processors that this
    /// process may use, if they are several. Nodes without processors are slower memory, and the
    /// kernel takes from them once the others are full.
    pub fn interleaved(&self) -> Option<Vec<u32>> {
        let near = |node: &&Node| {
            node.allowed && node.has_memory() && node.cpus.iter().any(|&cpu| self.is_allowed(cpu))
        };
        let nodes: Vec<u32> = self.nodes.iter().filter(near).map(|node| node.number).collect();
        (nodes.len() > 1).then_some(nodes)
    }

    /// What is free on the nodes that this process may take memory from, if others exist.
    pub fn free_where_confined(&self) -> Option<Bytes> {
        let mut with_memory = self.nodes.iter().filter(|node| node.has_memory());
        if with_memory.clone().all(|node| node.allowed) {
            return None;
        }
        with_memory.by_ref().filter(|node| node.allowed).map(|node| node.free).sum()
    }

    fn is_allowed(&self, number: u32) -> bool {
        let at = self.cpus.binary_search_by_key(&number, |cpu| cpu.number);
        at.is_ok_and(|at| self.cpus[at].allowed)
    }
}

fn topology(cpu: u32, file: &str) -> String {
    format!("{CPUS}/cpu{cpu}/topology/{file}")
}

fn nodes(root: &Path, allowed: Option<Vec<u32>>) -> Vec<Node> {
    let node = |number| {
        let file = |name| format!("{NODES}/node{number}/{name}");
        let meminfo = files::text(root, &file("meminfo")).unwrap_or_default();
        let size = |name: &str| files::kibibytes(&meminfo, &format!("Node {number} {name}"));
        let files_alone =
            ["Active(file)", "Inactive(file)"].map(|name| size(name).unwrap_or_default());
        Node {
            number,
            cpus: files::list(root, &file("cpulist")).unwrap_or_default(),
            total: size("MemTotal"),
            free: size("MemFree").map(|free| {
                Bytes(files_alone.iter().fold(free.0, |sum, bytes| sum.saturating_add(bytes.0)))
            }),
            allowed: allowed.as_ref().is_none_or(|allowed| allowed.contains(&number)),
            distances: files::text(root, &file("distance"))
                .map(|text| text.split_whitespace().filter_map(|n| n.parse().ok()).collect())
                .unwrap_or_default(),
        }
    };
    let online = files::list(root, &format!("{NODES}/online")).unwrap_or_default();
    online.into_iter().map(node).collect()
}

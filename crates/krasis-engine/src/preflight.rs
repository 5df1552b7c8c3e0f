//! Before loading: does the plan fit the machine, and where do pages lie. After it: is what became
//! resident what was planned.

use crate::error::StartError;
use crate::options::Options;
use krasis_core::Bytes;
use krasis_cpu::nodes::{self, Rates};
use krasis_cpu::{Arena, Kernel, Placement, Team};
use krasis_machine::{Level, Machine, Need, Numa, Resident, Topology, What, check, process};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Differences below this are libraries, stacks and whole pages.
const WORTH_A_WARNING: u64 = 256 << 20;

/// Where the arena's pages shall lie.
pub fn placement(topology: &Topology, numa: Numa) -> Placement {
    match topology.interleaved().filter(|_| numa != Numa::Off) {
        Some(nodes) => Placement::Interleave(nodes),
        None => Placement::Anywhere,
    }
}

/// Refuses what a machine cannot do.
pub fn fits(machine: &Machine, need: &Need) -> Result<(), StartError> {
    let findings = check(machine, need);
    match findings.into_iter().find(|finding| finding.level == Level::Refuse) {
        Some(finding) => Err(StartError::Refused { sentence: finding.sentence }),
        None => Ok(()),
    }
}

/// The host before anything was allocated.
#[derive(Clone)]
pub struct Preflight {
    machine_root: PathBuf,
    machine: Machine,
    placement: Placement,
    numa: Numa,
    kernel: Arc<dyn Kernel>,
}

/// Memory that is read to measure what nodes bring: more than most machines have of caches.
const MEASURED_BYTES: u64 = 1 << 30;

/// The threads that compute, on the cores of the machine whose files lie where options say.
pub fn team(options: &Options) -> Team {
    let topology = Topology::read(&options.machine_root);
    let threads = options.threads.unwrap_or_else(krasis_cpu::affinity::threads);
    Team::on(&topology.cores(), Some(threads))
}

/// What the process held before weights came; nothing where that cannot be read.
pub struct Held(Option<Bytes>);

impl Preflight {
    /// Of a machine that has been read.
    pub fn new(machine: Machine, options: &Options) -> Preflight {
        let placement = placement(&machine.topology, options.numa);
        let (machine_root, numa) = (options.machine_root.clone(), options.numa);
        Preflight { machine_root, machine, placement, numa, kernel: options.kernel.clone() }
    }

    /// How fast a team reads memory that takes turns on nodes, and memory of its threads' own first;
    /// nothing where there is nothing to choose.
    pub fn measure(&self, team: &Team) -> Option<io::Result<Rates>> {
        let Placement::Interleave(nodes) = &self.placement else { return None };
        // Where memory is short, measuring must not take it.
        let available = self.machine.available().unwrap_or_default();
        let bytes = (available.0 / 8).min(MEASURED_BYTES) as usize;
        (self.numa == Numa::Auto).then(|| nodes::measure(team, nodes, &self.kernel, bytes))
    }

    /// Whether threads shall read memory of their own node first, which is said in a line.
    pub fn own_first(&self, team: &Team) -> bool {
        match self.measure(team) {
            None => self.numa == Numa::Local && self.placement != Placement::Anywhere,
            Some(Ok(rates)) => {
                tracing::info!("{}", sentence(&rates));
                rates.own_is_faster()
            }
            Some(Err(error)) => {
                tracing::info!("threads read whatever node's memory comes: {error}");
                false
            }
        }
    }

    /// Below which folder the machine's files lie.
    pub fn machine_root(&self) -> &Path {
        &self.machine_root
    }

    /// Says what makes the machine slower than it could be, and remembers what the process holds.
    pub fn look(&self, need: &Need) -> Held {
        for finding in check(&self.machine, need) {
            match (finding.level, finding.what) {
                (Level::Ok, _) => {}
                // Models are many times slower than anyone expects.
                (_, What::Simd) => tracing::warn!("{}", finding.sentence),
                // Some percent; `krasis doctor` is where one looks for those.
                _ => tracing::info!("{}", finding.sentence),
            }
        }
        Held(Resident::read(&self.machine_root).anonymous)
    }

    /// Spreads an untouched arena. A container may forbid that, which costs speed alone.
    pub fn place(&self, mut arena: Arena) -> Arena {
        match arena.place(&self.placement, &self.kernel) {
            Ok(()) if self.placement == Placement::Anywhere => {}
            Ok(()) => tracing::info!(placement = ?self.placement, "memory is spread"),
            Err(error) => tracing::warn!(
                "memory could not be spread over the NUMA nodes, which makes decoding slower: \
                 {error}; allow mbind (docker: --cap-add SYS_NICE) or start with numactl \
                 --interleave=all"
            ),
        }
        arena
    }

    /// One line after loading: what stays, where loading's own line has the peak. `planned` are the
    /// weights, which are written by then; KV pages become resident when they are used.
    pub fn compare(&self, held: Held, planned: Bytes) {
        if planned == Bytes(0) {
            return;
        }
        let now = Resident::read(&self.machine_root);
        let (Held(Some(before)), Some(after)) = (held, now.anonymous) else { return };
        let resident = Bytes(after.0.saturating_sub(before.0));
        let percent = 100.0 * (resident.0 as f64 / planned.0.max(1) as f64 - 1.0);
        let difference = format!("{percent:+.1} %");
        let huge = process::huge(&self.machine_root).unwrap_or_default();
        if percent.abs() > 10.0 && resident.0.abs_diff(planned.0) > WORTH_A_WARNING {
            tracing::warn!(%planned, %resident, difference, "loading took other memory than planned");
        } else {
            tracing::info!(%planned, %resident, difference, in_huge_pages = %huge, "weights are resident");
        }
    }
}

/// What was measured, and what follows.
pub fn sentence(rates: &Rates) -> String {
    let Rates { in_turn, own_first } = rates;
    let order = match rates.own_is_faster() {
        true => "their own node's memory first",
        false => "memory of whatever node comes",
    };
    let [in_turn, own] = [in_turn, own_first].map(|rate| rate / 1e9);
    format!("threads read {order}: {own:.1} GB/s with their own first, {in_turn:.1} in turn")
}

#[cfg(test)]
mod tests {
    use super::{Placement, placement};
    use krasis_machine::fake::{Fake, FakeNode};
    use krasis_machine::{Numa, Topology};

    #[test]
    fn pages_take_turns_only_where_there_are_nodes_to_take_them() {
        let node = |number, cpus, mib| FakeNode { number, cpus, mib };
        let two = Fake {
            online: "0-7",
            cpus_allowed: "0-7",
            mems_allowed: "0,4",
            cores: &[],
            nodes: &[node(0, "0-3", 100), node(4, "4-7", 100)],
            mib: (200, 100),
        };
        for (fake, numa, expected) in [
            (two, Numa::Interleave, Placement::Interleave(vec![0, 4])),
            (two, Numa::Auto, Placement::Interleave(vec![0, 4])),
            (two, Numa::Local, Placement::Interleave(vec![0, 4])),
            (two, Numa::Off, Placement::Anywhere),
            (Fake { cpus_allowed: "4-7", ..two }, Numa::Interleave, Placement::Anywhere),
            (Fake { mems_allowed: "0", ..two }, Numa::Interleave, Placement::Anywhere),
            (Fake { nodes: &two.nodes[..1], ..two }, Numa::Interleave, Placement::Anywhere),
        ] {
            let root = tempfile::tempdir().unwrap();
            fake.write(root.path()).unwrap();
            assert_eq!(placement(&Topology::read(root.path()), numa), expected, "{fake:?}");
        }
    }
}

//! Before loading: does the plan fit the machine, and where do pages lie. After it: is what became
//! resident what was planned.

use crate::error::StartError;
use crate::options::Options;
use crate::plan::Plan;
use krasis_core::Bytes;
use krasis_cpu::{Arena, Placement};
use krasis_machine::{Level, Machine, Need, Numa, Resident, Topology, What, check, process};
use std::path::PathBuf;

/// Differences below this are libraries, stacks and whole pages.
const WORTH_A_WARNING: u64 = 256 << 20;

/// Refuses what the machine cannot do.
pub fn fits(machine: &Machine, need: &Need) -> Result<(), StartError> {
    match check(machine, need).into_iter().find(|finding| finding.level == Level::Refuse) {
        Some(finding) => Err(StartError::Refused { sentence: finding.sentence }),
        None => Ok(()),
    }
}

/// Where the arena's pages shall lie.
pub fn placement(topology: &Topology, numa: Numa) -> Placement {
    match (numa, topology.interleaved()) {
        (Numa::Interleave, Some(nodes)) => Placement::Interleave(nodes),
        _ => Placement::Anywhere,
    }
}

/// What was so before anything was allocated.
pub struct Preflight {
    machine_root: PathBuf,
    placement: Placement,
    /// Weights: what is written while loading. KV pages become resident when they are used.
    planned: Bytes,
    /// What the process held already.
    before: Option<Bytes>,
}

impl Preflight {
    /// Looks at the machine, and says what makes it slower than it could be.
    pub fn look(plan: &Plan, options: &Options) -> Preflight {
        let machine = Machine::read(&options.machine_root);
        for finding in check(&machine, &plan.need) {
            match (finding.level, finding.what) {
                (Level::Ok, _) => {}
                // Models are many times slower than anyone expects.
                (_, What::Simd) => tracing::warn!("{}", finding.sentence),
                // Some percent; `krasis doctor` is where one looks for those.
                _ => tracing::info!("{}", finding.sentence),
            }
        }
        Preflight {
            placement: placement(&machine.topology, options.numa),
            planned: plan.need.weights,
            before: machine.resident.anonymous,
            machine_root: options.machine_root.clone(),
        }
    }

    /// Spreads an untouched arena. A container may forbid that, which costs speed alone.
    pub fn place(&self, mut arena: Arena) -> Arena {
        match arena.place(&self.placement) {
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

    /// One line after loading.
    pub fn compare(&self) {
        let now = Resident::read(&self.machine_root);
        let (Some(before), Some(after)) = (self.before, now.anonymous) else { return };
        let planned = self.planned;
        let resident = Bytes(after.0.saturating_sub(before.0));
        let percent = 100.0 * (resident.0 as f64 / planned.0.max(1) as f64 - 1.0);
        let difference = format!("{percent:+.1} %");
        let huge = process::huge(&self.machine_root).unwrap_or_default();
        if percent.abs() > 10.0 && resident.0.abs_diff(planned.0) > WORTH_A_WARNING {
            tracing::warn!(%planned, %resident, difference, "loading took other memory than planned");
        } else {
            tracing::info!(%planned, %resident, difference, in_huge_pages = %huge, "loaded");
        }
    }
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

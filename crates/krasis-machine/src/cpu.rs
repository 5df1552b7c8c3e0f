//! The processor by its own account, and how fast it may run.

use crate::files;
use crate::topology::Topology;
use std::collections::BTreeMap;
use std::path::Path;

/// Vector instructions that kernels use or could use, as `/proc/cpuinfo` calls them.
const SIMD: [&str; 14] = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
];

/// What `/proc/cpuinfo` says of the first processor. Kernels are chosen by `krasis_cpu::Isa`, which
/// asks the processor itself; this is for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Its name.
    pub name: Option<String>,
    /// Those of its vector instructions that matter here.
    pub simd: Option<Vec<&'static str>>,
}

impl Processor {
    /// Reads `/proc/cpuinfo` below `root`.
    pub fn read(root: &Path) -> Processor {
        let info = files::text(root, "proc/cpuinfo").unwrap_or_default();
        let flags = files::field(&info, "flags").or_else(|| files::field(&info, "Features"));
        let known = |flags: &str| {
            SIMD.into_iter().filter(|&name| flags.split(' ').any(|flag| flag == name)).collect()
        };
        Processor {
            name: files::field(&info, "model name").map(str::to_owned),
            simd: flags.map(known),
        }
    }

    /// Whether the vector kernels run: AVX2 with FMA and F16C. Nothing if that cannot be read.
    pub fn has_avx2(&self) -> Option<bool> {
        let simd = self.simd.as_ref()?;
        Some(["avx2", "fma", "f16c"].iter().all(|name| simd.contains(name)))
    }
}

/// How fast processors may run; virtual machines seldom know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Governors of the processors that this process may use, and how many have each.
    pub governors: BTreeMap<String, usize>,
    /// Whether short bursts beyond the nominal clock are switched off.
    pub no_turbo: Option<bool>,
}

impl Clock {
    /// Reads the settings below `root`.
    pub fn read(root: &Path, topology: &Topology) -> Clock {
        let mut governors = BTreeMap::new();
        for cpu in topology.cpus.iter().filter(|cpu| cpu.allowed) {
            let file = format!("sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor", cpu.number);
            if let Some(governor) = files::word(root, &file) {
                *governors.entry(governor).or_default() += 1;
            }
        }
        let intel = files::number(root, "sys/devices/system/cpu/intel_pstate/no_turbo");
        let others = || files::number(root, "sys/devices/system/cpu/cpufreq/boost");
        let no_turbo = intel.map(|off| off == 1).or_else(|| others().map(|on| on == 0));
        Clock { governors, no_turbo }
    }
}

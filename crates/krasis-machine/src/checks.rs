//! What is wrong with a machine, or with a model on it, in sentences that say what to do.

use crate::{Machine, Memory, Quota};
use krasis_core::Bytes;

/// Of the memory that is available, a model may take this part: the rest is the system's.
const MOST_PERCENT: u64 = 95;

/// Less swap than this is what any system has put away and forgotten.
const SWAP_WORTH_A_WORD: Bytes = Bytes(256 << 20);

/// What a model takes and how it is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Weights.
    pub weights: Bytes,
    /// Activations.
    pub buffers: Bytes,
    /// KV cache.
    pub cache: Bytes,
    /// Threads, where they were chosen by hand.
    pub threads: Option<usize>,
    /// Whether memory is spread over NUMA nodes.
    pub numa: Numa,
}

/// What is done about several NUMA nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numa {
    /// Pages take turns on them, and threads read those of their own node first where that is measured to
    /// be faster.
    #[default]
    Auto,
    /// The same without measuring.
    Local,
    /// Pages take turns on them, and threads read what comes.
    Interleave,
    /// Pages lie where they are first written.
    Off,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be, or unknown.
    Ok,
    /// It works, but slower than it could.
    Warn,
    /// It would not work.
    Refuse,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Memory against the need.
    Memory,
    /// Swap space.
    Swap,
    /// Vector instructions.
    Simd,
    /// Threads against cores.
    Threads,
    /// NUMA nodes.
    Numa,
    /// Transparent huge pages.
    HugePages,
    /// Frequency governor.
    Governor,
}

impl What {
    /// For tables and logs.
    pub const fn name(self) -> &'static str {
        match self {
            What::Memory => "memory",
            What::Swap => "swap",
            What::Simd => "SIMD",
            What::Threads => "threads",
            What::Numa => "NUMA",
            What::HugePages => "huge pages",
            What::Governor => "governor",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub what: What,
    /// What was seen and, where it is not well, what to do.
    pub sentence: String,
}

impl Need {
    /// All of it.
    pub fn total(&self) -> Bytes {
        Bytes(
            [self.weights, self.buffers, self.cache]
                .iter()
                .fold(0, |sum, part| part.0.saturating_add(sum)),
        )
    }
}

/// One of the functions below.
type Look = fn(&Machine, &Need) -> (Level, String);

/// Looks at everything, always in the same order, one finding each.
pub fn check(machine: &Machine, need: &Need) -> Vec<Finding> {
    let checks: [(What, Look); 7] = [
        (What::Memory, memory),
        (What::Swap, swap),
        (What::Simd, simd),
        (What::Threads, threads),
        (What::Numa, numa),
        (What::HugePages, huge_pages),
        (What::Governor, governor),
    ];
    checks
        .into_iter()
        .map(|(what, look)| {
            let (level, sentence) = look(machine, need);
            Finding { level, what, sentence }
        })
        .collect()
}

fn memory(machine: &Machine, need: &Need) -> (Level, String) {
    let total = need.total();
    let Some(available) = machine.available() else {
        return (Level::Ok, "how much memory is available cannot be read".into());
    };
    let bounds = bounds(machine, available);
    if total == Bytes(0) {
        return (Level::Ok, format!("{available} available{bounds}"));
    }
    let Need { weights, buffers, cache, .. } = *need;
    // A plan that fails before it comes to the cache has none.
    let parts = [("weights", weights), ("buffers", buffers), ("KV cache", cache)];
    let parts = parts.iter().filter(|(_, bytes)| *bytes > Bytes(0));
    let parts = parts.map(|(name, bytes)| format!("{name} {bytes}")).collect::<Vec<_>>().join(", ");
    if u128::from(total.0) * 100 <= u128::from(available.0) * u128::from(MOST_PERCENT) {
        return (Level::Ok, format!("{total} needed ({parts}), {available} available{bounds}"));
    }
    let remedy = match weights > cache {
        true => {
            "store fewer bits (--cpu-expert-bits 4, --attention-quant int4), free memory or raise the limit"
        }
        false => "lower --context-max, choose --kv-dtype fp8_e4m3, free memory or raise the limit",
    };
    let sentence = format!(
        "the model needs {total} ({parts}), more than {MOST_PERCENT} % of the {available} of memory \
         that are available{bounds}: {remedy}"
    );
    (Level::Refuse, sentence)
}

/// What makes less available than the machine has, if something does.
fn bounds(machine: &Machine, available: Bytes) -> String {
    let Memory { available: unbound, .. } = machine.memory;
    match machine.memory.tightest() {
        _ if Some(available) == unbound => String::new(),
        Some(limit) if limit.left() == available => format!(
            " (the control group {} may have {} and holds {})",
            limit.group, limit.limit, limit.used
        ),
        _ => " on the NUMA nodes that this process may use".into(),
    }
}

fn swap(machine: &Machine, _: &Need) -> (Level, String) {
    match machine.memory.swapped() {
        Bytes(0) => (Level::Ok, "none in use".into()),
        swapped if swapped < SWAP_WORTH_A_WORD => (Level::Ok, format!("{swapped} in use")),
        swapped => {
            let sentence = format!(
                "{swapped} of swap are in use: weights that are swapped out come back from the disk \
                 for every token; end other programs, then swapoff -a and swapon -a"
            );
            (Level::Warn, sentence)
        }
    }
}

fn simd(machine: &Machine, _: &Need) -> (Level, String) {
    let simd = machine.processor.simd.as_deref().unwrap_or_default();
    match machine.processor.has_avx2() {
        Some(true) if simd.contains(&"avx512_vnni") => (Level::Ok, "AVX-512 VNNI".into()),
        Some(true) => (Level::Ok, "AVX2".into()),
        None => (Level::Ok, "what the processor has cannot be read".into()),
        Some(false) => {
            let sentence = "this processor has no AVX2 with FMA and F16C: models run in plain loops, \
                            right but many times slower; a virtual machine may have to pass the \
                            host's processor through";
            (Level::Warn, sentence.into())
        }
    }
}

fn threads(machine: &Machine, need: &Need) -> (Level, String) {
    let cores = machine.topology.cores().len();
    let processors = machine.topology.threads();
    let team = machine.topology.team();
    let short = machine.topology.quota.as_ref().filter(|_| team < cores);
    match (need.threads, short) {
        (threads, Some(Quota { group, percent }))
            if threads.is_none_or(|threads| threads > team) =>
        {
            let threads = match threads {
                Some(threads) => format!("{threads} threads were asked for"),
                None => format!("{team} threads run on {cores} physical cores"),
            };
            let sentence = format!(
                "{threads}, and the control group {group} may have {}.{:02} processors: more threads \
                 than that all stand still for a part of each period; raise its limit (cpu.max, or \
                 --cpus of a container), or use --krasis-threads {team}",
                percent / 100,
                percent % 100
            );
            (Level::Warn, sentence)
        }
        (Some(threads), _) if threads > cores => {
            let sentence = format!(
                "{threads} threads were asked for, but this process has {cores} physical cores \
                 ({processors} processors): threads that share a core stand in each other's way; use \
                 --krasis-threads {cores} or leave it out"
            );
            (Level::Warn, sentence)
        }
        (Some(threads), _) => (Level::Ok, format!("{threads} on {cores} physical cores")),
        (None, _) => {
            (Level::Ok, format!("one on each of {cores} physical cores ({processors} processors)"))
        }
    }
}

fn numa(machine: &Machine, need: &Need) -> (Level, String) {
    let Some(nodes) = machine.topology.interleaved() else {
        return (Level::Ok, "memory and processors on one node".into());
    };
    match need.numa {
        Numa::Auto => {
            let sentence = format!(
                "pages take turns on nodes {nodes:?}; whether threads read their own node's first is \
                 measured at start"
            );
            (Level::Ok, sentence)
        }
        Numa::Local => {
            let sentence =
                format!("pages take turns on nodes {nodes:?}, threads read their own node's first");
            (Level::Ok, sentence)
        }
        Numa::Interleave => (Level::Ok, format!("pages take turns on nodes {nodes:?}")),
        Numa::Off => {
            let sentence = format!(
                "there are {} NUMA nodes, but --numa off leaves pages where they are first written: \
                 threads of one node wait for the other's memory; leave it out, or \
                 taskset to stay on one node",
                nodes.len()
            );
            (Level::Warn, sentence)
        }
    }
}

fn huge_pages(machine: &Machine, _: &Need) -> (Level, String) {
    match machine.huge_pages.transparent.as_deref() {
        Some("never") => {
            let sentence = "transparent huge pages are switched off: decoding is a fifth slower with \
                            pages of 4 KiB; write madvise to \
                            /sys/kernel/mm/transparent_hugepage/enabled";
            (Level::Warn, sentence.into())
        }
        Some(mode) => (Level::Ok, format!("transparent ones are given: {mode}")),
        None => (Level::Ok, "whether transparent ones are given cannot be read".into()),
    }
}

fn governor(machine: &Machine, _: &Need) -> (Level, String) {
    let governors = &machine.clock.governors;
    let names = governors.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    if governors.keys().all(|name| name == "performance") {
        let names = if names.is_empty() { "none that can be read".into() } else { names };
        return (Level::Ok, names);
    }
    let sentence = format!(
        "the processors' frequency governor is {names}: clocks follow the load too late; use \
         cpupower frequency-set -g performance"
    );
    (Level::Warn, sentence)
}

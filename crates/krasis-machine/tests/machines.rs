//! Machines of other shapes than the one at hand, each read from files that a test has written.

use krasis_core::Bytes;
use krasis_machine::fake::{Fake, FakeNode, put};
use krasis_machine::{Level, Limit, Machine, Need, Numa, Pool, What, check};
use proptest::prelude::*;
use std::path::Path;

const fn node(number: u32, cpus: &str, mib: u64) -> FakeNode<'_> {
    FakeNode { number, cpus, mib }
}

/// Four cores on each of two nodes, two threads each: 0 to 7, then their siblings 8 to 15.
const TWO_NODES: Fake = Fake {
    online: "0-15",
    cpus_allowed: "0-15",
    mems_allowed: "0-1",
    cores: &["0,8", "1,9", "2,10", "3,11", "4,12", "5,13", "6,14", "7,15"],
    nodes: &[node(0, "0-3,8-11", 32_768), node(1, "4-7,12-15", 32_768)],
    mib: (65_536, 60_000),
};

/// Two cores of one thread on each of four nodes.
const FOUR_NODES: Fake = Fake {
    online: "0-7",
    cpus_allowed: "0-7",
    mems_allowed: "0-3",
    cores: &[],
    nodes: &[node(0, "0-1", 100), node(1, "2-3", 100), node(2, "4-5", 100), node(3, "6-7", 100)],
    mib: (400, 300),
};

const ONE_NODE: Fake = Fake {
    online: "0-3",
    cpus_allowed: "0-3",
    mems_allowed: "0",
    cores: &["0-1", "2-3"],
    nodes: &[node(0, "0-3", 1000)],
    mib: (1000, 800),
};

fn read(fake: &Fake) -> Machine {
    read_with(fake, &[])
}

fn read_with(fake: &Fake, files: &[(&str, &str)]) -> Machine {
    let root = tempfile::tempdir().unwrap();
    fake.write(root.path()).unwrap();
    files.iter().for_each(|(path, text)| put(root.path(), path, text).unwrap());
    Machine::read(root.path())
}

/// Processors of the team in order, and the nodes that pages take turns on.
type Expected<'a> = (&'a [u32], Option<&'a [u32]>);

#[test]
fn cores_and_interleaving_follow_the_nodes() {
    let rows: [(&str, Fake, Expected); 11] = [
        ("one node", ONE_NODE, (&[0, 2], None)),
        ("two nodes take turns", TWO_NODES, (&[0, 4, 1, 5, 2, 6, 3, 7], Some(&[0, 1]))),
        ("four nodes take turns", FOUR_NODES, (&[0, 2, 4, 6, 1, 3, 5, 7], Some(&[0, 1, 2, 3]))),
        (
            "a cpuset of one node",
            Fake { cpus_allowed: "4-7,12-15", mems_allowed: "1", ..TWO_NODES },
            (&[4, 5, 6, 7], None),
        ),
        ("taskset to one node", Fake { cpus_allowed: "0-3", ..TWO_NODES }, (&[0, 1, 2, 3], None)),
        (
            "siblings alone are cores too",
            Fake { cpus_allowed: "8-9,12", ..TWO_NODES },
            (&[8, 12, 9], Some(&[0, 1])),
        ),
        (
            "a node without memory",
            Fake {
                nodes: &[node(0, "0-3", 1000), node(1, "4-7", 0)],
                online: "0-7",
                cpus_allowed: "0-7",
                cores: &[],
                ..TWO_NODES
            },
            (&[0, 4, 1, 5, 2, 6, 3, 7], None),
        ),
        (
            "a node without processors",
            Fake { nodes: &[node(0, "0-3", 1000), node(1, "", 9000)], ..ONE_NODE },
            (&[0, 2], None),
        ),
        (
            "processors that are switched off",
            Fake { online: "0-1,5,8-9", cores: &["0,8", "1,9", "5"], ..TWO_NODES },
            (&[0, 5, 1], Some(&[0, 1])),
        ),
        (
            "nodes with holes in their numbers",
            Fake {
                nodes: &[node(0, "0-1", 100), node(8, "4-5", 100)],
                online: "0-1,4-5",
                mems_allowed: "0-31",
                ..FOUR_NODES
            },
            (&[0, 4, 1, 5], Some(&[0, 8])),
        ),
        (
            "a kernel without nodes",
            Fake { nodes: &[], ..FOUR_NODES },
            (&[0, 1, 2, 3, 4, 5, 6, 7], None),
        ),
    ];
    for (name, fake, (cores, interleaved)) in rows {
        let topology = read(&fake).topology;
        let found: Vec<u32> = topology.cores().iter().map(|core| core.cpu).collect();
        assert_eq!(found, cores, "{name}");
        assert_eq!(topology.interleaved().as_deref(), interleaved, "{name}");
    }
}

#[test]
fn nodes_are_described() {
    let nodes = read(&TWO_NODES).topology.nodes;
    assert_eq!(nodes[1].cpus, [4, 5, 6, 7, 12, 13, 14, 15]);
    assert_eq!(nodes[1].distances, [21, 10]);
    assert_eq!((nodes[1].total, nodes[1].free), (Some(Bytes(32 << 30)), Some(Bytes(16 << 30))));
}

#[test]
fn a_process_confined_to_a_node_has_the_memory_of_that_node() {
    let confined = read(&Fake { mems_allowed: "1", ..FOUR_NODES });
    assert_eq!(confined.available(), Some(Bytes(50 << 20)));
    assert_eq!(read(&FOUR_NODES).available(), Some(Bytes(300 << 20)));
}

#[test]
fn settings_are_read() {
    let machine = read_with(
        &ONE_NODE,
        &[
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: Old Faithful\nflags\t\t: fpu avx2 fma f16c avx512f\n",
            ),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
            (
                "sys/kernel/mm/transparent_hugepage/defrag",
                "always defer [defer+madvise] madvise never",
            ),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "10"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "7"),
            ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
            ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance"),
            ("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "performance"),
            ("sys/devices/system/cpu/intel_pstate/no_turbo", "1"),
        ],
    );
    assert_eq!(machine.processor.name.as_deref(), Some("Old Faithful"));
    assert_eq!(machine.processor.simd.as_deref(), Some(&["avx2", "fma", "f16c", "avx512f"][..]));
    assert_eq!(machine.huge_pages.transparent.as_deref(), Some("madvise"));
    assert_eq!(machine.huge_pages.defrag.as_deref(), Some("defer+madvise"));
    assert_eq!(machine.huge_pages.pools, [Pool { page: Bytes(2 << 20), pages: 10, free: 7 }]);
    assert_eq!(
        machine.clock.governors.clone().into_iter().collect::<Vec<_>>(),
        [("performance".into(), 2), ("powersave".into(), 1)]
    );
    assert_eq!(machine.clock.no_turbo, Some(true));
    assert_eq!(machine.resident.all, Some(Bytes(2 << 20)));
}

#[test]
fn nothing_to_read_is_a_machine_of_one_processor() {
    let machine = Machine::read(Path::new("/does/not/exist"));
    assert_eq!(machine.topology.cores().len(), 1);
    assert_eq!(machine.available(), None);
    assert!(
        check(&machine, &Need { weights: Bytes(1 << 50), ..Need::default() })
            .iter()
            .all(|f| f.level == Level::Ok)
    );
}

#[test]
fn this_machine_can_be_read() {
    let machine = Machine::read(Path::new("/"));
    assert!(!machine.topology.cores().is_empty());
    assert!(machine.available().is_some_and(|bytes| bytes > Bytes(0)));
    assert!(machine.resident.all.is_some_and(|bytes| bytes > Bytes(0)));
}

/// The level of one check, and words that its sentence must have.
fn finds(machine: &Machine, need: Need, what: What, level: Level, words: &[&str]) {
    let findings = check(machine, &need);
    let found = findings.iter().find(|finding| finding.what == what).unwrap();
    assert_eq!(found.level, level, "{}", found.sentence);
    for word in words {
        assert!(found.sentence.contains(word), "{word}: {}", found.sentence);
    }
}

#[test]
fn what_is_wrong_is_said_with_its_remedy() {
    let mib = |n: u64| Bytes(n << 20);
    let two = read(&TWO_NODES);
    finds(&two, Need::default(), What::Numa, Level::Ok, &["[0, 1]"]);
    finds(
        &two,
        Need { numa: Numa::Off, ..Need::default() },
        What::Numa,
        Level::Warn,
        &["2 NUMA nodes", "--numa off"],
    );
    finds(&two, Need { threads: Some(8), ..Need::default() }, What::Threads, Level::Ok, &["8"]);
    finds(
        &two,
        Need { threads: Some(16), ..Need::default() },
        What::Threads,
        Level::Warn,
        &["8 physical", "--krasis-threads 8"],
    );

    let quota = [("proc/self/cgroup", "0::/box"), ("sys/fs/cgroup/box/cpu.max", "350000 100000")];
    let slow = read_with(&TWO_NODES, &quota);
    assert_eq!((slow.topology.cores().len(), slow.topology.team()), (8, 3));
    let of = |threads| Need { threads, ..Need::default() };
    let words = ["3 threads run on 8 physical cores", "/box may have 3.50 processors", "cpu.max"];
    finds(&slow, of(None), What::Threads, Level::Warn, &words);
    let words = ["4 threads were asked for", "--krasis-threads 3"];
    finds(&slow, of(Some(4)), What::Threads, Level::Warn, &words);
    finds(&slow, of(Some(3)), What::Threads, Level::Ok, &["3 on 8 physical cores"]);
    let enough = [quota[0], ("sys/fs/cgroup/box/cpu.max", "800000 100000")];
    let enough = read_with(&TWO_NODES, &enough);
    finds(&enough, of(None), What::Threads, Level::Ok, &["one on each of 8"]);

    let one = read(&ONE_NODE);
    let weights = |n| Need { weights: mib(n), buffers: mib(10), ..Need::default() };
    let cache = |n| Need { cache: mib(n), ..weights(100) };
    finds(
        &one,
        weights(750),
        What::Memory,
        Level::Ok,
        &["760.00 MiB needed", "800.00 MiB available"],
    );
    finds(
        &one,
        weights(751),
        What::Memory,
        Level::Refuse,
        &["needs 761.00 MiB", "95 % of the 800.00 MiB", "--cpu-expert-bits 4"],
    );
    finds(&one, cache(900), What::Memory, Level::Refuse, &["KV cache 900.00 MiB", "--context-max"]);
    finds(&one, Need { numa: Numa::Off, ..Need::default() }, What::Numa, Level::Ok, &[]);

    let odd = read_with(
        &Fake { mems_allowed: "0", ..ONE_NODE },
        &[
            ("proc/self/cgroup", "0::/box"),
            ("sys/fs/cgroup/box/memory.max", "104857600"),
            ("sys/fs/cgroup/box/memory.current", "52428800"),
            ("proc/cpuinfo", "flags : sse2 avx\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
            (
                "proc/meminfo",
                "MemTotal: 9999999 kB\nMemAvailable: 999999 kB\nSwapTotal: 9999999 kB\nSwapFree: 1 kB\n",
            ),
        ],
    );
    finds(
        &odd,
        weights(60),
        What::Memory,
        Level::Refuse,
        &["50.00 MiB of memory", "/box may have 100.00 MiB and holds 50.00 MiB"],
    );
    finds(&odd, Need::default(), What::Simd, Level::Warn, &["no AVX2"]);
    finds(&odd, Need::default(), What::HugePages, Level::Warn, &["madvise"]);
    finds(&odd, Need::default(), What::Governor, Level::Warn, &["powersave", "cpupower"]);
    finds(&odd, Need::default(), What::Swap, Level::Warn, &["9.54 GiB"]);

    let confined = read(&Fake { mems_allowed: "1", ..FOUR_NODES });
    finds(&confined, weights(60), What::Memory, Level::Refuse, &["50.00 MiB", "on the NUMA nodes"]);
}

fn memory_level(available: u64, limit: u64, need: u64) -> Level {
    let mut machine = Machine::default();
    machine.memory.available = Some(Bytes(available));
    machine.memory.limits = vec![Limit { group: "/".into(), limit: Bytes(limit), used: Bytes(0) }];
    let need = Need { weights: Bytes(need), ..Need::default() };
    check(&machine, &need)[0].level
}

proptest! {
    #[test]
    fn more_need_and_less_memory_are_never_better(
        available: u64, limit: u64, need: u64, more: u64, less: u64,
    ) {
        let level = memory_level(available, limit, need);
        prop_assert!(memory_level(available, limit, need.saturating_add(more)) >= level);
        prop_assert!(memory_level(available.saturating_sub(less), limit, need) >= level);
        prop_assert!(memory_level(available, limit.saturating_sub(less), need) >= level);
        let refused = u128::from(need) * 100 > u128::from(available.min(limit)) * 95;
        prop_assert_eq!(level == Level::Refuse, refused);
    }

}

proptest! {
    // Each case writes files.
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever the files hold: a machine with a core, one finding for each question.
    #[test]
    fn files_of_rubbish_are_read(texts in proptest::collection::vec("[0-9a-zA-Z:/., \n\\[\\]-]{0,60}", 12)) {
        let root = tempfile::tempdir().unwrap();
        let paths = [
            "proc/meminfo", "proc/self/status", "proc/self/cgroup", "proc/self/mountinfo", "proc/cpuinfo",
            "sys/devices/system/cpu/online", "sys/devices/system/node/online",
            "sys/devices/system/node/node0/meminfo", "sys/fs/cgroup/memory.max",
            "sys/kernel/mm/transparent_hugepage/enabled",
            "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
            "sys/devices/system/node/node0/cpulist",
        ];
        for (path, text) in paths.iter().zip(&texts) {
            put(root.path(), path, text).unwrap();
        }
        let machine = Machine::read(root.path());
        prop_assert!(!machine.topology.cpus.is_empty());
        prop_assert_eq!(check(&machine, &Need::default()).len(), 7);
    }

    /// However processors are allowed, each core is there once and no processor that is not allowed.
    #[test]
    fn every_allowed_core_comes_once(allowed in proptest::collection::btree_set(0u32..16, 1..16)) {
        let mut topology = read(&TWO_NODES).topology;
        topology.cpus.iter_mut().for_each(|cpu| cpu.allowed = allowed.contains(&cpu.number));
        let mut cores: Vec<u32> = topology.cores().iter().map(|core| core.cpu % 8).collect();
        cores.sort_unstable();
        let mut expected: Vec<u32> = allowed.iter().map(|cpu| cpu % 8).collect();
        expected.sort_unstable();
        expected.dedup();
        prop_assert_eq!(cores, expected);
        prop_assert!(topology.cores().iter().all(|core| allowed.contains(&core.cpu)));
    }
}

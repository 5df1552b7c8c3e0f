//! Machines of two and of four NUMA nodes, in a folder: their kernel notes what it is asked for, and answers
//! are those of one node.

mod common;

use common::{answer, greedy, int4, shapes};
use krasis_cpu::nodes::PIECE;
use krasis_cpu::nodes::fake::{Call, FakeKernel};
use krasis_engine::{Options, start_dummy};
use krasis_machine::Numa;
use krasis_machine::fake::{Fake, FakeNode};
use std::path::Path;
use std::sync::Arc;

/// Experts of four layers, twelve pages of 2 MiB each.
fn config() -> serde_json::Value {
    shapes(&[
        ("num_hidden_layers", 4),
        ("hidden_size", 512),
        ("moe_intermediate_size", 256),
        ("num_experts", 128),
    ])
}

/// Eight processors on so many nodes, whose numbers have holes.
fn write_machine(root: &Path, nodes: u32) {
    let cpus = ["0-3", "4-7", "0-1", "2-3", "4-5", "6-7"];
    let first = if nodes == 2 { 0 } else { 2 };
    let node = |i: u32| FakeNode { number: 3 * i, cpus: cpus[(first + i) as usize], mib: 50_000 };
    let all: Vec<FakeNode> = (0..nodes).map(node).collect();
    let fake = Fake {
        online: "0-7",
        cpus_allowed: "0-7",
        mems_allowed: "0-20",
        cores: &[],
        nodes: &all,
        mib: (200_000, 150_000),
    };
    fake.write(root).unwrap();
}

/// Tokens of a prompt long enough to tell who is hot, of an answer, and of another after the pause.
fn tokens(options: &Options) -> Vec<u32> {
    let running = start_dummy(&config(), Some(1.2), options).unwrap();
    let prompt: Vec<u32> = (0..1100).map(|i| i * 7 % 2999).collect();
    let mut tokens = answer(&running.handle, greedy(&prompt, 6)).tokens;
    tokens.extend(answer(&running.handle, greedy(&[5, 6, 7], 6)).tokens);
    drop(running.handle);
    running.thread.join().unwrap();
    tokens
}

#[test]
fn several_nodes_answer_as_one_does() {
    let plain = Options { threads: Some(4), ..int4(1200) };
    let wanted = tokens(&plain);
    for nodes in [2, 4] {
        let root = tempfile::tempdir().unwrap();
        write_machine(root.path(), nodes);
        let numbers: Vec<u32> = (0..nodes).map(|i| 3 * i).collect();
        for (numa, kernel, moves) in [
            (Numa::Local, FakeKernel::large_pages(), true),
            (Numa::Interleave, FakeKernel::large_pages(), false),
            (Numa::Auto, FakeKernel::small_pages(), false),
            (Numa::Local, FakeKernel::small_pages(), false),
        ] {
            let kernel = Arc::new(kernel);
            let machine_root = root.path().to_owned();
            let options = Options { numa, kernel: kernel.clone(), machine_root, ..plain.clone() };
            assert_eq!(tokens(&options), wanted, "{nodes} nodes, {numa:?}");
            let calls = kernel.calls();
            // Nothing is written before it is said where it goes.
            let Call::Interleave(bytes, on) = &calls[0] else { panic!("{:?}", calls[0]) };
            assert!(*bytes > 24 * PIECE && *on == numbers, "{bytes} on {on:?}");
            let mut moved = 0;
            for call in &calls {
                if let Call::Move(pages, to) = call {
                    moved += pages.len();
                    assert!(pages.iter().all(|at| at % PIECE == 0) && pages.len() == to.len());
                    assert!(to.iter().all(|node| numbers.contains(node)));
                }
            }
            assert_eq!(moved > 0, moves, "{nodes} nodes, {numa:?}: {moved} pages moved");
        }
    }
}

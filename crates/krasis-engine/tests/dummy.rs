//! Random weights stand in for models whose speed is measured, and speed depends on who is asked for.

mod common;

use common::{answer, greedy, int4, shapes};
use krasis_engine::{Request, Sampling, start_dummy};
use std::collections::HashSet;

const ANSWER: u32 = 60;
const EXPERTS: usize = 64;

fn config() -> serde_json::Value {
    shapes(&[
        ("num_hidden_layers", 12),
        ("hidden_size", 512),
        ("moe_intermediate_size", 128),
        ("num_experts", EXPERTS as u32),
    ])
}

/// If all tokens were routed alike, a few hot experts would be all that is asked for, and the experts of a
/// batch those of one sequence.
#[test]
fn tokens_are_routed_differently_in_every_layer() {
    let options = int4(256);
    let running = start_dummy(&config(), None, &options).unwrap();
    let sampling = Sampling { temperature: 1.0, top_k: 50, seed: Some(1), ..Sampling::GREEDY };
    let got = answer(&running.handle, Request { sampling, ..greedy(&[1, 2, 3], ANSWER) });
    let tokens: HashSet<u32> = got.tokens.iter().copied().collect();
    assert!(tokens.len() as u32 > ANSWER / 2, "{} different tokens", tokens.len());
    for (layer, counts) in running.handle.census.experts.get().unwrap().asked().unwrap() {
        let asked = counts.iter().filter(|&&count| count > 0).count();
        assert!(asked > EXPERTS / 2, "layer {layer} asks for {asked} of {EXPERTS} experts");
    }
}

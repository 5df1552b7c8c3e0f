//! Whole models against transformers: log-probabilities, hidden states of every layer, greedy text.

mod common;

use common::{FIXTURES, Golden, answer, differences, dir, engine, greedy, logprobs};
use krasis_engine::device::reference;
use krasis_engine::step::StepInput;
use krasis_engine::{DeviceKind, Engine, Options};
use krasis_ops::Memory;

fn on(device: DeviceKind) -> Options {
    Options { device, ..common::defaults() }
}

/// Float32 throughout: only the order of additions differs.
#[test]
fn logprobs_are_those_of_transformers() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        for device in [DeviceKind::Reference, DeviceKind::Cpu] {
            let got = logprobs(&engine(fixture, &on(device)), &golden.tokens);
            let (mean, worst) = differences(&got, &golden.logprobs);
            println!("{fixture} on {device:?}: mean {mean:.1e}, worst {worst:.1e}");
            assert!(
                mean < 1e-4 && worst < 1e-3,
                "{fixture} on {device:?}: mean {mean}, worst {worst}"
            );
        }
    }
}

#[test]
fn greedy_text_is_that_of_transformers() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        for device in [DeviceKind::Reference, DeviceKind::Cpu] {
            let got =
                answer(&engine(fixture, &on(device)), greedy(&golden.greedy_prompt, 24)).tokens;
            assert_eq!(got, golden.greedy, "{fixture} on {device:?}");
        }
    }
}

/// Finds the first layer that differs, which whole-model tests cannot tell.
#[test]
fn every_layer_leaves_the_residual_stream_of_transformers() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        let options = on(DeviceKind::Reference);
        let loaded = Engine::load(&dir(fixture), &options, reference(&options)).unwrap();
        let mut engine = loaded.engine;
        let runner = &mut engine.runner;
        let rows = 24;
        let input = StepInput {
            tokens: golden.tokens[..rows].to_vec(),
            positions: (0..rows as u32).collect(),
            row_seq: vec![0; rows],
            first_row: vec![0, rows as u32],
            pages: vec![0, 1],
            state: vec![0],
        };
        let rank = &mut runner.ranks[0];
        let (step, b) = rank.begin(&input, 0, &mut runner.host);
        let (device, network, experts) = (&mut rank.device, &rank.network, &mut rank.experts);
        krasis_model::blocks::embed(device, &network.model, &step, &b);
        close(fixture, "embedding", &device.download_act(b.residual), &golden.hidden[0]);
        for layer in 0..network.model.layers.len() {
            network.layer(device, experts, layer, &step, &b);
            let stream = device.download_act(b.residual);
            close(fixture, &format!("layer {layer}"), &stream, &golden.hidden[layer + 1]);
        }
    }
}

fn close(fixture: &str, place: &str, got: &[f32], wanted: &[f32]) {
    let (mean, worst) = differences(got, wanted);
    assert!(mean < 1e-4 && worst < 1e-3, "{fixture}, {place}: mean {mean}, worst {worst}");
}

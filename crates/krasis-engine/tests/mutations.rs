//! The mutation list: a model from which one term is dropped must not pass for the real one.
//!
//! A model is data, so a mutation is an edit of its description. Each row names a fixture in which
//! the term matters; the log-probabilities must then move by far more than the golden tests allow.

mod common;

use common::{Golden, differences, dir, greedy};
use krasis_checkpoint::Checkpoint;
use krasis_engine::device::cpu;
use krasis_engine::{Engine, Loaded, Request, Unwatched};
use krasis_model::{Class, Ffn, Gqa, Mixer, Mla, Model, Moe, Origin, Query, Run, Source, describe};
use krasis_ops::{GroupScore, Score};

/// Ten times what `golden.rs` allows a right model.
const VISIBLE: f32 = 1e-3;

fn each_moe(model: &mut Model<Source>, f: impl Fn(&mut Moe<Source>)) {
    for layer in &mut model.layers {
        if let Ffn::Moe(moe) = &mut layer.ffn {
            f(moe);
        }
    }
}

fn each_gqa(model: &mut Model<Source>, f: impl Fn(&mut Gqa<Source>)) {
    for layer in &mut model.layers {
        if let Mixer::Gqa(gqa) = &mut layer.mixer {
            f(gqa);
        }
    }
}

fn each_mla(model: &mut Model<Source>, f: impl Fn(&mut Mla<Source>)) {
    for layer in &mut model.layers {
        if let Mixer::Mla(mla) = &mut layer.mixer {
            f(mla);
        }
    }
}

/// Takes every leaf's recipe through `f`.
fn each_leaf(model: &mut Model<Source>, f: impl Fn(&mut Source)) {
    *model = model
        .try_map(|source| {
            let mut source = source.clone();
            f(&mut source);
            Ok::<_, std::convert::Infallible>(source)
        })
        .unwrap();
}

/// Interleaved rows stay interleaved: consecutive instead of every second.
fn keep_interleaved(source: &mut Source) {
    let Origin::Rows(runs) = &mut source.origin else { return };
    let mut straight: Vec<Run> = vec![];
    for run in runs.drain(..) {
        match straight.last_mut() {
            Some(last) if run.step == 2 && last.step == 2 && run.first == last.first + 1 => {
                *last = Run { count: last.count + run.count, step: 1, ..last.clone() };
            }
            _ => straight.push(run),
        }
    }
    *runs = straight;
}

type Mutation = (&'static str, &'static str, fn(&mut Model<Source>));

const MUTATIONS: &[Mutation] = &[
    ("no shared expert", "deepseek_v2_lite", |m| each_moe(m, |moe| moe.shared = None)),
    ("no shared expert", "glm4_moe", |m| each_moe(m, |moe| moe.shared = None)),
    ("no shared expert", "qwen3_next", |m| each_moe(m, |moe| moe.shared = None)),
    ("no gate of the shared expert", "qwen3_next", |m| {
        each_moe(m, |moe| moe.shared.as_mut().unwrap().gate = None);
    }),
    ("no routed scaling", "deepseek_v2", |m| each_moe(m, |moe| moe.scale = 1.0)),
    ("routed scaling twice", "deepseek_v3", |m| each_moe(m, |moe| moe.scale *= moe.scale)),
    ("no routed scaling", "kimi_k25", |m| each_moe(m, |moe| moe.scale = 1.0)),
    ("no renormalisation", "qwen3_moe", |m| each_moe(m, |moe| moe.routing.renormalise = false)),
    ("renormalisation", "qwen3_moe_sparse", |m| each_moe(m, |moe| moe.routing.renormalise = true)),
    ("no renormalisation", "kimi_k2", |m| each_moe(m, |moe| moe.routing.renormalise = false)),
    ("softmax for sigmoid", "glm4_moe", |m| each_moe(m, |moe| moe.routing.score = Score::Softmax)),
    ("no correction bias", "deepseek_v3", |m| each_moe(m, |moe| moe.router_bias = None)),
    ("no correction bias", "glm4_moe", |m| each_moe(m, |moe| moe.router_bias = None)),
    ("no groups", "deepseek_v2", |m| each_moe(m, |moe| moe.routing.groups = None)),
    ("no groups", "deepseek_v3", |m| each_moe(m, |moe| moe.routing.groups = None)),
    ("groups by their largest", "deepseek_v3", |m| {
        each_moe(m, |moe| moe.routing.groups.as_mut().unwrap().by = GroupScore::Largest);
    }),
    ("one expert fewer", "qwen3_moe", |m| each_moe(m, |moe| moe.routing.top_k -= 1)),
    ("no projection bias", "qwen3_moe", |m| each_gqa(m, |gqa| gqa.qkv_bias = None)),
    ("no output bias", "qwen3_moe", |m| each_gqa(m, |gqa| gqa.out_bias = None)),
    ("no projection bias", "glm4_moe", |m| each_gqa(m, |gqa| gqa.qkv_bias = None)),
    ("no query and key norm", "qwen3_moe", |m| each_gqa(m, |gqa| gqa.qk_norm = None)),
    ("query norm for keys", "qwen3_moe", |m| {
        each_gqa(m, |gqa| gqa.qk_norm = gqa.qk_norm.clone().map(|[q, _]| [q.clone(), q]));
    }),
    ("no output gate", "qwen3_next", |m| {
        each_gqa(m, |gqa| {
            gqa.gated = false;
            gqa.qkv.rows -= gqa.heads * gqa.dim;
            let Origin::Rows(runs) = &mut gqa.qkv.origin else { unreachable!() };
            runs.truncate(runs.len() - gqa.heads as usize);
        });
    }),
    ("whole rotation for partial", "glm4_moe", |m| {
        each_gqa(m, |gqa| {
            let half = gqa.dim / 2;
            gqa.rope.freqs = Source::numbers(
                (0..half).map(|i| 1e6f32.powf(-(i as f32) / half as f32)).collect(),
            );
        });
    }),
    ("another rotary base", "qwen3_moe", |m| {
        each_gqa(m, |gqa| {
            gqa.rope.freqs =
                Source::numbers((0..16).map(|i| 1e4f32.powf(-i as f32 / 16.0)).collect())
        });
    }),
    ("no mscale in the softmax", "deepseek_v2_lite", |m| {
        each_mla(m, |mla| mla.scale = ((mla.heads.nope + mla.heads.rope) as f32).powf(-0.5));
    }),
    ("no mscale in the softmax", "kimi_k2", |m| {
        each_mla(m, |mla| mla.scale = ((mla.heads.nope + mla.heads.rope) as f32).powf(-0.5));
    }),
    ("no attention factor", "deepseek_v2", |m| each_mla(m, |mla| mla.rope.scale = 1.0)),
    ("no YaRN", "deepseek_v3", |m| {
        each_mla(m, |mla| {
            mla.rope.freqs = Source::numbers((0..8).map(|i| 1e4f32.powf(-i as f32 / 8.0)).collect())
        });
    }),
    ("rotary pairs left interleaved", "deepseek_v2_lite", |m| each_leaf(m, keep_interleaved)),
    ("rotary pairs left interleaved", "deepseek_v3", |m| each_leaf(m, keep_interleaved)),
    ("model epsilon in latent norms", "deepseek_v2", |m| each_mla(m, |mla| mla.eps = 1e-3)),
    ("latent epsilon in all norms", "deepseek_v2", |m| m.eps = 1e-6),
    ("no query bottleneck norm", "deepseek_v3", |m| {
        each_mla(m, |mla| {
            if let Query::LowRank { norm, rank, .. } = &mut mla.query {
                *norm = Source::numbers(vec![1.0; *rank as usize]);
            }
        });
    }),
    ("norms without their one", "qwen3_next", |m| {
        each_leaf(m, |s| {
            if s.class == Class::VectorPlusOne {
                s.class = Class::Vector;
            }
        });
    }),
    ("no time-step bias", "qwen3_next", |m| {
        for layer in &mut m.layers {
            if let Mixer::DeltaNet(net) = &mut layer.mixer {
                net.dt_bias = Source::numbers(vec![0.0; net.heads.value as usize]);
            }
        }
    }),
    ("no decay rates", "qwen3_next", |m| {
        for layer in &mut m.layers {
            if let Mixer::DeltaNet(net) = &mut layer.mixer {
                net.a_log = Source::numbers(vec![0.0; net.heads.value as usize]);
            }
        }
    }),
    ("no final norm", "glm4_moe_noqk", |m| m.norm = Source::numbers(vec![1.0; m.hidden as usize])),
];

fn mean_difference(fixture: &str, mutate: impl FnOnce(&mut Model<Source>)) -> f32 {
    let golden = Golden::of(fixture);
    let ck = Checkpoint::open(&dir(fixture)).unwrap();
    let mut model = describe(ck.config(), |name| ck.contains(name)).unwrap();
    mutate(&mut model);
    let options = common::defaults();
    let Loaded { mut engine, handle, submissions, .. } =
        Engine::load_described(&ck, &model, &options, cpu(&options), &Unwatched).unwrap();
    let request = Request { prompt_logprobs: Some(0), ..greedy(&golden.tokens, 0) };
    let pending = common::submit(&handle, request);
    drop(handle);
    engine.serve(&submissions);
    let got: Vec<f32> = pending.wait().prompt.iter().map(|entry| entry.logprob).collect();
    differences(&got, &golden.logprobs).0
}

#[test]
fn every_dropped_term_shows() {
    let mut hidden = vec![];
    for &(what, fixture, mutate) in MUTATIONS {
        let moved = mean_difference(fixture, mutate);
        println!("{what:32} {fixture:18} mean {moved:.4}");
        if moved < VISIBLE {
            hidden.push((what, fixture));
        }
    }
    assert!(hidden.is_empty(), "these mutations pass for the real model: {hidden:?}");
}

/// The list proves something only if the unmutated models pass.
#[test]
fn no_mutation_no_difference() {
    for fixture in common::FIXTURES {
        let moved = mean_difference(fixture, |_| {});
        assert!(moved < VISIBLE / 10.0, "{fixture}: {moved}");
    }
}

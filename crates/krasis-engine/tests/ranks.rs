//! Layers spread over several devices: the same bits as on one, however they are spread, whatever
//! becomes of experts, and whoever comes along. The CPU plays every device, each with a memory of its own.

mod common;

use common::{
    DECODE, FIXTURES, Golden, PREFILL, answer, away, company, defaults, dir, engine, greedy,
    logprobs, submit, tight,
};
use krasis_core::{Act, Bytes, Mat};
use krasis_engine::device::cpu;
use krasis_engine::{
    CacheUse, Engine, ExpertBits, Loaded, Options, PrefixDisk, PrefixOptions, Quant, Ranks,
    Request, Shared, start,
};

fn on(ranks: usize, options: Options) -> Options {
    Options { ranks: Ranks { count: Some(ranks), ..Ranks::default() }, ..options }
}

fn spread(partition: &[u32], options: Options) -> Options {
    Options { ranks: Ranks { partition: partition.into(), ..Ranks::default() }, ..options }
}

fn layers(fixture: &str) -> u32 {
    match fixture {
        "qwen3_moe_sparse" => 6,
        "qwen3_next" => 5,
        _ => 3,
    }
}

/// Uneven ones too.
fn partitions(layers: u32) -> [Vec<u32>; 4] {
    [vec![1, layers - 1], vec![layers - 1, 1], vec![1, 1, layers - 2], vec![layers - 2, 1, 1]]
}

#[test]
fn no_partition_changes_a_bit() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        let wanted = logprobs(&engine(fixture, &defaults()), &golden.tokens);
        let check = |options: &Options, name: &str| {
            let handle = engine(fixture, options);
            assert_eq!(logprobs(&handle, &golden.tokens), wanted, "{fixture}, {name}");
            let got = answer(&handle, greedy(&golden.greedy_prompt, 24)).tokens;
            assert_eq!(got, golden.greedy, "{fixture}, {name}");
        };
        for ranks in 1..=3 {
            check(&on(ranks, defaults()), &format!("{ranks} ranks"));
        }
        let partitions = partitions(layers(fixture));
        for (i, prefill) in PREFILL.into_iter().enumerate() {
            for (j, decode) in [DECODE[i % 4], DECODE[(i + 1) % 4]].into_iter().enumerate() {
                let partition = &partitions[(i + 2 * j) % 4];
                let options = spread(partition, away(prefill, decode));
                let name = format!("{partition:?}, {prefill:?}, {decode:?}");
                match (i + j) % 2 {
                    0 => check(&options, &name),
                    _ => check(&tight(fixture, &options), &format!("{name}, tight")),
                }
            }
        }
    }
}

/// Several sequences at once, of which memory holds no more than two: pages and places mean the same on
/// every device, also when they go from one sequence to the next.
#[test]
fn company_and_want_of_memory_do_not_matter_either() {
    for fixture in ["qwen3_moe", "deepseek_v3", "qwen3_next"] {
        let with = |options: &Options| company(fixture, options);
        let few = |options| Options {
            expert_bits: ExpertBits::Int4,
            group: 32,
            threads: Some(2),
            context_max: Some(160),
            kv_pages: Some(20),
            ..options
        };
        let wanted = with(&few(defaults()));
        for (partition, options) in [
            (vec![1, 2], defaults()),
            (vec![1, 1, 1], defaults()),
            (vec![2, 1], away(PREFILL[5], DECODE[1])),
            (vec![1, 1, 1], away(PREFILL[1], DECODE[0])),
        ] {
            let mut partition: Vec<u32> = partition;
            *partition.last_mut().unwrap() += layers(fixture) - 3;
            let name = format!("{fixture}, {partition:?}, {:?}", options.residency);
            assert_eq!(with(&spread(&partition, few(options))), wanted, "{name}");
        }
    }
}

/// A conversation goes on from host memory and from the disk, which know nothing of how layers were
/// spread: what one device has written, three go on with.
#[test]
fn what_is_kept_is_kept_of_all_devices() {
    for fixture in ["qwen3_moe", "deepseek_v2", "qwen3_next"] {
        let tokens: Vec<u32> = Golden::of(fixture).tokens.into_iter().cycle().take(400).collect();
        let (first, other) = (&tokens[..210], &tokens[213..400]);
        let next = [first, &tokens[7..30]].concat();
        let wanted = answer(&engine(fixture, &defaults()), greedy(&next, 12)).tokens;
        let disk = tempfile::tempdir().unwrap();
        let kept = |ranks, ram, disk: Option<&std::path::Path>| Options {
            prefix: PrefixOptions {
                ram: Some(Bytes(ram)),
                disk: disk.map(|dir| PrefixDisk { dir: dir.into(), bytes: Bytes(1 << 30) }),
                checkpoints: Some(2),
                ..PrefixOptions::default()
            },
            context_max: Some(256),
            kv_pages: Some(17),
            ..on(ranks, defaults())
        };
        // Beside the second prompt the device has no room for the first.
        for ranks in [1, 2, 3] {
            let options = kept(ranks, 64 << 20, None);
            let handle = engine(fixture, &options);
            for prompt in [first, other] {
                answer(&handle, greedy(prompt, 1));
            }
            let got = answer(&handle, greedy(&next, 12));
            assert_eq!(got.tokens, wanted, "{fixture}, {ranks} ranks, host memory");
            assert!(got.usage.cached_tokens >= 192, "{fixture}: {:?}", got.usage);
        }
        for (writers, readers) in [(1, 3), (2, 1)] {
            let folder = disk.path().join(writers.to_string());
            let options = kept(writers, 0, Some(&folder));
            let loaded = Engine::load(&dir(fixture), &options, cpu(&options)).unwrap();
            let Loaded { mut engine, handle, submissions, .. } = loaded;
            let pending = submit(&handle, greedy(first, 1));
            drop(handle);
            engine.serve(&submissions);
            pending.wait();
            // The folder is one process's.
            drop(engine);
            let handle = common::engine(fixture, &kept(readers, 0, Some(&folder)));
            let got = answer(&handle, greedy(&next, 12));
            assert_eq!(got.tokens, wanted, "{fixture}, written by {writers}, read by {readers}");
            assert!(got.usage.cached_tokens >= 192, "{fixture}: {:?}", got.usage);
        }
    }
}

/// The cache of quantised weights is of the whole model.
#[test]
fn one_cache_is_for_any_partition() {
    for fixture in ["qwen3_moe_sparse", "deepseek_v3"] {
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir(fixture)).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
        }
        let with = |ranks| Options {
            expert_bits: ExpertBits::Int8,
            attention: Quant::Int8,
            lm_head: Quant::Int8,
            group: 32,
            cache: CacheUse::Auto,
            ..on(ranks, defaults())
        };
        let tokens = Golden::of(fixture).tokens;
        let run = |ranks| {
            let running = start(copy.path(), &with(ranks)).unwrap();
            let files = krasis_checkpoint::cache::list(&copy.path().join(".krasis_cache"));
            assert_eq!(files.len(), 1, "{ranks} ranks");
            let written = std::fs::metadata(&files[0]).unwrap().modified().unwrap();
            (running.loading.cached, written, logprobs(&running.handle, &tokens))
        };
        let first = run(3);
        assert!(first.0 > Bytes(0));
        for ranks in [1, 2, 3] {
            assert!(run(ranks) == first, "{fixture}, {ranks} ranks");
        }
    }
}

fn helped(devices: usize, options: Options) -> Options {
    let ranks = Ranks { count: Some(devices), shared: Shared::Experts, ..Ranks::default() };
    Options { ranks, ..options }
}

/// Other devices bring and compute a part of each layer's experts.
#[test]
fn no_helper_changes_a_bit() {
    for fixture in FIXTURES {
        let golden = Golden::of(fixture);
        let wanted = logprobs(&engine(fixture, &defaults()), &golden.tokens);
        for (i, prefill) in PREFILL.into_iter().enumerate().filter(|(_, it)| it.by_layers()) {
            for devices in [2, 3] {
                let options = helped(devices, away(prefill, DECODE[(i + devices) % 4]));
                let options = match (i + devices) % 2 {
                    0 => options,
                    _ => tight(fixture, &options),
                };
                let name = format!("{fixture}, {prefill:?}, {devices}, {:?}", options.device_bytes);
                let handle = engine(fixture, &options);
                assert_eq!(logprobs(&handle, &golden.tokens), wanted, "{name}");
                let got = answer(&handle, greedy(&golden.greedy_prompt, 24)).tokens;
                assert_eq!(got, golden.greedy, "{name}");
            }
        }
    }
}

/// Where nothing is kept, each expert is brought once for a prompt, by whoever it belongs to, and nobody goes
/// on without what a helper has not brought.
#[test]
fn helpers_do_their_part() {
    for fixture in ["qwen3_moe", "deepseek_v3"] {
        let tokens = &Golden::of(fixture).tokens[..50];
        let run = |devices, helpers: usize| {
            let options = helped(devices, away(PREFILL[1], DECODE[0]));
            let loaded = Engine::load(&dir(fixture), &options, cpu(&options)).unwrap();
            let Loaded { mut engine, handle, submissions, .. } = loaded;
            assert_eq!(engine.runner.ranks[0].helpers.len(), devices - 1);
            engine.runner.ranks[0].helpers.truncate(helpers);
            let pending =
                submit(&handle, Request { prompt_logprobs: Some(0), ..greedy(tokens, 0) });
            drop(handle);
            let serving = std::thread::spawn(move || {
                engine.serve(&submissions);
                engine.runner.traffic()
            });
            let traffic = serving.join().ok()?;
            let got: Vec<f32> = pending.wait().prompt.iter().map(|entry| entry.logprob).collect();
            Some((got, traffic.brought, traffic.experts))
        };
        let alone = run(1, 0);
        let (_, brought, experts) = alone.as_ref().unwrap();
        assert_eq!(brought, experts);
        for devices in [2, 3] {
            assert_eq!(run(devices, devices - 1), alone, "{fixture}, {devices} devices");
            assert_eq!(run(devices, devices - 2), None, "{fixture}, {devices} devices less one");
        }
    }
}

type Handed = [(Mat<Act>, Mat<Act>); 2];

type Mistake = (&'static str, fn(&mut Handed));

/// What a wrong hand-over could be: of the residual stream or of its norm, something else or nothing.
const MISTAKES: [Mistake; 5] = [
    ("the residual stream twice", |takes| takes[1].0 = takes[0].0),
    ("the norm twice", |takes| takes[0].0 = takes[1].0),
    ("no residual stream", |takes| takes[0] = takes[1]),
    ("no norm", |takes| takes[1] = takes[0]),
    ("each in the place of the other", |takes| {
        let [residual, norm] = *takes;
        *takes = [(residual.0, norm.1), (norm.0, residual.1)];
    }),
];

#[test]
fn a_wrong_hand_over_shows() {
    for fixture in ["qwen3_moe", "deepseek_v2_lite", "qwen3_next"] {
        let golden = Golden::of(fixture);
        let run = |mistake: fn(&mut Handed)| {
            let options = on(2, defaults());
            let loaded = Engine::load(&dir(fixture), &options, cpu(&options)).unwrap();
            let Loaded { mut engine, handle, submissions, .. } = loaded;
            mistake(engine.runner.ranks[1].takes.as_mut().unwrap());
            let serving = std::thread::spawn(move || engine.serve(&submissions));
            let got = logprobs(&handle, &golden.tokens);
            drop(handle);
            serving.join().unwrap();
            got.iter().zip(&golden.logprobs).map(|(a, b)| (a - b).abs()).sum::<f32>()
                / got.len() as f32
        };
        assert!(run(|_| {}) < 1e-4, "{fixture} is right without a mistake");
        for (name, mistake) in MISTAKES {
            let moved = run(mistake);
            // Not a number is what nobody has written.
            assert!(moved.is_nan() || moved > 1e-3, "{fixture}, {name}: {moved}");
        }
    }
}

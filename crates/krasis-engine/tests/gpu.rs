//! Whole models on an NVIDIA GPU against transformers.

mod common;

use common::{
    Compared, DECODE, FIXTURES, Golden, PREFILL, answer, away, compare, defaults, dir, greedy,
    logprobs,
};
use krasis_core::Bytes;
use krasis_engine::{
    Activations, Census, DeviceKind, Direct, ExpertBits, Options, PrefixDisk, PrefixOptions, Quant,
    Ranks, Reuse, Shared, StartError, start,
};

/// Runs every fixture, prints a line for each, and fails at the end with all that are off.
fn each(what: &str, options: &Options, good: impl Fn(&Compared) -> bool) {
    let mut bad = Vec::new();
    for fixture in FIXTURES {
        match start(&dir(fixture), options) {
            // Without a GPU, a driver or a compiler there is nothing to compare.
            Err(StartError::Gpu(error)) => return println!("skipped: no GPU ({error})"),
            Err(error) => bad.push(format!("{fixture}: {error}")),
            Ok(running) => {
                let got = compare(fixture, &running.handle);
                let Compared { mean, worst, same } = got;
                println!(
                    "{fixture}, {what}: mean {mean:.1e}, worst {worst:.1e}, greedy {same} of 24"
                );
                if !good(&got) {
                    bad.push(format!("{fixture}: mean {mean}, worst {worst}, greedy {same} of 24"));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{what}:\n{}", bad.join("\n"));
}

fn on_gpu(activations: Activations) -> Options {
    let kernel_cache = Some(std::env::temp_dir().join("krasis-test-kernels"));
    Options { device: DeviceKind::Cuda(activations), kernel_cache, threads: None, ..defaults() }
}

/// Products are split until nothing is lost, so only the order of additions differs.
#[test]
fn f32_activations_give_what_transformers_does() {
    let good = |got: &Compared| got.mean < 1e-3 && got.worst < 2e-2 && got.same == 24;
    each("f32 activations", &on_gpu(Activations::F32), good);
}

/// Rounding flips routes of random models: the CPU with all activations rounded is 0.01 to 0.12 off
/// in the mean. This only guards against nonsense; the test above and the demo model judge.
#[test]
fn bf16_activations_stay_near() {
    each("BF16 activations", &on_gpu(Activations::Bf16), |got| got.mean < 0.3);
}

#[test]
fn quantised_weights_stay_near() {
    for (what, expert_bits) in [("INT8", ExpertBits::Int8), ("INT4", ExpertBits::Int4)] {
        let options = Options {
            expert_bits,
            attention: Quant::Int8,
            dense_mlp: Quant::Int8,
            group: 32,
            ..on_gpu(Activations::F32)
        };
        each(what, &options, |got| got.mean < 0.8);
    }
}

/// A conversation goes on from pages and states, also from those that host memory and the disk have,
/// with the answers of one that is read anew each time.
#[test]
fn a_conversation_goes_on() {
    let disk = tempfile::tempdir().unwrap();
    let kept = |ram, disk: Option<&std::path::Path>| PrefixOptions {
        ram: Some(Bytes(ram)),
        disk: disk.map(|dir| PrefixDisk { dir: dir.into(), bytes: Bytes(1 << 30) }),
        ..PrefixOptions::default()
    };
    let off = PrefixOptions { reuse: Reuse::Nothing, ..PrefixOptions::default() };
    for fixture in ["qwen3_moe", "deepseek_v3", "qwen3_next"] {
        let tokens = Golden::of(fixture).tokens;
        let mut answers = Vec::new();
        // Room for one of two conversations; then for both, and the next process.
        for (prefix, pages) in [
            (off.clone(), None),
            (kept(1 << 30, None), Some(42)),
            (kept(0, Some(disk.path())), None),
            (kept(0, Some(disk.path())), None),
        ] {
            let context_max = Some(640);
            let options =
                Options { prefix, kv_pages: pages, context_max, ..on_gpu(Activations::F32) };
            let running = match start(&dir(fixture), &options) {
                Err(StartError::Gpu(error)) => return println!("skipped: no GPU ({error})"),
                running => running.unwrap(),
            };
            let (mut said, mut found) = (Vec::new(), 0);
            let mut prompts = [tokens[..150].to_vec(), tokens[20..210].to_vec()];
            for turn in 0..8 {
                let prompt = &mut prompts[turn % 2];
                let got = answer(&running.handle, greedy(prompt, 24));
                found += got.usage.cached_tokens;
                prompt.extend(&got.tokens);
                prompt.extend(&tokens[10 * turn..10 * turn + 40]);
                said.push(got.tokens);
            }
            let census = &running.handle.census;
            let [ram, disk] = [&census.prefix_hits_ram, &census.prefix_hits_disk].map(Census::read);
            println!("{fixture}: {found} found, {ram} in host memory, {disk} on the disk");
            answers.push((said, found, ram, disk));
            // What is on its way to the disk gets there.
            while Census::read(&census.prefix_disk_bytes) == 0 && options.prefix.disk.is_some() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        let [cold, ram, disk, next] = &answers[..] else { unreachable!("four runs") };
        for warm in [ram, disk, next] {
            assert_eq!(warm.0, cold.0, "{fixture}");
            assert!(warm.1 > 600, "{fixture}");
        }
        assert_eq!(cold.1, 0);
        assert!(ram.2 > 0 && next.3 > 0, "{fixture}");
    }
}

/// One GPU under two numbers, and where there is another one, both: the bits of one, whether they copy by
/// themselves or through host memory.
#[test]
fn several_gpus_give_the_bits_of_one() {
    let found = match krasis_cuda::driver::gpus() {
        Err(error) => return println!("skipped: no GPU ({error})"),
        Ok(found) => found.len(),
    };
    for fixture in ["qwen3_moe", "deepseek_v3", "qwen3_next"] {
        let golden = Golden::of(fixture);
        let run = |ranks: &Ranks, gpu_links, options: &Options| {
            let options = Options {
                device: DeviceKind::Cuda(Activations::Bf16),
                kernel_cache: on_gpu(Activations::Bf16).kernel_cache,
                threads: None,
                device_bytes: Some(Bytes(1 << 30)),
                context_max: Some(320),
                ranks: ranks.clone(),
                gpu_links,
                ..options.clone()
            };
            let running = start(&dir(fixture), &options).unwrap();
            let prompt = logprobs(&running.handle, &golden.tokens);
            (prompt, answer(&running.handle, greedy(&golden.greedy_prompt, 24)).tokens)
        };
        let grouped = away(PREFILL[1], DECODE[0]);
        for (shared, options) in [
            (Shared::Layers, defaults()),
            (Shared::Layers, away(PREFILL[5], DECODE[1])),
            (Shared::Experts, grouped),
        ] {
            let wanted = run(&Ranks::default(), Direct::IfRight, &options);
            for gpus in [vec![0, 0], vec![0, 1], vec![1, 0]] {
                if gpus.iter().any(|&gpu| gpu as usize >= found) {
                    continue;
                }
                for links in [Direct::IfRight, Direct::Never] {
                    let ranks = Ranks { gpus: gpus.clone(), shared, ..Ranks::default() };
                    let same = run(&ranks, links, &options) == wanted;
                    println!("{fixture}, {shared:?}, {gpus:?}, {links:?}: the same {same}");
                    assert!(same, "{fixture}, {shared:?}, {gpus:?}, {links:?}");
                }
            }
        }
    }
}

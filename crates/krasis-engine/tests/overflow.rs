//! Models that are larger than the memory that they may have: experts come from the disk, and tokens are
//! those of a model that is in memory as a whole, bit for bit, whatever is there at any time.

mod common;

use common::{FIXTURES, Golden, answer, copy, greedy, logprobs, submit};
use krasis_core::Bytes;
use krasis_engine::{
    CacheUse, DeviceKind, Engine, Event, ExpertBits, Handle, Loaded, Options, PrefixOptions, Reuse,
    StartError, device, start,
};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Passes of 50 tokens in chunks of 16, computed each time. Memory that is saved is experts' alone.
fn options() -> Options {
    Options {
        cache: CacheUse::Auto,
        prefill_chunk: 16,
        pass_tokens: 50,
        context_max: Some(320),
        kv_pages: Some(64),
        prefix: PrefixOptions { reuse: Reuse::Nothing, ..PrefixOptions::default() },
        ..common::defaults()
    }
}

fn four_bits() -> Options {
    Options { expert_bits: ExpertBits::Int4, group: 32, threads: Some(2), ..options() }
}

/// Memory of the whole model.
fn all(model: &Path, options: &Options) -> u64 {
    let options = Options { cache: CacheUse::Off, ram: None, ..options.clone() };
    let running = start(model, &options).unwrap();
    running.regions.iter().map(|(_, bytes)| bytes.0).sum()
}

/// The least memory with which these options work, or a little more.
fn least(model: &Path, options: &Options) -> u64 {
    let mut bytes = 1;
    loop {
        match start(model, &Options { ram: Some(Bytes(bytes)), ..options.clone() }) {
            Ok(_) => return bytes,
            Err(StartError::Shortfall { wanted, available, .. }) => {
                bytes += wanted.0 - available.0 + 1024;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Little memory, half of what is missing then, and almost enough.
fn budgets(model: &Path, options: &Options) -> [Options; 3] {
    let (least, all) = (least(model, options), all(model, options) - 1);
    let budgets = [least, least.midpoint(all), all];
    budgets.map(|bytes| {
        let options = Options { ram: Some(Bytes(bytes)), ..options.clone() };
        let regions = start(model, &options).unwrap().regions;
        let taken: u64 = regions.iter().map(|(_, bytes)| bytes.0).sum();
        assert!(regions.iter().any(|(name, _)| *name == "expert slots") && taken <= bytes);
        options
    })
}

#[test]
fn every_budget_gives_the_same_tokens() {
    for fixture in FIXTURES {
        let (model, golden) = (copy(fixture), Golden::of(fixture));
        let wanted = logprobs(&common::engine(fixture, &common::defaults()), &golden.tokens);
        for options in budgets(model.path(), &options()) {
            let name = format!("{fixture}, {:?}", options.ram);
            let handle = start(model.path(), &options).unwrap().handle;
            assert_eq!(logprobs(&handle, &golden.tokens), wanted, "{name}");
            let got = answer(&handle, greedy(&golden.greedy_prompt, 24)).tokens;
            assert_eq!(got, golden.greedy, "{name}");
        }
    }
}

/// Several sequences at once, in integers, and on a device whose memory is not lent.
#[test]
fn company_and_device_do_not_matter() {
    for fixture in ["qwen3_moe", "deepseek_v3", "qwen3_next"] {
        let (model, golden) = (copy(fixture), Golden::of(fixture));
        let request = |i: usize| greedy(&golden.tokens[i * 9..][..20 + 30 * (i % 3)], 40);
        let with = |options: &Options| -> Vec<Vec<u32>> {
            let handle = start(model.path(), options).unwrap().handle;
            let pending: Vec<_> = (0..6).map(|i| submit(&handle, request(i))).collect();
            pending.into_iter().map(|pending| pending.wait().tokens).collect()
        };
        let wanted = with(&Options { cache: CacheUse::Off, ..four_bits() });
        for options in budgets(model.path(), &four_bits()) {
            assert_eq!(with(&options), wanted, "{fixture}, {:?}", options.ram);
        }
    }
    let (model, golden) = (copy("qwen3_moe"), Golden::of("qwen3_moe"));
    let plain = Options { device: DeviceKind::Reference, ..options() };
    let [little, ..] = budgets(model.path(), &plain);
    let tokens = |options: &Options| {
        let handle = start(model.path(), options).unwrap().handle;
        logprobs(&handle, &golden.tokens[..40])
    };
    assert_eq!(tokens(&little), tokens(&Options { cache: CacheUse::Off, ..plain }));
}

/// What is read again and again with little memory is read once with almost enough.
#[test]
fn memory_is_a_cache() {
    let (model, golden) = (copy("qwen3_moe"), Golden::of("qwen3_moe"));
    let brought = |options: &Options| {
        let Loaded { mut engine, handle, submissions, .. } =
            Engine::load(model.path(), options, device::cpu(options)).unwrap();
        let before = engine.runner.traffic().brought;
        let serving = std::thread::spawn(move || {
            engine.serve(&submissions);
            engine.runner.traffic()
        });
        answer(&handle, greedy(&golden.tokens[..50], 24));
        drop(handle);
        let traffic = serving.join().unwrap();
        (traffic.brought - before, traffic.experts)
    };
    let [little, half, roomy] = budgets(model.path(), &options()).map(|options| brought(&options));
    let experts = little.1;
    assert!(little.0 > 2 * experts, "{little:?}");
    assert!(half.0 < little.0 && roomy.0 < half.0, "{little:?}, {half:?}, {roomy:?}");
    assert!(roomy.0 < experts, "{roomy:?}");
}

/// The only cache of a model.
fn file(model: &Path) -> PathBuf {
    let files = krasis_checkpoint::cache::list(&model.join(".krasis_cache"));
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

/// Whatever a request brings: tokens, or why it failed.
fn outcome(handle: &Handle, prompt: &[u32]) -> Result<Vec<u32>, String> {
    let (send, events) = std::sync::mpsc::channel();
    let sink = Box::new(move |event| drop(send.send(event)));
    let _ticket = handle.submit(greedy(prompt, 24), sink).unwrap();
    let mut tokens = Vec::new();
    for event in events {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Done { .. } => return Ok(tokens),
            Event::Failed { message } => return Err(message),
            other => panic!("{other:?}"),
        }
    }
    panic!("the engine is gone");
}

#[test]
fn what_cannot_be_read_fails_its_request_and_no_other() {
    let (model, golden) = (copy("qwen3_moe"), Golden::of("qwen3_moe"));
    let prompt = &golden.greedy_prompt;
    let [options, ..] = budgets(model.path(), &options());
    let handle = start(model.path(), &options).unwrap().handle;
    assert_eq!(outcome(&handle, prompt).unwrap(), golden.greedy);
    let path = file(model.path());
    let sound = fs::read(&path).unwrap();
    let cache = OpenOptions::new().write(true).open(&path).unwrap();
    let cut = || cache.set_len(9000).unwrap();
    let spoil = || cache.write_all_at(&vec![0x5a; sound.len() - 9000], 9000).unwrap();
    for (damage, words) in [(&cut as &dyn Fn(), "cannot read"), (&spoil, "is damaged")] {
        damage();
        for _ in 0..3 {
            let said = outcome(&handle, prompt).unwrap_err();
            assert!(said.contains(words), "{said}");
            assert!(said.contains(path.to_str().unwrap()), "{said}");
        }
        cache.write_all_at(&sound, 0).unwrap();
        for _ in 0..2 {
            assert_eq!(outcome(&handle, prompt).unwrap(), golden.greedy);
        }
    }
    // Found at the start, it is made anew.
    drop(handle);
    let last = OpenOptions::new().write(true).open(&path).unwrap();
    // The first byte of the first expert, which no budget leaves on the disk.
    let header = 32 + u64::from_le_bytes(sound[16..24].try_into().unwrap());
    let at = header.next_multiple_of(4096);
    last.write_all_at(&[sound[at as usize] ^ 1], at).unwrap();
    let handle = start(model.path(), &options).unwrap().handle;
    assert_eq!(fs::read(&path).unwrap()[at as usize], sound[at as usize]);
    assert_eq!(outcome(&handle, prompt).unwrap(), golden.greedy);
}

/// Where there is no place for a cache, or none is wanted, it is said what would help.
#[test]
fn without_a_cache_it_is_refused() {
    let model = copy("qwen3_moe");
    let [_, half, _] = budgets(model.path(), &options());
    let refused = |options: &Options| start(model.path(), options).err().unwrap().to_string();
    let said = refused(&Options { cache: CacheUse::Off, ..half.clone() });
    assert!(said.contains("leave --no-cache out"), "{said}");
    fs::remove_dir_all(model.path().join(".krasis_cache")).unwrap();
    fs::write(model.path().join(".krasis_cache"), "").unwrap();
    let said = refused(&half);
    assert!(said.contains("would have to lie on the disk"), "{said}");
    assert!(said.contains(".krasis_cache") && said.contains("--cpu-expert-bits 4"), "{said}");
    let said = refused(&Options { ram: Some(Bytes(1000)), ..half });
    assert!(said.contains("raise --ram-mb to"), "{said}");
}

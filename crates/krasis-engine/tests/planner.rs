//! The planner against what was measured, against the formulas of sizes, and on machines made up at
//! random.

use krasis_core::random::SplitMix64;
use krasis_core::{Bytes, KvDtype};
use krasis_engine::dummy::Dummy;
use krasis_engine::plan::Plan;
use krasis_engine::planner::{Card, Draft, Forecast, Host, Site, need_of};
use krasis_engine::{
    Activations, DecodeStrategy, DeviceKind, ExpertBits, Options, PrefillStrategy, Quant, Ranks,
    Residency, Shared, StartError,
};
use krasis_machine::{Machine, Memory, Processor};
use krasis_model::{Model, Source, describe};
use serde_json::{Value, json};
use std::path::Path;

const GIB: u64 = 1 << 30;

const MODELS: [&str; 7] = [
    "DeepSeek-V2-Lite",
    "DeepSeek-V3",
    "GLM-4.7",
    "Kimi-K2.5",
    "Qwen3-235B-A22B",
    "Qwen3-30B-A3B",
    "Qwen3-Coder-Next",
];

fn model(name: &str, overrides: &[(&str, Value)]) -> Model<Source> {
    let file = format!("../../fixtures/configs/{name}.json");
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    overrides.iter().for_each(|(field, value)| config[*field] = value.clone());
    describe(&config, |_| false).unwrap()
}

fn host(available: u64, threads: usize, read: f64, multiply: f64, simd: &[&'static str]) -> Host {
    let memory = Memory {
        total: Some(Bytes(available)),
        available: Some(Bytes(available)),
        ..Memory::default()
    };
    let processor = Processor { name: None, simd: Some(simd.to_vec()) };
    let machine = Machine { memory, processor, ..Machine::default() };
    Host { machine, threads, read, disk: None, multiply }
}

/// The machine of the README's GPU tables.
fn h200() -> Site {
    let card = Card {
        name: "H200".into(),
        memory: Bytes(139 * GIB),
        free: Bytes(139 * GIB),
        read: 4.26e12,
        multiply: 640e12,
        bus: 55e9,
    };
    Site { card: Some(card), others: vec![], host: xeon(170e9) }
}

fn xeon(read: f64) -> Host {
    host(120 * GIB, 16, read, 16.0 * 720e9, &["avx2", "fma", "f16c", "avx512_vnni", "amx_int8"])
}

fn zen5(read: f64) -> Site {
    let simd = ["avx2", "fma", "f16c", "avx512_vnni"];
    Site { card: None, others: vec![], host: host(24 * GIB, 2, read, 2.0 * ZEN5_THREAD, &simd) }
}

/// INT8 operations a second of a Zen 5 core, as `krasis plan` measures them.
const ZEN5_THREAD: f64 = 1050e9;

/// As the README's tables: all in four bits.
fn four_bits(device: DeviceKind) -> Options {
    Options {
        device,
        expert_bits: ExpertBits::Int4,
        attention: Quant::Int4,
        shared_expert: Quant::Int4,
        dense_mlp: Quant::Int4,
        lm_head: Quant::Int4,
        prefill_chunk: if device == DeviceKind::Cpu { 512 } else { 8192 },
        ..Options::default()
    }
}

const GPU: DeviceKind = DeviceKind::Cuda(Activations::Bf16);

fn plan(model: &Model<Source>, options: &Options, site: &Site) -> Result<Plan, StartError> {
    Plan::new(model, &Dummy, options, options.device.act_bytes(), site)
}

/// Measured speeds, and what is foretold of the same.
struct Measured {
    what: String,
    model: Model<Source>,
    options: Options,
    site: Site,
    /// Prompts by length, tokens a second.
    prompts: Vec<(u32, f64)>,
    /// Tokens a second.
    decode: Option<f64>,
}

/// Every figure is one of the README's.
fn measured() -> Vec<Measured> {
    let cut = [("num_hidden_layers", json!(12)), ("vocab_size", json!(4096))];
    let small = [("vocab_size", json!(4096))];
    let int8 = Options {
        expert_bits: ExpertBits::Int8,
        attention: Quant::Int8,
        lm_head: Quant::Int8,
        ..four_bits(DeviceKind::Cpu)
    };
    let grouped = |mib: u64| Options {
        residency: Residency::Host {
            prefill: PrefillStrategy::LayerGrouped(48),
            decode: DecodeStrategy::PureCpu,
        },
        device_bytes: Some(Bytes(mib << 20)),
        ..four_bits(GPU)
    };
    let hot = Options {
        residency: Residency::Host {
            prefill: PrefillStrategy::HcsPrefill,
            decode: DecodeStrategy::HcsHybrid,
        },
        device_bytes: Some(Bytes(16_384 << 20)),
        ..four_bits(GPU)
    };
    let hot_30b =
        Options { device_bytes: Some(Bytes(8192 << 20)), context_max: Some(8448), ..hot.clone() };
    let long = Options { context_max: Some(33_000), ..grouped(9000) };
    let cpu = || four_bits(DeviceKind::Cpu);
    let on_cpu = |read| Site { card: None, others: vec![], host: xeon(read) };
    let all = [
        (
            "Qwen3-30B-A3B",
            &[][..],
            four_bits(GPU),
            h200(),
            vec![(2048, 39_000.0), (8192, 37_700.0)],
            Some(597.0),
        ),
        (
            "DeepSeek-V2-Lite",
            &[],
            four_bits(GPU),
            h200(),
            vec![(2048, 52_700.0), (8192, 60_400.0)],
            Some(539.0),
        ),
        (
            "Qwen3-Coder-Next",
            &[],
            four_bits(GPU),
            h200(), // Without the step that makes a checkpoint.
            vec![(2048, 26_400.0), (8192, 34_900.0)],
            Some(376.0),
        ),
        (
            "Qwen3-30B-A3B",
            &[],
            grouped(7000),
            h200(),
            vec![(2048, 7_540.0), (8192, 29_800.0)],
            Some(98.0),
        ),
        ("Qwen3-30B-A3B", &[], long, h200(), vec![(32_768, 18_000.0)], None),
        ("Qwen3-30B-A3B", &[], hot_30b, h200(), vec![(8192, 34_300.0)], Some(179.0)),
        ("Qwen3-Coder-Next", &[], hot, h200(), vec![(8192, 14_500.0)], Some(150.0)),
        ("Qwen3-30B-A3B", &cut, cpu(), zen5(41e9), vec![(512, 730.0)], Some(112.0)),
        ("Qwen3-30B-A3B", &cut, int8, zen5(42e9), vec![(512, 744.0)], Some(51.0)),
        ("DeepSeek-V2-Lite", &small, cpu(), zen5(44e9), vec![(512, 233.0)], Some(33.0)),
        ("Qwen3-30B-A3B", &[], cpu(), on_cpu(185e9), vec![(512, 933.0)], Some(75.0)),
        ("DeepSeek-V2-Lite", &[], cpu(), on_cpu(185e9), vec![(512, 1_014.0)], Some(70.0)),
        ("Qwen3-Coder-Next", &[], cpu(), on_cpu(185e9), vec![(512, 637.0)], Some(55.0)),
    ];
    all.into_iter()
        .map(|(name, overrides, options, site, prompts, decode)| Measured {
            what: format!("{name}, {:?}, {:?}", options.device, options.residency),
            model: model(name, overrides),
            options,
            site,
            prompts,
            decode,
        })
        .collect()
}

#[test]
fn speeds_are_foretold_within_a_fifth_of_what_was_measured() {
    let mut wrong = Vec::new();
    for Measured { what, model, options, site, prompts, decode } in measured() {
        let plan = plan(&model, &options, &site).unwrap();
        let forecast = Forecast::new(&model, &plan, &site);
        let mut check = |test: String, foretold: f64, measured: f64| {
            let percent = 100.0 * (foretold / measured - 1.0);
            println!("{what}, {test}: {foretold:.0} for {measured:.0} tok/s, {percent:+.0} %");
            if percent.abs() > 20.0 {
                wrong.push(format!("{what}, {test}: {percent:+.0} %"));
            }
        };
        for (tokens, measured) in prompts {
            let time = forecast.prompt(tokens);
            check(format!("prompt of {tokens}"), f64::from(tokens) / time.seconds, measured);
        }
        if let Some(measured) = decode {
            check("decode".into(), 1.0 / forecast.token().seconds, measured);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Nothing is foretold to be faster than bytes, bus and operations allow.
#[test]
fn no_forecast_is_beyond_its_bounds() {
    for Measured { what, model, options, site, .. } in measured() {
        let plan = plan(&model, &options, &site).unwrap();
        let forecast = Forecast::new(&model, &plan, &site);
        let prompts = [64, 512, 2048, 8192, 32_768].map(|tokens| forecast.prompt(tokens));
        for time in prompts.into_iter().chain([forecast.token()]) {
            assert!(time.bound() <= time.seconds, "{what}: {time:?}");
        }
    }
}

/// Features 132 to 136: the formulas of sizes, written out.
#[test]
fn sizes_are_those_of_the_formulas() {
    let of = |name, divisor: Option<u32>| {
        let residency = match divisor {
            None => Residency::Device,
            Some(groups) => Residency::Host {
                prefill: PrefillStrategy::LayerGrouped(groups),
                decode: DecodeStrategy::PureCpu,
            },
        };
        plan(&model(name, &[]), &Options { residency, ..four_bits(GPU) }, &h200()).unwrap()
    };
    let region = |plan: &Plan, name| {
        let found = plan.regions.iter().find(|(region, _)| *region == name);
        found.map(|(_, bytes)| bytes.0).unwrap()
    };
    // Four bits, and a scale of sixteen for 128 weights.
    let expert = |hidden: u64, inter: u64| 3 * hidden * inter / 2 + 3 * hidden * inter / 128 * 2;
    let v2_lite = of("DeepSeek-V2-Lite", None);
    let layer = 64 * expert(2048, 1408);
    // The check values, 286 MB a layer among them, round inner widths differently by a thousandth.
    assert_eq!(layer / 1_000_000, 285);
    assert_eq!(region(&v2_lite, "experts"), 26 * layer);
    let qwen = of("Qwen3-30B-A3B", None);
    assert_eq!(region(&qwen, "experts"), 48 * 128 * expert(2048, 768));
    // Groups of layers need a group's experts and, to bring the next meanwhile, as many again.
    for (groups, layers) in [(2, 13), (3, 9), (26, 1)] {
        let plan = of("DeepSeek-V2-Lite", Some(groups));
        let away = plan.away.as_ref().unwrap();
        assert_eq!(away.prefill.slots_min(26, 64), layers * 64);
        let host =
            plan.host_regions.iter().find(|(name, _)| *name == "experts in host memory").unwrap();
        assert_eq!(host.1.0, 26 * layer, "all of them lie in host memory");
    }
    // Keys and values of BF16: 2 · 4 heads · 128 · 2 bytes · 48 layers a token.
    let tokens = u64::from(qwen.cache.pages) * u64::from(qwen.cache.page);
    let step = region(&qwen, "KV cache") - tokens * 2 * 4 * 128 * 2 * 48;
    assert!(step < 64 << 20, "lists and logits of a step take {}", Bytes(step));
    // Latents: (512 + 64) · 2 bytes · 27 layers.
    let tokens = u64::from(v2_lite.cache.pages) * u64::from(v2_lite.cache.page);
    let step = region(&v2_lite, "KV cache") - tokens * (512 + 64) * 2 * 27;
    assert!(step < 64 << 20, "lists and logits of a step take {}", Bytes(step));
}

#[test]
fn what_fits_stays_on_the_gpu_and_what_does_not_is_chosen_well() {
    let with = |gib: u64, host_read: f64| {
        let mut site = h200();
        site.card.as_mut().unwrap().free = Bytes(gib * GIB);
        site.host.read = host_read;
        let model = model("Qwen3-30B-A3B", &[]);
        plan(&model, &four_bits(GPU), &site).unwrap()
    };
    let all = with(40, 170e9);
    assert!(all.away.is_none());
    assert_eq!(all.context_max, 40_960, "the model's own");
    // Barely enough for the weights: a context of tens of thousands is worth more than the last experts.
    let most = with(18, 170e9);
    let away = most.away.unwrap();
    assert_eq!(
        (away.prefill, away.decode),
        (PrefillStrategy::HcsPrefill, DecodeStrategy::HcsHybrid)
    );
    assert!(away.hot > 48 * 128 / 2 && most.context_max == 32_768);
    // A host whose memory is faster than the GPU's writes answers by itself.
    let mut site = h200();
    let card = site.card.as_mut().unwrap();
    (card.free, card.read) = (Bytes(12 * GIB), 100e9);
    let slow = plan(&model("Qwen3-30B-A3B", &[]), &four_bits(GPU), &site).unwrap();
    assert_eq!(slow.away.unwrap().decode, DecodeStrategy::PureCpu);
    // A host that reads more slowly than the bus brings leaves answers to the GPU.
    assert_eq!(with(10, 10e9).away.unwrap().decode, DecodeStrategy::Lru);
    // A slower CPU leaves shorter prompts to the GPU.
    let threshold = |multiply| {
        let mut site = h200();
        site.card.as_mut().unwrap().free = Bytes(10 * GIB);
        site.host.multiply = multiply;
        plan(&model("Qwen3-30B-A3B", &[]), &four_bits(GPU), &site).unwrap().away.unwrap().threshold
    };
    assert!(threshold(1e12) < threshold(12e12));
    assert!((100..2000).contains(&threshold(12e12)), "{}", threshold(12e12));
}

/// A machine, and what somebody wants of it.
fn draw(random: &mut SplitMix64) -> (usize, Options, Site) {
    let mut below = |n: u64| random.bits() % n;
    let device = if below(5) == 0 { DeviceKind::Cpu } else { GPU };
    let mut options = four_bits(device);
    let bits = [ExpertBits::Int4, ExpertBits::Int4, ExpertBits::Int8, ExpertBits::AsStored];
    options.expert_bits = bits[below(4) as usize];
    let quant = [Quant::Int4, Quant::Int8, Quant::AsStored][below(3) as usize];
    (options.attention, options.lm_head) = (quant, quant);
    options.kv = [None, Some(KvDtype::F8E4M3)][below(2) as usize];
    options.sequences_max = 1 + below(12) as u32;
    options.prefill_chunk = 256 << below(6);
    options.pass_tokens = 1024 << below(6);
    options.context_max = [None, None, Some(512 + below(40_000) as u32)][below(3) as usize];
    options.prompt_rows = [None, Some(1 + below(600) as u32)][below(2) as usize];
    if device == GPU {
        let decode = [
            DecodeStrategy::PureCpu,
            DecodeStrategy::HcsHybrid,
            DecodeStrategy::Compact,
            DecodeStrategy::Lru,
        ][below(4) as usize];
        let prefill = [
            PrefillStrategy::LayerGrouped(2 + below(60) as u32),
            PrefillStrategy::Chunked,
            PrefillStrategy::ActiveOnly,
            PrefillStrategy::HcsPrefill,
        ][below(4) as usize];
        let residencies = [
            Residency::Auto,
            Residency::Auto,
            Residency::Device,
            Residency::Host { prefill, decode },
        ];
        options.residency = residencies[below(4) as usize];
    }
    let simd = ["avx2", "fma", "f16c", "avx512_vnni"];
    let threads = 1 + below(64) as usize;
    let read = 10e9 + below(400) as f64 * 1e9;
    // Memory grows in small steps and large ones.
    let size =
        |below: &mut dyn FnMut(u64) -> u64, most: u64| (1 << (32 + below(most))) + below(GIB);
    let host = host(4 * size(&mut below, 9), threads, read, threads as f64 * 500e9, &simd);
    let free = Bytes(size(&mut below, 7));
    let card = (device == GPU).then(|| Card {
        name: "drawn".into(),
        memory: free,
        free,
        // Slower memory than the host's would make answers slower, the more of them it computes.
        read: read * (2.0 + below(30) as f64),
        multiply: 1e13 + below(60) as f64 * 1e13,
        bus: 4e9 + below(60) as f64 * 1e9,
    });
    (below(MODELS.len() as u64) as usize, options, Site { card, others: vec![], host })
}

#[test]
fn no_plan_takes_more_than_there_is_and_more_memory_is_never_worse() {
    let models = MODELS.map(|name| model(name, &[]));
    let mut random = SplitMix64(7);
    let (mut planned, mut away) = (0, 0);
    for number in 0..500 {
        let (which, options, site) = draw(&mut random);
        let (model, name) = (&models[which], MODELS[which]);
        let what = format!("{number}: {name}, {options:?}, {:?}", site.card);
        let small = plan(model, &options, &site);
        // The same with up to twice the memory, where it is the limit.
        let mut larger = site.clone();
        let more = |bytes: &mut Bytes, random: &mut SplitMix64| bytes.0 += random.bits() % bytes.0;
        match &mut larger.card {
            Some(card) => more(&mut card.free, &mut random),
            None => more(larger.host.machine.memory.available.as_mut().unwrap(), &mut random),
        }
        let large = plan(model, &options, &larger);
        let small = match small {
            Ok(small) => small,
            Err(error) => {
                let sentence = error.to_string();
                assert!(sentence.len() > 30 && !sentence.ends_with('.'), "{what}: {sentence}");
                continue;
            }
        };
        let large = large.unwrap_or_else(|error| panic!("{what}: more memory, and {error}"));
        planned += 1;
        away += u32::from(small.away.is_some());

        let regions: u64 = small.regions.iter().map(|(_, bytes)| bytes.0).sum();
        assert_eq!(regions, small.layout.bytes().0, "{what}");
        assert!(regions <= site.available(&options).0, "{what}");
        let host: u64 = small.host_regions.iter().map(|(_, bytes)| bytes.0).sum();
        assert_eq!(host, small.host.bytes().0, "{what}");
        let available = site.host.machine.available().unwrap().0;
        assert!(small.need.total().0 <= available / 100 * 95 + 100, "{what}");
        assert!(small.context_max <= model.context_max, "{what}");

        assert!(large.context_max >= small.context_max, "{what}: {}", small.context_max);
        let token = |plan: &Plan, site: &Site| Forecast::new(model, plan, site).token().seconds;
        let (before, after) = (token(&small, &site), token(&large, &larger));
        assert!(after <= before * (1.0 + 1e-9), "{what}: {before} s a token, then {after}");
    }
    assert!(
        planned > 200 && away > 70,
        "{planned} plans, {away} of them with experts in host memory"
    );
}

/// Two to four GPUs, unequal ones, that share layers or experts.
#[test]
fn parts_agree_and_none_takes_more_than_its_gpu_has() {
    let models = MODELS.map(|name| model(name, &[]));
    let mut random = SplitMix64(3);
    let (mut spread, mut helped) = (0, 0);
    for number in 0..160 {
        let (which, mut options, mut site) = draw(&mut random);
        let Some(card) = site.card.clone() else { continue };
        let count = 2 + number % 3;
        let other = |_| Card { free: Bytes(card.free.0 / (1 + random.bits() % 3)), ..card.clone() };
        site.others = (1..count).map(other).collect();
        let shared = if number % 4 == 0 { Shared::Experts } else { Shared::Layers };
        options.ranks = Ranks { count: Some(count), shared, ..Ranks::default() };
        let (model, what) = (&models[which], format!("{number}: {}, {options:?}", MODELS[which]));
        let parts = match Plan::parts(model, &Dummy, &options, 2, &site) {
            Ok(parts) => parts,
            Err(error) => {
                let sentence = error.to_string();
                assert!(sentence.len() > 30 && !sentence.ends_with('.'), "{what}: {sentence}");
                continue;
            }
        };
        let mut next = 0;
        for part in &parts {
            assert_eq!((part.layers.start, part.layers.is_empty()), (next, false), "{what}");
            next = part.layers.end;
            let regions: u64 = part.plan.regions.iter().map(|(_, bytes)| bytes.0).sum();
            assert_eq!(regions, part.plan.layout.bytes().0, "{what}");
            assert!(regions <= part.site.available(&options).0, "{what}");
            let same = |plan: &Plan| (plan.context_max, plan.cache.pages, plan.pass_tokens);
            assert_eq!(same(&part.plan), same(&parts[0].plan), "{what}");
        }
        assert_eq!(next, model.layers.len(), "{what}");
        for (rank, arena) in (1..).zip(&parts[0].plan.helpers) {
            assert!(arena.bytes() <= site.of_rank(rank).available(&options), "{what}");
        }
        let available = site.host.machine.available().unwrap().0;
        assert!(need_of(&parts).total().0 <= available / 100 * 95 + 100, "{what}");
        match shared {
            Shared::Layers => assert_eq!(parts.len(), count, "{what}"),
            Shared::Experts => assert_eq!(parts[0].plan.helpers.len(), count - 1, "{what}"),
        }
        match shared {
            Shared::Layers => spread += 1,
            Shared::Experts => helped += 1,
        }
    }
    assert!(spread > 40 && helped > 5, "{spread} plans with layers shared, {helped} with experts");
}

#[test]
fn errors_name_what_would_do() {
    let mut site = h200();
    site.card.as_mut().unwrap().free = Bytes(24 * GIB);
    let check = |options: &Options, words: &str| {
        let error = plan(&model("Qwen3-Coder-Next", &[]), options, &site).map(drop).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    check(
        &Options { residency: Residency::Device, ..four_bits(GPU) },
        "leave --expert-divisor out",
    );
    let capped = Options { device_bytes: Some(Bytes(GIB)), ..four_bits(GPU) };
    check(&capped, "raise --gpu-vram-mb to");
    site.host.machine.memory.available = Some(Bytes(60 * GIB));
    let check = |options: &Options, words: &str| {
        let error = plan(&model("Qwen3-Coder-Next", &[]), options, &site).map(drop).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    let large = Options { expert_bits: ExpertBits::Int8, ..four_bits(GPU) };
    check(&large, "--cpu-expert-bits 4");
}

/// What a tuner tries: everything that fits, the fastest first, each of which is a plan by its name. The
/// planner's own choice is among them.
#[test]
fn candidates_are_plans() {
    for (name, memory) in [("Qwen3-30B-A3B", 8), ("Qwen3-30B-A3B", 100), ("DeepSeek-V3", 40)] {
        let (model, site) = (model(name, &[]), h200());
        let device_bytes = Some(Bytes(memory * GIB));
        let options = Options { device_bytes, ..four_bits(GPU) };
        let act_bytes = options.device.act_bytes();
        let draft = Draft {
            model: &model,
            before: 0,
            stock: &Dummy,
            options: &options,
            act_bytes,
            site: &site,
        };
        let candidates = match draft.candidates(8192) {
            // It does not go into this machine's memory either.
            none if none.is_empty() => {
                assert!(plan(&model, &options, &site).is_err(), "{name}");
                continue;
            }
            candidates => candidates,
        };
        assert!(candidates.is_sorted_by(|a, b| a.prompt >= b.prompt), "{name}");
        for candidate in &candidates {
            let options = Options { residency: candidate.residency, ..options.clone() };
            let plan = plan(&model, &options, &site).unwrap();
            assert!(plan.layout.bytes().0 <= memory * GIB, "{name}: {candidate:?}");
            assert_eq!(plan.context_max, candidate.context_max, "{name}: {candidate:?}");
            let forecast = Forecast::new(&model, &plan, &site);
            let tokens = 8192.min(plan.context_max);
            let rate = f64::from(tokens) / forecast.prompt(tokens).seconds;
            assert!((rate / candidate.prompt - 1.0).abs() < 1e-6, "{name}: {candidate:?}");
        }
        let chosen = plan(&model, &options, &site).unwrap();
        let residency = chosen.away.as_ref().map_or(Residency::Device, |away| Residency::Host {
            prefill: away.prefill,
            decode: away.decode,
        });
        let own = candidates.iter().find(|candidate| candidate.residency == residency);
        assert!(own.is_some(), "{name}: {residency:?} is no candidate");
    }
}

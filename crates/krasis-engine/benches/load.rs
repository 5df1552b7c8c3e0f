//! Building and loading a cache, beside a plain parallel read of the same file in the same run:
//! `cargo bench -p krasis-engine --bench load -- 4`, Qwen3-30B-A3B cut to so many layers and a small
//! vocabulary. Takes 1.6 GB of disk per layer, in a temporary folder.

use krasis_core::{Bytes, Layout, Slot};
use krasis_cpu::{Arena, Team};
use krasis_engine::device::cpu;
use krasis_engine::{CacheUse, Engine, ExpertBits, Options, Quant, Unwatched, build_cache};
use krasis_model::{Ffn, Model, Origin, Source, describe};
use krasis_ops::Memory;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// What is read at a time by the plain read, as by the cache.
const PIECE: usize = 4 << 20;

const RUNS: usize = 9;

fn main() {
    let layers = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(4);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bytes = write_checkpoint(dir.path(), layers);
    println!("checkpoint: {layers} layers, {bytes}");
    let options = Options {
        expert_bits: ExpertBits::Int4,
        attention: Quant::Int4,
        lm_head: Quant::Int4,
        context_max: Some(1024),
        ..Options::default()
    };
    let start = Instant::now();
    let built = build_cache(dir.path(), &options, &Unwatched).unwrap().expect("there is room");
    let (seconds, end) = (start.elapsed().as_secs_f64(), built.file.end());
    let rate = bytes.0 as f64 / seconds / 1e9;
    println!("build: {end} in {seconds:.1} s ({rate:.2} GB/s of checkpoint)");
    println!("       {}", built.build.expect("it was not there"));
    let team = Team::new(None);
    println!("{} threads, GB/s, medians of {RUNS} alternating runs:", team.threads());
    for cold in [true, false] {
        let file = built.file.path();
        let [mut plain, mut fresh, mut loading] = [const { Vec::new() }; 3];
        let mut layout = Layout::new(Arena::ACT_BYTES);
        let all = layout.slot::<u8>(built.file.end().0);
        let mut touched = Arena::new(&layout).unwrap();
        touched.slice_mut(all).fill(1);
        let mut peak = None;
        for _ in 0..RUNS {
            forget(file, cold);
            plain.push(read(file, &mut touched, all, &team));
            forget(file, cold);
            fresh.push(read_fresh(file, &layout, all, &team));
            forget(file, cold);
            let loaded = Engine::load(dir.path(), &options, cpu(&options));
            let took = loaded.unwrap().loading;
            assert!(took.cached.0 > 0, "it was read from the cache");
            loading.push(took.bytes.0 as f64 / took.time.as_secs_f64() / 1e9);
            peak = Some(took.peak);
        }
        let [plain, fresh, loading] = [plain, fresh, loading].map(median);
        let place = if cold { "disk" } else { "file cache" };
        println!(
            "from the {place}: plain read into memory that is there {plain:.2}, into new memory \
             {fresh:.2}, loading {loading:.2}: {:.0} % and {:.0} %",
            100.0 * loading / plain,
            100.0 * loading / fresh
        );
        println!("       {}", peak.expect("some runs"));
    }
    let fresh = Options { cache: CacheUse::Off, ..options };
    let loaded = Engine::load(dir.path(), &fresh, cpu(&fresh));
    let took = loaded.unwrap().loading;
    println!("without a cache: {:.1} s; {}", took.time.as_secs_f64(), took.peak);
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Drops a file from the file cache, or brings it there.
fn forget(file: &Path, cold: bool) {
    let file = File::open(file).unwrap();
    if cold {
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    } else {
        std::io::copy(&mut &file, &mut std::io::sink()).unwrap();
    }
}

/// GB/s at which a team reads a file the plain way into memory that holds all of it.
fn read(file: &Path, arena: &mut Arena, all: Slot<u8>, team: &Team) -> f64 {
    let file = File::open(file).unwrap();
    let start = Instant::now();
    arena.receive(&[all], PIECE, team, |_, first, bytes| {
        file.read_exact_at(bytes, first).unwrap();
    });
    all.len as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// The same with the time that it takes to get the memory.
fn read_fresh(file: &Path, layout: &Layout, all: Slot<u8>, team: &Team) -> f64 {
    let start = Instant::now();
    read(file, &mut Arena::new(layout).unwrap(), all, team);
    all.len as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Random BF16 weights in the shapes of a config, one behind the other.
fn write_checkpoint(dir: &Path, layers: u32) -> Bytes {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/configs");
    let config = std::fs::read(config.join("Qwen3-30B-A3B.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["num_hidden_layers"] = json!(layers);
    config["vocab_size"] = json!(256);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape) in tensors(&describe(&config, |_| true).unwrap()) {
        let bytes = 2 * shape.iter().product::<u64>();
        let entry = json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]});
        if header.insert(name, entry).is_none() {
            end += bytes;
        }
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(dir.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut state = 1u64;
    // Numbers of about a fiftieth: random low bits under a fixed exponent and a random sign.
    let mut number = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (0x3c80 | (state >> 40) as u16 & 0x807f).to_le_bytes()
    };
    let piece: Vec<u8> = (0..PIECE / 2 - 1021).flat_map(|_| number()).collect();
    let mut rest = end;
    while rest > 0 {
        let bytes = rest.min(piece.len() as u64);
        file.write_all(&piece[..bytes as usize]).unwrap();
        rest -= bytes;
    }
    file.into_inner().unwrap().sync_all().unwrap();
    Bytes(end)
}

/// Names and shapes of all tensors that a model is made of.
fn tensors(model: &Model<Source>) -> Vec<(String, Vec<u64>)> {
    let mut all = Vec::new();
    let mut see = |source: &Source| {
        if let Origin::Rows(runs) = &source.origin {
            for run in runs {
                let mut shape = vec![u64::from(run.of), u64::from(source.cols)];
                if source.rows == 1 {
                    shape.truncate(1);
                }
                all.push((run.tensor.clone(), shape));
            }
        }
        Ok::<_, std::convert::Infallible>(())
    };
    let Ok(_) = model.try_map(&mut see);
    let hidden = u64::from(model.hidden);
    for layer in &model.layers {
        let Ffn::Moe(moe) = &layer.ffn else { continue };
        let inter = u64::from(moe.experts.inter);
        for expert in 0..moe.experts.count {
            let shapes = [[inter, hidden], [inter, hidden], [hidden, inter]];
            for (name, shape) in ["gate_proj", "up_proj", "down_proj"].iter().zip(shapes) {
                let name = format!("{}.{expert}.{name}.weight", moe.experts.prefix);
                all.push((name, shape.to_vec()));
            }
        }
    }
    all
}

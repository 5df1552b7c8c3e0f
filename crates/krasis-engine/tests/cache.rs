//! What comes out of the cache is what would be quantised now, bit for bit, whatever happened to the
//! file, its folder or its checkpoint.

mod common;

use common::{FIXTURES, copy};
use krasis_core::Weight;
use krasis_engine::device::cpu;
use krasis_engine::{
    CacheUse, Engine, ExpertBits, Options, Phase, Quant, Unwatched, Watch, build_cache,
};
use krasis_ops::Memory;
use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

fn four_bits() -> Options {
    let options = common::defaults();
    let context_max = Some(64);
    Options {
        expert_bits: ExpertBits::Int4,
        group: 32,
        cache: CacheUse::Auto,
        context_max,
        ..options
    }
}

fn eight_bits() -> Options {
    Options {
        expert_bits: ExpertBits::Int8,
        attention: Quant::Int8,
        shared_expert: Quant::Int4,
        dense_mlp: Quant::Int4,
        lm_head: Quant::Int8,
        ..four_bits()
    }
}

/// All weights as they lie in memory, and how many of the bytes came from the cache.
fn weights(dir: &Path, options: &Options) -> (Vec<Vec<u8>>, u64) {
    let loaded = Engine::load(dir, options, cpu(options)).unwrap();
    let (cached, mut ranks) = (loaded.loading.cached.0, loaded.engine.runner.ranks);
    let rank = &mut ranks[0];
    let mut all: Vec<Weight> = Vec::new();
    let Ok(_) = rank.network.model.try_map(|weight| {
        all.push(*weight);
        Ok::<_, Infallible>(())
    });
    all.extend(rank.experts.banks().iter().flatten().flat_map(|bank| [bank.gate_up, bank.down]));
    let slots = all.iter().flat_map(|weight| [weight.data, weight.scales.bytes()]);
    (slots.map(|slot| rank.device.download(slot)).collect(), cached)
}

fn fresh(dir: &Path, options: &Options) -> Vec<Vec<u8>> {
    weights(dir, &Options { cache: CacheUse::Off, ..options.clone() }).0
}

/// The only cache in a folder.
fn file(folder: &Path) -> PathBuf {
    let files = krasis_checkpoint::cache::list(folder);
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

fn folder(model: &Path) -> PathBuf {
    model.join(".krasis_cache")
}

#[test]
fn cached_is_fresh_bit_for_bit() {
    for fixture in FIXTURES {
        for options in [four_bits(), eight_bits()] {
            let model = copy(fixture);
            let wanted = fresh(model.path(), &options);
            assert!(!folder(model.path()).exists(), "{fixture}: nothing is kept unless asked");
            for start in ["first", "second"] {
                let (got, cached) = weights(model.path(), &options);
                assert!(got == wanted, "{fixture}, {start} start");
                assert!(cached > 0, "{fixture}, {start} start");
            }
            let built = build_cache(model.path(), &options, &Unwatched).unwrap().unwrap();
            assert!(built.build.is_none(), "{fixture}: it was there");
            built.file.verify(1, |_| {}).unwrap();
        }
    }
}

#[test]
fn nothing_is_kept_of_what_is_not_quantised() {
    for fixture in ["qwen3_moe", "kimi_k25"] {
        let model = copy(fixture);
        let options = Options { expert_bits: ExpertBits::AsStored, ..four_bits() };
        assert_eq!(weights(model.path(), &options).1, 0);
        assert!(!folder(model.path()).exists());
        let said = build_cache(model.path(), &options, &Unwatched).err().unwrap().to_string();
        assert!(said.contains("--cpu-expert-bits 4"), "{said}");
    }
}

/// Formats have files of their own, and a forced start replaces one of them.
#[test]
fn each_format_has_its_file() {
    let model = copy("qwen3_moe");
    weights(model.path(), &four_bits());
    weights(model.path(), &eight_bits());
    let files = krasis_checkpoint::cache::list(&folder(model.path()));
    let before: Vec<_> =
        files.iter().map(|file| file.metadata().unwrap().modified().unwrap()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    let forced = Options { cache: CacheUse::Rebuild, ..four_bits() };
    weights(model.path(), &forced);
    let after = files.iter().map(|file| file.metadata().unwrap().modified().unwrap());
    let replaced: Vec<bool> = after.zip(before).map(|(after, before)| after != before).collect();
    assert_eq!(replaced, [true, false], "{files:?}");
}

/// Damages the cache of a model, or puts another there; the next start mends it.
#[track_caller]
fn check(damage: impl Fn(&Path)) {
    let (model, options) = (copy("deepseek_v3"), four_bits());
    let wanted = weights(model.path(), &options).0;
    let path = file(&folder(model.path()));
    let sound = fs::read(&path).unwrap();
    damage(&path);
    let (got, cached) = weights(model.path(), &options);
    assert!(got == wanted && cached > 0);
    assert!(fs::read(&path).unwrap() == sound, "the cache is as it was");
}

#[test]
fn what_is_damaged_is_built_again() {
    let flip = |at: fn(u64) -> u64| {
        move |path: &Path| {
            let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
            let (at, mut byte) = (at(file.metadata().unwrap().len()), [0]);
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 16], at).unwrap();
        }
    };
    check(flip(|_| 9));
    check(flip(|_| 500));
    check(flip(|end| end - 1));
    check(flip(|end| end / 2 / 4096 * 4096 + 1));
    check(|path| fs::write(path, "").unwrap());
    check(|path| fs::write(path, "rubbish").unwrap());
    check(|path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
}

#[test]
fn the_cache_of_another_model_is_not_taken() {
    check(|path| {
        let other = copy("deepseek_v3");
        let weights_file = other.path().join("model.safetensors");
        let bytes = fs::read(&weights_file).unwrap();
        // Same names, shapes and length; another fine-tune.
        let file = OpenOptions::new().write(true).open(&weights_file).unwrap();
        file.write_all_at(&[0x3c; 8], bytes.len() as u64 - 8).unwrap();
        build_cache(other.path(), &four_bits(), &Unwatched).unwrap();
        fs::copy(self::file(&folder(other.path())), path).unwrap();
    });
}

#[test]
fn a_folder_that_cannot_be_written_has_its_cache_elsewhere() {
    let (model, home) = (copy("qwen3_moe"), tempfile::tempdir().unwrap());
    // Where tests run as root, permissions refuse nothing; a file refuses to be a folder.
    fs::write(folder(model.path()), "").unwrap();
    let home = home.path().join("not/there/yet");
    let options = Options { cache_home: Some(home.clone()), ..four_bits() };
    let wanted = fresh(model.path(), &options);
    for _ in 0..2 {
        let (got, cached) = weights(model.path(), &options);
        assert!(got == wanted && cached > 0);
    }
    let folders = krasis_engine::cache_folders(model.path(), &options);
    assert_eq!(folders.len(), 1, "{folders:?}");
    assert!(file(&folders[0]).starts_with(&home));
    // Nowhere at all: as without a cache.
    let options = Options { cache_home: None, ..options };
    assert!(weights(model.path(), &options) == (wanted, 0));
}

struct Seen(Mutex<Vec<(Phase, u64, u64)>>);

impl Watch for Seen {
    fn progress(&self, phase: Phase, done: krasis_core::Bytes, of: krasis_core::Bytes) {
        self.0.lock().unwrap().push((phase, done.0, of.0));
    }
}

#[test]
fn progress_rises_and_ends() {
    let (model, seen) = (copy("qwen3_next"), Seen(Mutex::default()));
    Engine::load_watched(model.path(), &four_bits(), cpu(&four_bits()), &seen).unwrap();
    let seen = seen.0.into_inner().unwrap();
    for phase in [Phase::Building, Phase::Loading] {
        let steps: Vec<_> = seen.iter().filter(|step| step.0 == phase).collect();
        assert!(steps.len() > 3 && steps.is_sorted_by_key(|step| step.1), "{steps:?}");
        let (_, done, of) = steps[steps.len() - 1];
        assert_eq!((steps[0].1, done), (0, of));
    }
}

/// Bytes that change under the same ids would be taken for the right ones from old caches.
#[test]
fn bytes_belong_to_their_ids() {
    let model = copy("deepseek_v2");
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for options in [four_bits(), eight_bits()] {
        let file = build_cache(model.path(), &options, &Unwatched).unwrap().unwrap().file;
        for (index, section) in file.contents().sections.iter().enumerate() {
            let mut bytes = vec![0; section.bytes as usize];
            file.read(index, 0, &mut bytes).unwrap();
            // FNV-1a.
            hash = bytes
                .iter()
                .fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        }
    }
    let ids = [krasis_core::quant::LAYOUT, krasis_checkpoint::quantize::QUANTISER];
    assert_eq!(
        (hash, ids),
        (6_501_549_943_490_204_734, ["layout 1", "quantiser 1"]),
        "weights became other bytes: count up LAYOUT or QUANTISER and put both here"
    );
}

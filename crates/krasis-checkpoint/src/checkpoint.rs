//! A model folder: its configuration, and its tensors by name.

use crate::error::CheckpointError;
use crate::json::{self, Unique};
use crate::shard::Shard;
use crate::tensor::Tensor;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;
use twox_hash::XxHash3_64;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Places of a weight file that its fingerprint looks at, and bytes of each: a thousandth of a
/// second per file where nothing is cached.
const SAMPLES: usize = 16;
const SAMPLE: usize = 4096;

/// A model folder as the hub lays it out. Shared between threads freely; shards are mapped when
/// their first tensor is asked for, so parts of a model cost only the shards they lie in.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    generation_config: Option<Value>,
    /// What lists the tensors: the index, or the only weight file.
    listing: PathBuf,
    /// Tensor to position in `shards`.
    tensors: BTreeMap<String, usize>,
    shards: Vec<LazyShard>,
}

#[derive(Debug)]
struct LazyShard {
    file: PathBuf,
    opened: OnceLock<Shard>,
}

impl Checkpoint {
    /// Reads the configuration and the list of tensors. Of the weights, only a file that is alone
    /// is opened; of an index, every entry is checked to lead to a file that exists.
    pub fn open(dir: &Path) -> Result<Checkpoint, CheckpointError> {
        if !dir.is_dir() {
            return Err(CheckpointError::NotAFolder { dir: dir.into() });
        }
        let config =
            object(&dir.join("config.json"))?.ok_or_else(|| CheckpointError::MissingFile {
                file: dir.join("config.json"),
                remedy: "pass the folder of a model from the hub, downloaded with `hf download`",
            })?;
        let generation_config = object(&dir.join("generation_config.json"))?;
        let (listing, tensors, shards) = match weights(dir)? {
            Weights::Single(file) => single(file)?,
            Weights::Sharded(index) => sharded(dir, index)?,
        };
        Ok(Checkpoint { dir: dir.into(), config, generation_config, listing, tensors, shards })
    }

    /// The model folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json`, an object.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `generation_config.json`, an object, if the model has one.
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// Whether the checkpoint names this tensor. Opens nothing.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Names of all tensors, sorted. Opens nothing.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of this name; maps and checks its shard if it is the first one from there.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, CheckpointError> {
        let Some((name, &shard)) = self.tensors.get_key_value(name) else {
            let (tensor, file) = (name.into(), self.listing.clone());
            return Err(CheckpointError::MissingTensor { tensor, file });
        };
        let shard = &self.shards[shard];
        shard.open()?.tensor(name)?.ok_or_else(|| CheckpointError::NotInShard {
            tensor: name.clone(),
            file: shard.file.clone(),
            index: self.listing.clone(),
        })
    }

    /// Gives the memory behind a tensor back, for whoever has read it and moves on: a checkpoint's
    /// pages would otherwise stay with the process until memory is short.
    pub fn release(&self, name: &str) {
        let shard = self.tensors.get(name).map(|&shard| &self.shards[shard]);
        if let Some(shard) = shard.and_then(|shard| shard.opened.get()) {
            shard.release(name);
        }
    }

    /// Says which model this is: a hash of config, index, and of each weight file its name, length,
    /// time of change, header, and a few of its pages. Neither times alone are believed, which tools
    /// set back, nor names and shapes, which all fine-tunes of a model share.
    pub fn fingerprint(&self) -> Result<u64, CheckpointError> {
        let mut hash = XxHash3_64::new();
        let mut small = |file: &Path| {
            let bytes = std::fs::read(file)
                .map_err(|cause| CheckpointError::Read { file: file.into(), cause })?;
            hash.write(&(bytes.len() as u64).to_le_bytes());
            hash.write(&bytes);
            Ok::<_, CheckpointError>(())
        };
        small(&self.dir.join("config.json"))?;
        if self.listing.ends_with(INDEX) {
            small(&self.listing)?;
        }
        for shard in &self.shards {
            let cannot = |cause| CheckpointError::Read { file: shard.file.clone(), cause };
            let changed = shard.file.metadata().and_then(|about| about.modified());
            let changed = changed.map_err(cannot)?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let name = shard.file.file_name().unwrap_or_default().as_encoded_bytes();
            let opened = shard.open()?;
            let (header, data) = opened.bytes().split_at(opened.data());
            for number in [name.len(), header.len(), data.len(), changed.as_secs() as usize] {
                hash.write(&(number as u64).to_le_bytes());
            }
            hash.write(name);
            hash.write(header);
            for sample in 0..SAMPLES {
                let first = data.len().saturating_sub(SAMPLE) / (SAMPLES - 1) * sample;
                hash.write(&data[first..data.len().min(first + SAMPLE)]);
            }
        }
        Ok(hash.finish())
    }

    /// The largest of its weight files.
    pub fn largest_file(&self) -> Option<&Path> {
        let bytes = |file: &&Path| file.metadata().map_or(0, |about| about.len());
        self.shards.iter().map(|shard| shard.file.as_path()).max_by_key(bytes)
    }

    /// How many weight files have been mapped so far.
    pub fn shards_opened(&self) -> usize {
        self.shards.iter().filter(|shard| shard.opened.get().is_some()).count()
    }
}

impl LazyShard {
    /// Two threads that come first together both open the file, and one of the mappings is kept.
    fn open(&self) -> Result<&Shard, CheckpointError> {
        if let Some(shard) = self.opened.get() {
            return Ok(shard);
        }
        let shard = Shard::open(&self.file)?;
        Ok(self.opened.get_or_init(|| shard))
    }
}

type Listing = (PathBuf, BTreeMap<String, usize>, Vec<LazyShard>);

fn single(file: PathBuf) -> Result<Listing, CheckpointError> {
    let shard = Shard::open(&file)?;
    let tensors = shard.names().map(|name| (name, 0)).collect();
    let shards = vec![LazyShard { file: file.clone(), opened: OnceLock::from(shard) }];
    Ok((file, tensors, shards))
}

#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

fn sharded(dir: &Path, index: PathBuf) -> Result<Listing, CheckpointError> {
    let Index { weight_map: Unique(weight_map) } = json::read(&index)?;
    let mut shards = Vec::new();
    let mut tensors = BTreeMap::new();
    let mut numbers = HashMap::new();
    for (tensor, file) in weight_map {
        let number = match numbers.get(&file) {
            Some(&number) => number,
            None => {
                if let Err(problem) = check_entry(dir, &file) {
                    return Err(CheckpointError::IndexEntry { index, tensor, file, problem });
                }
                shards.push(LazyShard { file: dir.join(&file), opened: OnceLock::new() });
                numbers.insert(file, shards.len() - 1);
                shards.len() - 1
            }
        };
        tensors.insert(tensor, number);
    }
    Ok((index, tensors, shards))
}

/// An index is data from somewhere else and must not make us read files outside of the folder.
/// Links inside the folder may lead out: that is how the hub's own cache is built.
fn check_entry(dir: &Path, file: &str) -> Result<(), &'static str> {
    let inside = |part| matches!(part, Component::Normal(_));
    if file.is_empty() || file.contains('\0') || !Path::new(file).components().all(inside) {
        return Err("is not the name of a file in this folder; do not use this checkpoint");
    }
    if !dir.join(file).is_file() {
        return Err(
            "is missing; download the rest of the checkpoint, for example with `hf download`",
        );
    }
    Ok(())
}

/// A JSON file that must be an object if it exists.
fn object(file: &Path) -> Result<Option<Value>, CheckpointError> {
    match json::read(file) {
        Err(CheckpointError::Read { cause, .. })
            if cause.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        other => other.map(|fields| Some(Value::Object(fields))),
    }
}

enum Weights {
    Single(PathBuf),
    Sharded(PathBuf),
}

/// The name decides, in the order that transformers looks: the single file, the index, and last any
/// safetensors file if it is the only one and not a part of several.
fn weights(dir: &Path) -> Result<Weights, CheckpointError> {
    if exists(&dir.join(SINGLE)) {
        return Ok(Weights::Single(dir.join(SINGLE)));
    }
    if exists(&dir.join(INDEX)) {
        return Ok(Weights::Sharded(dir.join(INDEX)));
    }
    let files = files(dir)?;
    let with = |endings: &[&str]| {
        files
            .iter()
            .filter(|name| endings.iter().any(|end| name.ends_with(end)))
            .collect::<Vec<_>>()
    };
    match with(&[".safetensors"]).as_slice() {
        [name] if !is_part_of_several(name) => return Ok(Weights::Single(dir.join(name))),
        [] => {}
        [first, ..] => {
            let (dir, first) = (dir.into(), first.to_string());
            return Err(CheckpointError::MissingIndex { dir, first });
        }
    }
    let other = |name: &String, what, remedy| {
        Err(CheckpointError::OtherFormat { file: dir.join(name), what, remedy })
    };
    if let Some(name) = with(&[".bin", ".pt", ".pth", ".ckpt"]).first() {
        return other(
            name,
            "a pickle, and loading a pickle runs the code in it",
            "use a checkpoint in safetensors format, or convert this one where you trust it",
        );
    }
    if let Some(name) = with(&[".gguf"]).first() {
        return other(name, "a GGUF file", "use the model's safetensors checkpoint");
    }
    Err(CheckpointError::MissingFile {
        file: dir.join(SINGLE),
        remedy: "the folder has no *.safetensors file either; download the model's weights, for example with `hf download`",
    })
}

/// Also true of a broken link, so that the message names the file and not the next best one.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn files(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let cannot = |cause| CheckpointError::Read { file: dir.into(), cause };
    let mut names = Vec::new();
    for entry in dir.read_dir().map_err(cannot)? {
        if let Ok(name) = entry.map_err(cannot)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a name ends like `-00001-of-00002.safetensors`.
fn is_part_of_several(name: &str) -> bool {
    let Some((start, total)) = name.trim_end_matches(".safetensors").rsplit_once("-of-") else {
        return false;
    };
    let part = start.rsplit('-').next().and_then(|part| part.parse::<u32>().ok());
    part.is_some() && total.parse::<u32>().is_ok_and(|total| total > 1)
}

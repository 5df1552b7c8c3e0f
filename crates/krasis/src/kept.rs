//! `auto_optimise.json`: what was measured of a model on this machine, and how often its experts were asked
//! for. It lies with the cache of its weights.
//!
//! The file is replaced as a whole by whoever holds its lock, so it is complete whenever it is read, and of
//! two processes none loses what the other has written. Nothing in it is believed: what cannot be read is as
//! if it were not there, with a sentence, and what is read still has to fit when it is planned for.

use crate::target::Target;
use krasis_checkpoint::cache::{Lock, Taken};
use krasis_engine::{CacheUse, Options};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = "auto_optimise.json";

/// Changes with the meaning of the fields.
const FORMAT: u64 = 1;

/// How long a writer waits for another one, which takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// More than any model's heat takes.
const BYTES_MAX: u64 = 64 << 20;

/// What is in the file, or why it cannot be read.
type Read = Result<Map<String, Value>, String>;

/// What is kept, in one of several places.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// In the order in which they are tried.
    files: Vec<PathBuf>,
}

impl Kept {
    /// Of a model with this fingerprint; nothing is kept of it if the user wants that.
    pub fn of(target: &Target, fingerprint: u64, options: &Options) -> Kept {
        match options.cache {
            CacheUse::Off => Kept::default(),
            _ => {
                let places = target.places(fingerprint, options);
                Kept { files: places.into_iter().map(|place| place.join(NAME)).collect() }
            }
        }
    }

    /// Where these folders hold it.
    pub fn within(folders: &[PathBuf]) -> Kept {
        Kept { files: folders.iter().map(|folder| folder.join(NAME)).collect() }
    }

    /// In a file that was named.
    pub fn at(file: &Path) -> Kept {
        Kept { files: vec![file.to_owned()] }
    }

    /// All that is there, each with its file: its fields, or why it cannot be read.
    pub fn read(&self) -> Vec<(&Path, Read)> {
        let there = |file: &&PathBuf| file.exists();
        self.files.iter().filter(there).map(|file| (&**file, read(file))).collect()
    }

    /// Changes what is there, or writes the first; the file, or why there is none.
    pub fn change(&self, change: impl Fn(&mut Map<String, Value>)) -> Result<PathBuf, String> {
        let mut why = "nothing is to be kept (--no-cache)".to_owned();
        for file in &self.files {
            match replace(file, &change) {
                Ok(()) => return Ok(file.clone()),
                Err(error) => why = format!("{}: {error}", file.display()),
            }
        }
        Err(why)
    }
}

fn read(file: &Path) -> Read {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > BYTES_MAX {
        return Err(format!("it has {length} bytes, and was not written by this program"));
    }
    let text = std::fs::read(file).map_err(|error| error.to_string())?;
    let value = serde_json::from_slice(&text).map_err(|error| format!("it is damaged: {error}"))?;
    match value {
        Value::Object(fields) if fields.get("format") == Some(&json!(FORMAT)) => Ok(fields),
        Value::Object(fields) if fields.contains_key("format") => {
            Err("it was written by another version".into())
        }
        _ => Err("it is damaged: there is no format in it".into()),
    }
}

fn replace(file: &Path, change: impl Fn(&mut Map<String, Value>)) -> Result<(), String> {
    let sentence = |error: std::io::Error| error.to_string();
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.map_or(Ok(()), std::fs::create_dir_all).map_err(sentence)?;
    let _lock = lock(file)?;
    // What cannot be read is replaced; whoever read it before has said so.
    let mut fields = read(file).unwrap_or_default();
    fields.insert("format".into(), json!(FORMAT));
    change(&mut fields);
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let write = || -> std::io::Result<()> {
        let mut out = File::create(&part)?;
        out.write_all(format!("{}\n", Value::Object(fields)).as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&part, file)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&part))).map_err(sentence)
}

fn lock(file: &Path) -> Result<Lock, String> {
    let mut waited = Duration::ZERO;
    loop {
        match Lock::take(file).map_err(|error| error.to_string())? {
            Taken::Ours(lock) => return Ok(lock),
            Taken::Theirs { .. } if waited < PATIENCE => {
                std::thread::sleep(POLL);
                waited += POLL;
            }
            Taken::Theirs { process } => {
                let who = process.map_or("another process".into(), |id| format!("process {id}"));
                return Err(format!("{who} is writing it: {}", ErrorKind::ResourceBusy));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(fields: &Map<String, Value>) -> u64 {
        fields.get("count").and_then(Value::as_u64).unwrap_or(0)
    }

    #[test]
    fn writers_lose_nothing_and_readers_see_whole_files() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::at(&folder.path().join("deep/kept.json"));
        let filler = "x".repeat(100_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let more = |fields: &mut Map<String, Value>| {
                            let count = count(fields) + 1;
                            fields.insert("count".into(), count.into());
                            fields.insert("filler".into(), filler.clone().into());
                        };
                        kept.change(more).unwrap();
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..200 {
                    kept.read().into_iter().for_each(|(_, read)| drop(read.unwrap()));
                }
            });
        });
        assert_eq!(count(kept.read()[0].1.as_ref().unwrap()), 100);
    }

    #[test]
    fn what_cannot_be_read_is_told_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kept.json");
        let kept = Kept::at(&file);
        assert_eq!(kept.read().len(), 0);
        for (text, words) in [
            ("", "damaged"),
            ("{\"format\": 1, \"tuned\": [", "damaged"),
            ("[]", "no format"),
            ("{\"format\": 2}", "another version"),
            ("\u{0}\u{1}", "damaged"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = kept.read().remove(0).1.unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
            kept.change(|fields| drop(fields.insert("count".into(), 7.into()))).unwrap();
            assert_eq!(count(kept.read()[0].1.as_ref().unwrap()), 7);
        }
        // A place that cannot be written gives way to the next.
        let blocked = Kept { files: vec![file.join("below a file"), folder.path().join("other")] };
        assert_eq!(blocked.change(|_| {}).unwrap(), folder.path().join("other"));
        assert!(Kept::default().change(|_| {}).unwrap_err().contains("--no-cache"));
    }
}

//! API keys: read from files and variables, compared in constant time, replaced while serving.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use subtle::{Choice, ConstantTimeEq};

/// Longer ones are refused when they are read.
const KEY_BYTES_MAX: usize = 256;

/// A key in a place of fixed size: comparing takes the same time whatever it holds.
#[derive(Clone, Copy)]
struct Key {
    bytes: [u8; KEY_BYTES_MAX],
    length: u64,
}

/// The keys that open the server. Cannot be printed: keys belong into no log.
pub struct Keys(RwLock<Arc<Vec<Key>>>);

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the keys in {}: {source}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is no key where keys are expected: the user believes that there is one.
    #[error("{place} holds no key: write one into each line, or leave it out to serve without")]
    Empty {
        /// Where.
        place: String,
    },
    /// Not something that a header could carry.
    #[error(
        "line {line} of {place} is no key: a key is 1 to {KEY_BYTES_MAX} printable ASCII \
         characters without spaces"
    )]
    Malformed {
        /// Where.
        place: String,
        /// Counted from 1.
        line: usize,
    },
}

impl Keys {
    /// No key: everybody may come in.
    pub fn none() -> Keys {
        Keys(RwLock::default())
    }

    /// Whether a key is asked for.
    pub fn wanted(&self) -> bool {
        !self.now().is_empty()
    }

    /// Reads keys, one a line, from a file and from the text of a variable; either may be absent.
    /// Empty lines and those that begin with `#` are skipped.
    pub fn read(file: Option<&Path>, variable: Option<&str>) -> Result<Keys, KeyError> {
        let keys = Keys::none();
        keys.reload(file, variable)?;
        Ok(keys)
    }

    /// Reads them again. If that fails, those from before stay.
    pub fn reload(&self, file: Option<&Path>, variable: Option<&str>) -> Result<(), KeyError> {
        let mut keys = Vec::new();
        if let Some(file) = file {
            let text = std::fs::read_to_string(file)
                .map_err(|source| KeyError::Unreadable { file: file.to_owned(), source })?;
            keys.extend(parse(&file.display().to_string(), &text)?);
        }
        if let Some(text) = variable {
            keys.extend(parse("KRASIS_API_KEY", text)?);
        }
        *self.0.write().expect("nothing panics while it is held") = Arc::new(keys);
        Ok(())
    }

    /// Whether one of the keys is this one. Takes as long for a wrong key as for a right one: all
    /// keys are compared to their last byte.
    pub fn open(&self, given: &[u8]) -> bool {
        let Some(given) = Key::new(given) else { return false };
        let found = self.now().iter().fold(Choice::from(0), |found, key| {
            found | (key.bytes.ct_eq(&given.bytes) & key.length.ct_eq(&given.length))
        });
        found.into()
    }

    fn now(&self) -> Arc<Vec<Key>> {
        self.0.read().expect("nothing panics while it is held").clone()
    }
}

impl Key {
    fn new(text: &[u8]) -> Option<Key> {
        let mut bytes = [0; KEY_BYTES_MAX];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(Key { bytes, length: text.len() as u64 })
    }
}

fn parse(place: &str, text: &str) -> Result<Vec<Key>, KeyError> {
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = Key::new(line.as_bytes()).filter(|_| line.bytes().all(|b| b.is_ascii_graphic()));
        let malformed = || KeyError::Malformed { place: place.to_owned(), line: index + 1 };
        keys.push(key.ok_or_else(malformed)?);
    }
    if keys.is_empty() {
        return Err(KeyError::Empty { place: place.to_owned() });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_key() {
        let keys = Keys::read(None, Some("# old\r\nabc\n\n  d#e  \n")).unwrap();
        for (key, opens) in
            [("abc", true), ("d#e", true), ("ab", false), ("abc\0", false), ("", false)]
        {
            assert_eq!(keys.open(key.as_bytes()), opens, "{key:?}");
        }
        assert!(!keys.open(&[b'x'; KEY_BYTES_MAX + 1]));
        assert!(keys.wanted() && !Keys::none().wanted() && !Keys::none().open(b""));
    }

    #[test]
    fn what_is_no_key_is_refused_without_saying_it() {
        for (text, sentence) in [
            ("", "holds no key"),
            ("# secret", "holds no key"),
            ("ok\nmy secret", "line 2"),
            ("schlüssel-secret", "line 1"),
        ] {
            let message = Keys::read(None, Some(text)).err().unwrap().to_string();
            assert!(message.contains(sentence) && !message.contains("secret"), "{message}");
        }
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        assert!(Keys::read(None, Some(&long)).is_err());
        assert!(Keys::read(None, Some(&long[1..])).unwrap().open(&long.as_bytes()[1..]));
        assert!(Keys::read(Some(Path::new("/nowhere/keys")), None).is_err());
    }

    #[test]
    fn keys_are_replaced_as_a_whole_or_not_at_all() {
        let keys = Keys::read(None, Some("old")).unwrap();
        assert!(keys.reload(Some(Path::new("/nowhere/keys")), Some("new")).is_err());
        assert!(keys.open(b"old") && !keys.open(b"new"));
        keys.reload(None, Some("new")).unwrap();
        assert!(keys.open(b"new") && !keys.open(b"old"));
    }
}

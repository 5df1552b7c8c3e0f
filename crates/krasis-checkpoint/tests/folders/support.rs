//! Model folders in temporary places.

use krasis_checkpoint::{Checkpoint, CheckpointError};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder that is deleted at the end of the test.
pub struct Folder(TempDir);

impl Folder {
    /// With an empty object as config.json.
    pub fn new() -> Folder {
        Folder(TempDir::new().expect("a temporary folder")).with("config.json", "{}")
    }

    /// Adds or replaces a file.
    pub fn with(self, name: &str, content: impl AsRef<[u8]>) -> Folder {
        fs::write(self.path(name), content).expect("a file in a temporary folder");
        self
    }

    /// Deletes a file.
    pub fn without(self, name: &str) -> Folder {
        fs::remove_file(self.path(name)).expect("the file is there");
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    pub fn open(&self) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(self.dir())
    }
}

/// A tensor for [`safetensors`].
pub struct Made(pub &'static str, pub safetensors::Dtype, pub Vec<usize>, pub Vec<u8>);

/// The bytes of a safetensors file.
pub fn safetensors(tensors: &[Made]) -> Vec<u8> {
    let views = tensors.iter().map(|Made(name, dtype, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
        (*name, view.expect("shape and bytes agree"))
    });
    safetensors::serialize(views, None).expect("a valid file")
}

/// Little-endian f32.
pub fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

//! What can be wrong with a checkpoint.

use std::path::PathBuf;

/// Why a checkpoint cannot be used. Messages are whole sentences, so causes are part of them and
/// not reported again through `source`. Names that come from files are printed quoted and escaped.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The path leads to something else, or nowhere.
    #[error(
        "{dir} is not a folder; pass the folder that holds config.json and the *.safetensors files"
    )]
    NotAFolder {
        /// The path as given.
        dir: PathBuf,
    },
    /// A file that every checkpoint has.
    #[error("{file} is missing; {remedy}")]
    MissingFile {
        /// Where it should be.
        file: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// The operating system said no.
    #[error("{file} cannot be read: {cause}; check that it is a plain file with read permission")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// The repository was cloned without its large files.
    #[error(
        "{file} is a git-LFS pointer and not the file itself; run `git lfs pull` in its folder, or fetch the model with `hf download`"
    )]
    LfsPointer {
        /// The pointer.
        file: PathBuf,
    },
    /// Weights in a format that is not read.
    #[error("{file} is {what}; {remedy}")]
    OtherFormat {
        /// One of the weight files.
        file: PathBuf,
        /// What kind of file it is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Several weight files and nothing that says what is in which.
    #[error(
        "{dir} has {first:?} but no model.safetensors.index.json to say which tensor lies where; download the index and the other shards, for example with `hf download`"
    )]
    MissingIndex {
        /// The model folder.
        dir: PathBuf,
        /// Name of one of the weight files.
        first: String,
    },
    /// A JSON file that does not parse, or not into what it should hold.
    #[error("{file} cannot be understood: {problem}; download it again")]
    Json {
        /// The file.
        file: PathBuf,
        /// What is wrong, with line and column.
        problem: String,
    },
    /// An index entry that leads nowhere, or where it should not.
    #[error("{index}: weight_map puts {tensor:?} into {file:?}, which {problem}")]
    IndexEntry {
        /// The index.
        index: PathBuf,
        /// The entry's key.
        tensor: String,
        /// The entry's value.
        file: String,
        /// What is wrong with the value, and what to do.
        problem: &'static str,
    },
    /// A weight file whose header breaks the rules of the format.
    #[error("{file} is not a valid safetensors file: {problem}; download it again")]
    Header {
        /// The weight file.
        file: PathBuf,
        /// The rule that is broken.
        problem: String,
    },
    /// A weight file cut short, or with something behind its end.
    #[error(
        "{file} is {actual} bytes long but its header promises {expected}; the download did not finish or went wrong, delete the file and download it again"
    )]
    WrongLength {
        /// The weight file.
        file: PathBuf,
        /// Bytes that the header asks for.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// A tensor that the model needs and the checkpoint does not name.
    #[error(
        "{file} names no tensor {tensor:?}; the checkpoint is incomplete, or is not of the architecture that its config.json says"
    )]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// The index, or the only weight file.
        file: PathBuf,
    },
    /// Index and shard come from different versions of a checkpoint.
    #[error("{file} has no tensor {tensor:?} although {index} says so; download both again")]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// The shard.
        file: PathBuf,
        /// The index.
        index: PathBuf,
    },
    /// A tensor in an element type that does not fit its use.
    #[error(
        "{file}: {tensor:?} is stored as {dtype}, and only {accepted} can be read here; use the BF16 checkpoint of this model"
    )]
    Dtype {
        /// The weight file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type, in the words of the format.
        dtype: String,
        /// What would do.
        accepted: &'static str,
    },
    /// A tensor of another shape than the config promises.
    #[error(
        "{file}: {tensor:?} has shape {actual:?} where {expected:?} is expected; the weights do not belong to this config.json"
    )]
    Shape {
        /// The weight file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the config leads to.
        expected: Vec<u64>,
        /// The shape in the file.
        actual: Vec<u64>,
    },
    /// Packed weights that contradict themselves or the config.
    #[error(
        "{file}: {tensor:?} {problem}; the checkpoint is damaged or in an unknown variant of compressed-tensors"
    )]
    Packed {
        /// The weight file.
        file: PathBuf,
        /// The tensor at fault.
        tensor: String,
        /// What does not fit.
        problem: String,
    },
    /// Quantised in a way that cannot be run.
    #[error(
        "config.json: {field} is {value}, which is not supported ({accepted} is); use the BF16 checkpoint of this model"
    )]
    Quantization {
        /// Path of the field, with dots.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What would do.
        accepted: &'static str,
    },
}

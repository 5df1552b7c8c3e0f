//! INT4 weights as compressed-tensors packs them (`pack-quantized`): Kimi K2.5's experts.
//!
//! Instead of `{base}.weight` there are `{base}.weight_packed`, I32 `[rows, cols / 8]` with eight
//! nibbles per word, lowest column in the lowest bits and 8 too high; `{base}.weight_scale`
//! `[rows, cols / group]`; and `{base}.weight_shape`, `[rows, cols]` as two integers. In memory
//! order that is our own INT4 layout, so rows are copied and nothing is quantised a second time.

use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::quantize::nibble;
use crate::tensor::Tensor;
use half::bf16;
use krasis_core::{DType, Format};
use serde_json::Value;

/// How a checkpoint's `quantization_config` says that its weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// Not quantised.
    None,
    /// Packed INT4 with a scale per `group` inputs, for the weights that have a `weight_packed`.
    PackedInt4 {
        /// Inputs that share a scale.
        group: u32,
    },
}

/// Reads `quantization_config`, at the top or inside `text_config`, and refuses what cannot be run
/// as intended. Quantisation of activations counts as such; that of the KV cache is ours to choose.
pub fn quantization(config: &Value) -> Result<Quantization, CheckpointError> {
    let top = Field { path: "quantization_config".into(), value: &config["quantization_config"] };
    let nested = Field {
        path: "text_config.quantization_config".into(),
        value: &config["text_config"]["quantization_config"],
    };
    let Some(field) = [top, nested].into_iter().find(|field| !field.value.is_null()) else {
        return Ok(Quantization::None);
    };
    field.get("quant_method").expect(&["compressed-tensors".into()], SUPPORTED)?;
    field.get("format").expect(&["pack-quantized".into()], SUPPORTED)?;
    // A rotation would have to be applied to the activations as well, a sparsity mask undone.
    field.get("transform_config").expect_empty("none")?;
    field
        .get("sparsity_config")
        .get("format")
        .expect(&[Value::Null, "dense".into()], "\"dense\"")?;
    let groups = field.get("config_groups");
    let Some(names) = groups.value.as_object().filter(|groups| !groups.is_empty()) else {
        return groups.refuse("an object with at least one scheme");
    };
    let mut all = None;
    for name in names.keys() {
        let group = scheme(&groups.get(name))?;
        if *all.get_or_insert(group) != group {
            return groups.get(name).get("weights").get("group_size").refuse("one size for all");
        }
    }
    Ok(all.map_or(Quantization::None, |group| Quantization::PackedInt4 { group }))
}

const SUPPORTED: &str = "packed INT4 of compressed-tensors";

/// The group size of one scheme. Fields that may be left out have the library's defaults.
fn scheme(scheme: &Field<'_>) -> Result<u32, CheckpointError> {
    scheme.get("input_activations").expect_empty("null")?;
    scheme.get("output_activations").expect_empty("null")?;
    scheme.get("format").expect(&[Value::Null, "pack-quantized".into()], SUPPORTED)?;
    let weights = scheme.get("weights");
    weights.get("num_bits").expect(&[4.into()], "4")?;
    weights.get("type").expect(&[Value::Null, "int".into()], "\"int\"")?;
    weights.get("symmetric").expect(&[Value::Null, true.into()], "true")?;
    weights.get("strategy").expect(&["group".into()], "\"group\"")?;
    // Reordering by groups stores a permutation of the columns; by weight, it is already undone.
    let order = [Value::Null, "weight".into(), "static".into()];
    weights.get("actorder").expect(&order, "null or \"weight\"")?;
    let size = weights.get("group_size");
    match size.value.as_u64().and_then(|size| u32::try_from(size).ok()) {
        Some(group) if group > 0 => Ok(group),
        _ => size.refuse("a positive number"),
    }
}

/// A value in config.json and the way to it.
struct Field<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> Field<'a> {
    /// What is missing reads as null, as it does in the library.
    fn get(&self, key: &str) -> Field<'a> {
        Field { path: format!("{}.{key}", self.path), value: &self.value[key] }
    }

    fn expect(&self, good: &[Value], accepted: &'static str) -> Result<(), CheckpointError> {
        if good.contains(self.value) { Ok(()) } else { self.refuse(accepted) }
    }

    fn expect_empty(&self, accepted: &'static str) -> Result<(), CheckpointError> {
        match self.value {
            Value::Null => Ok(()),
            Value::Object(fields) if fields.is_empty() => Ok(()),
            _ => self.refuse(accepted),
        }
    }

    fn refuse<T>(&self, accepted: &'static str) -> Result<T, CheckpointError> {
        let (field, value) = (self.path.clone(), self.value.to_string());
        Err(CheckpointError::Quantization { field, value, accepted })
    }
}

/// A packed INT4 matrix of `rows` outputs by `cols` inputs.
#[derive(Clone, Debug)]
pub struct Packed<'a> {
    /// Outputs.
    pub rows: u32,
    /// Inputs.
    pub cols: u32,
    /// Inputs that share a scale; the last group of a row may be shorter.
    pub group: u32,
    words: Tensor<'a>,  // [rows, ceil(cols / 8)] of I32
    scales: Tensor<'a>, // [rows, ceil(cols / group)]
}

/// The packed weight called `{base}.weight_packed` and so on, or `None` if there is no tensor of
/// that name. Shapes and types are checked against each other and against the config.
pub fn open<'a>(ck: &'a Checkpoint, base: &str) -> Result<Option<Packed<'a>>, CheckpointError> {
    let name = format!("{base}.weight_packed");
    if !ck.contains(&name) {
        return Ok(None);
    }
    for extra in ["weight_zero_point", "weight_g_idx"] {
        let name = format!("{base}.{extra}");
        if ck.contains(&name) {
            return Err(wrong(&ck.tensor(&name)?, "belongs to a scheme that is not supported"));
        }
    }
    let words = ck.tensor(&name)?;
    let scales = ck.tensor(&format!("{base}.weight_scale"))?;
    let (rows, cols) = shape(&ck.tensor(&format!("{base}.weight_shape"))?)?;
    if words.dtype != DType::I32 {
        return Err(words.wrong_dtype("I32"));
    }
    words.expect_matrix(rows, cols.div_ceil(8))?;
    if !scales.dtype.is_float() {
        return Err(scales.wrong_dtype("F32, F16 or BF16"));
    }
    let group = match quantization(ck.config())? {
        Quantization::PackedInt4 { group } => group,
        Quantization::None => group(&scales, cols)?,
    };
    scales.expect_matrix(rows, cols.div_ceil(group))?;
    Ok(Some(Packed { rows, cols, group, words, scales }))
}

/// `weight_shape`: two integers, neither zero.
fn shape(tensor: &Tensor<'_>) -> Result<(u32, u32), CheckpointError> {
    tensor.expect_shape(&[2])?;
    let dims: Vec<i64> = match tensor.dtype {
        DType::I64 => tensor.bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
        DType::I32 => {
            tensor.bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect()
        }
        _ => return Err(tensor.wrong_dtype("I64 or I32")),
    };
    match dims.iter().map(|&dim| u32::try_from(dim)).collect::<Result<Vec<_>, _>>().as_deref() {
        Ok(&[rows, cols]) if rows > 0 && cols > 0 => Ok((rows, cols)),
        _ => Err(wrong(tensor, &format!("holds {dims:?}, which is no shape of a matrix"))),
    }
}

/// Without a config only whole groups can be told: 96 inputs in 2 groups could be 48 + 48 or 64 + 32.
fn group(scales: &Tensor<'_>, cols: u32) -> Result<u32, CheckpointError> {
    match scales.shape.get(1).map(|&groups| u32::try_from(groups)) {
        Some(Ok(groups)) if groups > 0 && cols.is_multiple_of(groups) => Ok(cols / groups),
        _ => Err(wrong(
            scales,
            &format!("of shape {:?} does not divide {cols} inputs", scales.shape),
        )),
    }
}

fn wrong(tensor: &Tensor<'_>, problem: &str) -> CheckpointError {
    CheckpointError::Packed {
        file: tensor.file.into(),
        tensor: tensor.name.into(),
        problem: problem.into(),
    }
}

impl Packed<'_> {
    /// The format that [`Self::row_into`] writes.
    pub fn format(&self) -> Format {
        Format::Int4 { group: self.group }
    }

    /// Names of the tensors that its numbers and scales are in.
    pub fn tensors(&self) -> [&str; 2] {
        [self.words.name, self.scales.name]
    }

    /// Refuses any size but this one.
    pub fn expect_matrix(&self, rows: u32, cols: u32) -> Result<(), CheckpointError> {
        if (self.rows, self.cols) == (rows, cols) {
            return Ok(());
        }
        Err(CheckpointError::Shape {
            file: self.words.file.into(),
            tensor: self.words.name.into(),
            expected: vec![rows.into(), cols.into()],
            actual: vec![self.rows.into(), self.cols.into()],
        })
    }

    /// Copies a row into our layout: `row_bytes` bytes and `row_scales` scales of [`Self::format`].
    /// Integers are exact always, scales if they are stored as BF16 (F16 and F32 are rounded). A scale
    /// that is no number is copied like any other.
    pub fn row_into(&self, row: u32, data: &mut [u8], scales: &mut [bf16]) {
        let format = self.format();
        assert_eq!(data.len() as u64, format.row_bytes(self.cols), "bytes of a row");
        assert_eq!(scales.len(), format.row_scales(self.cols) as usize, "scales of a row");
        data.copy_from_slice(&self.row(row)[..data.len()]);
        if self.cols % 2 == 1 {
            // The library pads words with 0, which is -8; our padding is a zero.
            data[self.cols as usize / 2] = data[self.cols as usize / 2] & 0x0f | 0x80;
        }
        for (g, scale) in scales.iter_mut().enumerate() {
            *scale = bf16::from_f32(self.scale(row, g));
        }
    }

    /// `scale · integer` in f32, with the scale as it is stored.
    pub fn dequantize_row(&self, row: u32, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols as usize, "one output for each column");
        let data = self.row(row);
        let group = self.group as usize;
        for (g, out) in out.chunks_mut(group).enumerate() {
            let scale = self.scale(row, g);
            for (i, out) in out.iter_mut().enumerate() {
                *out = scale * f32::from(nibble(data, g * group + i));
            }
        }
    }

    /// The row's words as bytes, which on disk are little-endian.
    fn row(&self, row: u32) -> &[u8] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let bytes = self.cols.div_ceil(8) as usize * 4;
        &self.words.bytes[row as usize * bytes..][..bytes]
    }

    fn scale(&self, row: u32, group: usize) -> f32 {
        let groups = self.cols.div_ceil(self.group) as usize;
        let mut scale = [0.0];
        self.scales
            .read_f32(row as usize * groups + group, &mut scale)
            .expect("the type of the scales was checked when the weight was opened");
        scale[0]
    }
}

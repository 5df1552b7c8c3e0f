//! compressed-tensors: reading packed INT4, and refusing everything else.

use crate::support::{Folder, Made, f32s, safetensors};
use half::{bf16, f16};
use krasis_checkpoint::CheckpointError;
use krasis_checkpoint::compressed_tensors::{Quantization, open, quantization};
use krasis_checkpoint::quantize::{dequantize_row, quantize_row};
use krasis_core::Format;
use safetensors::Dtype;
use serde_json::{Value, json};

/// Integers of row `r`, column `c`: all of -8..8 occur.
fn integer(r: usize, c: usize) -> i32 {
    ((r * 7 + c * 5) % 16) as i32 - 8
}

fn scale(r: usize, g: usize) -> f32 {
    bf16::from_f32(0.01 + (r * 3 + g) as f32 * 0.0137).to_f32()
}

/// Packs as `pack_to_int32` does: 8 too high, lowest column lowest, words padded with 0.
fn words(rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for r in 0..rows {
        for first in (0..cols).step_by(8) {
            let word = (first..cols.min(first + 8))
                .fold(0u32, |word, c| word | ((integer(r, c) + 8) as u32) << (4 * (c - first)));
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes
}

fn scales(rows: usize, groups: usize, dtype: Dtype) -> Made {
    let values = (0..rows * groups).map(|i| scale(i / groups, i % groups));
    let bytes = match dtype {
        Dtype::F32 => values.flat_map(|x| x.to_le_bytes().to_vec()).collect(),
        Dtype::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes().to_vec()).collect(),
        _ => values.flat_map(|x| bf16::from_f32(x).to_le_bytes().to_vec()).collect(),
    };
    Made("e.gate_proj.weight_scale", dtype, vec![rows, groups], bytes)
}

fn shape(rows: i64, cols: i64) -> Made {
    Made(
        "e.gate_proj.weight_shape",
        Dtype::I64,
        vec![2],
        [rows.to_le_bytes(), cols.to_le_bytes()].concat(),
    )
}

fn packed(rows: usize, cols: usize) -> Made {
    Made("e.gate_proj.weight_packed", Dtype::I32, vec![rows, cols.div_ceil(8)], words(rows, cols))
}

fn config(group: u32) -> Value {
    json!({ "text_config": { "quantization_config": {
        "config_groups": { "group_0": {
            "input_activations": null, "output_activations": null, "targets": ["Linear"],
            "weights": { "group_size": group, "num_bits": 4, "strategy": "group", "symmetric": true, "type": "int" }
        } },
        "format": "pack-quantized", "quant_method": "compressed-tensors"
    } } })
}

fn folder(config: &Value, tensors: &[Made]) -> Folder {
    Folder::new()
        .with("config.json", config.to_string())
        .with("model.safetensors", safetensors(tensors))
}

#[test]
fn rows_are_copied_without_loss() {
    // Whole groups; a short last group; odd columns that end inside a word.
    for (rows, cols, group) in [(3usize, 64usize, 32usize), (2, 80, 32), (4, 37, 16), (1, 5, 8)] {
        let groups = cols.div_ceil(group);
        let folder = folder(
            &config(group as u32),
            &[
                packed(rows, cols),
                scales(rows, groups, Dtype::BF16),
                shape(rows as i64, cols as i64),
            ],
        );
        let ck = folder.open().expect("a good checkpoint");
        let weight = open(&ck, "e.gate_proj").expect("is sound").expect("is packed");
        weight.expect_matrix(rows as u32, cols as u32).expect("its size");
        assert_eq!(weight.format(), Format::Int4 { group: group as u32 });
        for r in 0..rows {
            let expected: Vec<f32> =
                (0..cols).map(|c| scale(r, c / group) * integer(r, c) as f32).collect();
            let mut direct = vec![0.0; cols];
            weight.dequantize_row(r as u32, &mut direct);
            assert_eq!(direct, expected);

            let format = weight.format();
            let mut data = vec![0; format.row_bytes(cols as u32) as usize];
            let mut row_scales = vec![bf16::ZERO; groups];
            weight.row_into(r as u32, &mut data, &mut row_scales);
            let mut ours = vec![0.0; cols];
            dequantize_row(format, cols as u32, &data, &row_scales, &mut ours);
            assert_eq!(ours, expected);
            if cols % 2 == 1 {
                assert_eq!(data[cols / 2] >> 4, 8, "the padding is a zero");
            }
        }
    }
}

#[test]
fn other_scales_and_shapes_of_i32_are_read() {
    for dtype in [Dtype::F16, Dtype::F32] {
        let dims = [2i32.to_le_bytes(), 64i32.to_le_bytes()].concat();
        let shape = Made("e.gate_proj.weight_shape", Dtype::I32, vec![2], dims);
        // Without quantization_config the group comes from the shapes.
        let folder = folder(&json!({}), &[packed(2, 64), scales(2, 2, dtype), shape]);
        let ck = folder.open().expect("a good checkpoint");
        let weight = open(&ck, "e.gate_proj").expect("is sound").expect("is packed");
        assert_eq!((weight.rows, weight.cols, weight.group), (2, 64, 32));
        let (mut data, mut scales) = (vec![0; 32], vec![bf16::ZERO; 2]);
        weight.row_into(1, &mut data, &mut scales);
        for (g, got) in scales.into_iter().enumerate() {
            let error = (got.to_f32() / scale(1, g) - 1.0).abs();
            assert!(error <= 1.0 / 128.0, "scale {g} is off by {error}");
        }
    }
}

#[test]
fn what_is_not_packed_is_none() {
    let plain = Made("e.gate_proj.weight", Dtype::F32, vec![1, 1], f32s(&[1.0]));
    let folder = folder(&config(32), &[plain]);
    let ck = folder.open().expect("a good checkpoint");
    assert!(open(&ck, "e.gate_proj").expect("is sound").is_none());
}

#[test]
fn contradictions_name_the_tensor() {
    let damaged = |config: &Value, tensors: &[Made], expected: &str| {
        let folder = folder(config, tensors);
        let ck = folder.open().expect("a good checkpoint");
        let message = open(&ck, "e.gate_proj").expect_err("contradiction").to_string();
        assert!(message.contains(expected), "{message}\nshould contain\n{expected}");
    };
    let bf = Dtype::BF16;
    let with = |made: Made| [packed(2, 64), scales(2, 2, bf), made];
    let dims = |dtype: Dtype, bytes: Vec<u8>| {
        let len = bytes.len() * 8 / dtype.bitsize();
        Made("e.gate_proj.weight_shape", dtype, vec![len], bytes)
    };

    damaged(
        &config(32),
        &[packed(2, 64), shape(2, 64)],
        "names no tensor \"e.gate_proj.weight_scale\"",
    );
    damaged(
        &config(32),
        &[packed(2, 64), scales(2, 2, bf)],
        "names no tensor \"e.gate_proj.weight_shape\"",
    );
    damaged(&config(32), &with(shape(2, 72)), "weight_packed\" has shape [2, 8] where [2, 9]");
    damaged(&config(32), &with(shape(3, 64)), "weight_packed\" has shape [2, 8] where [3, 8]");
    damaged(&config(16), &with(shape(2, 64)), "weight_scale\" has shape [2, 2] where [2, 4]");
    damaged(
        &json!({}),
        &[packed(2, 64), scales(2, 3, bf), shape(2, 64)],
        "weight_scale\" of shape [2, 3] does not divide 64",
    );
    damaged(&config(32), &with(shape(0, 64)), "weight_shape\" holds [0, 64], which is no shape");
    damaged(&config(32), &with(shape(-2, 64)), "holds [-2, 64]");
    damaged(&config(32), &with(shape(2, i64::MAX)), "holds [2, 9223372036854775807]");
    damaged(&config(32), &with(dims(Dtype::I64, vec![0; 24])), "weight_shape\" has shape [3]");
    damaged(&config(32), &with(dims(Dtype::F32, vec![0; 8])), "weight_shape\" is stored as F32");
    let bytes = Made("e.gate_proj.weight_packed", Dtype::U8, vec![2, 32], vec![0; 64]);
    damaged(
        &config(32),
        &[bytes, scales(2, 2, bf), shape(2, 64)],
        "weight_packed\" is stored as U8",
    );
    let ints = Made("e.gate_proj.weight_scale", Dtype::I8, vec![2, 2], vec![0; 4]);
    damaged(&config(32), &[packed(2, 64), ints, shape(2, 64)], "weight_scale\" is stored as I8");
    let zero_points = Made("e.gate_proj.weight_zero_point", Dtype::I8, vec![1], vec![0]);
    let all = [packed(2, 64), scales(2, 2, bf), shape(2, 64), zero_points];
    damaged(&config(32), &all, "weight_zero_point\" belongs to a scheme that is not supported");
}

#[test]
fn configs_that_cannot_be_run_are_refused() {
    assert_eq!(quantization(&json!({})).expect("nothing to refuse"), Quantization::None);
    let null = json!({ "quantization_config": null });
    assert_eq!(quantization(&null).expect("nothing to refuse"), Quantization::None);
    let nested = config(32);
    assert_eq!(quantization(&nested).expect("Kimi"), Quantization::PackedInt4 { group: 32 });
    let top = json!({ "quantization_config": nested["text_config"]["quantization_config"] });
    assert_eq!(quantization(&top).expect("the same"), Quantization::PackedInt4 { group: 32 });

    for method in ["fp8", "awq", "gptq", "bitsandbytes", "mxfp4"] {
        let config = json!({ "quantization_config": { "quant_method": method } });
        assert_eq!(
            quantization(&config).expect_err("refused").to_string(),
            format!(
                "config.json: quantization_config.quant_method is \"{method}\", which is not supported (packed INT4 of compressed-tensors is); use the BF16 checkpoint of this model"
            )
        );
    }
    for strange in [json!("fp8"), json!(4), json!([]), json!({}), json!(true)] {
        let config = json!({ "quantization_config": strange });
        assert!(
            matches!(quantization(&config), Err(CheckpointError::Quantization { .. })),
            "{config}"
        );
    }

    let good = &top["quantization_config"];
    let refused = |path: &[&str], value: Value| {
        let mut config = json!({ "quantization_config": good });
        let mut at = &mut config["quantization_config"];
        for key in path {
            at = &mut at[*key];
        }
        *at = value.clone();
        let message = quantization(&config).expect_err("refused").to_string();
        let field = format!("config.json: quantization_config.{} is", path.join("."));
        assert!(message.starts_with(&field), "{message}\nshould start with\n{field}");
    };
    refused(&["format"], json!("float-quantized"));
    refused(&["format"], Value::Null);
    refused(&["transform_config"], json!({ "config_groups": { "R1": {} } }));
    refused(&["sparsity_config", "format"], json!("sparse-24-bitmask"));
    refused(&["config_groups"], json!({}));
    refused(&["config_groups"], json!([1]));
    let weights = |field| ["config_groups", "group_0", "weights", field];
    refused(&weights("num_bits"), json!(8));
    refused(&weights("num_bits"), json!("4"));
    refused(&weights("type"), json!("float"));
    refused(&weights("symmetric"), json!(false));
    refused(&weights("strategy"), json!("channel"));
    refused(&weights("actorder"), json!("group"));
    for size in [json!(0), json!(-1), json!(null), json!(1.5), json!(1u64 << 32)] {
        refused(&weights("group_size"), size);
    }
    refused(&["config_groups", "group_0", "input_activations"], json!({ "num_bits": 8 }));
    let mut other = good["config_groups"]["group_0"].clone();
    other["weights"]["group_size"] = json!(64);
    let mut two = json!({ "quantization_config": good });
    two["quantization_config"]["config_groups"]["group_1"] = other;
    let message = quantization(&two).expect_err("refused").to_string();
    assert!(message.contains("group_1.weights.group_size is 64"), "{message}");
}

#[test]
fn our_own_int4_is_their_packing() {
    let row: Vec<f32> = (0..64).map(|c| integer(1, c) as f32).collect();
    let (mut data, mut scales) = (vec![0; 32], vec![bf16::ZERO; 2]);
    quantize_row(&row, Format::Int4 { group: 32 }, &mut data, &mut scales).expect("finite");
    assert_eq!(data, words(2, 64)[32..]);
}

//! Model folders as they should be.

use crate::support::{Folder, Made, f32s, safetensors};
use half::{bf16, f16};
use krasis_checkpoint::{Checkpoint, compressed_tensors};
use krasis_core::DType;
use safetensors::Dtype;
use std::path::Path;

fn some_floats() -> Vec<u8> {
    let values = [1.5, -2.0, 0.0, 65504.0, -0.25];
    safetensors(&[
        Made("single", Dtype::F32, vec![5], f32s(&values)),
        Made("half", Dtype::F16, vec![5], values.map(|x| f16::from_f32(x).to_le_bytes()).concat()),
        Made(
            "brain",
            Dtype::BF16,
            vec![5],
            values.map(|x| bf16::from_f32(x).to_le_bytes()).concat(),
        ),
        Made("byte", Dtype::U8, vec![1], vec![3]),
        Made("bool", Dtype::BOOL, vec![1], vec![1]),
        Made("none", Dtype::F32, vec![0, 4], vec![]),
    ])
}

#[test]
fn a_single_file_is_read() {
    let folder = Folder::new()
        .with("config.json", r#"{"model_type": "qwen3_moe"}"#)
        .with("generation_config.json", r#"{"eos_token_id": [1, 2]}"#)
        .with("model.safetensors", some_floats());
    let ck = folder.open().expect("a good checkpoint");
    assert_eq!(ck.dir(), folder.dir());
    assert_eq!(ck.config()["model_type"], "qwen3_moe");
    assert_eq!(ck.generation_config().expect("is there")["eos_token_id"][1], 2);
    assert_eq!(ck.shards_opened(), 1);
    assert!(ck.contains("half") && !ck.contains("quarter"));
    assert_eq!(ck.names().collect::<Vec<_>>(), ["bool", "brain", "byte", "half", "none", "single"]);

    let brain = ck.tensor("brain").expect("is there");
    assert_eq!((brain.name, brain.dtype, brain.shape.as_slice()), ("brain", DType::Bf16, &[5][..]));
    assert_eq!(brain.file(), folder.path("model.safetensors"));
    assert_eq!(brain.to_f32().expect("floats"), [1.5, -2.0, 0.0, 65536.0, -0.25]);
    for name in ["single", "half"] {
        let tensor = ck.tensor(name).expect("is there");
        assert_eq!(tensor.to_f32().expect("floats"), [1.5, -2.0, 0.0, 65504.0, -0.25]);
        let mut two = [0.0; 2];
        tensor.read_f32(3, &mut two).expect("floats");
        assert_eq!(two, [65504.0, -0.25]);
    }
    let none = ck.tensor("none").expect("is there");
    assert!(none.is_empty() && none.to_f32().expect("floats").is_empty());
    none.expect_matrix(0, 4).expect("its shape");
}

#[test]
fn shapes_and_types_are_refused_in_sentences() {
    let folder = Folder::new().with("model.safetensors", some_floats());
    let ck = folder.open().expect("a good checkpoint");
    let file = folder.path("model.safetensors");
    let file = file.display();
    let half = ck.tensor("half").expect("is there");
    half.expect_shape(&[5]).expect("its shape");
    assert_eq!(
        half.expect_matrix(5, 1).unwrap_err().to_string(),
        format!(
            "{file}: \"half\" has shape [5] where [5, 1] is expected; the weights do not belong to this config.json"
        )
    );
    assert_eq!(
        ck.tensor("byte").expect("is there").to_f32().unwrap_err().to_string(),
        format!(
            "{file}: \"byte\" is stored as U8, and only F32, F16 or BF16 can be read here; use the BF16 checkpoint of this model"
        )
    );
    assert_eq!(
        ck.tensor("bool").unwrap_err().to_string(),
        format!(
            "{file}: \"bool\" is stored as BOOL, and only F32, F16, BF16, F8_E4M3, I64, I32, I8 and U8 can be read here; use the BF16 checkpoint of this model"
        )
    );
    assert_eq!(
        ck.tensor("quarter").unwrap_err().to_string(),
        format!(
            "{file} names no tensor \"quarter\"; the checkpoint is incomplete, or is not of the architecture that its config.json says"
        )
    );
}

#[test]
fn shards_are_opened_when_needed_and_once() {
    let one = |name| safetensors(&[Made(name, Dtype::F32, vec![1], f32s(&[1.0]))]);
    let folder = Folder::new()
        .with("model.safetensors.index.json", r#"{"metadata": {"total_size": 8}, "weight_map": {"a": "x.safetensors", "b": "y.safetensors", "c": "y.safetensors"}}"#)
        .with("x.safetensors", one("a"))
        .with("y.safetensors", one("b"));
    let ck = folder.open().expect("a good checkpoint");
    assert!(ck.contains("a") && ck.contains("c"));
    assert_eq!(ck.shards_opened(), 0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(ck.tensor("b").expect("is there").bytes.len(), 4));
        }
    });
    assert_eq!(ck.shards_opened(), 1);
    let message = ck.tensor("c").unwrap_err().to_string();
    assert!(message.contains("y.safetensors has no tensor \"c\" although"), "{message}");
    assert_eq!(ck.shards_opened(), 1);
    ck.tensor("a").expect("is there");
    assert_eq!(ck.shards_opened(), 2);
}

#[test]
fn a_lone_file_of_another_name_will_do() {
    Folder::new().with("weights.safetensors", some_floats()).open().expect("the only file");
    Folder::new()
        .with("x-00001-of-00001.safetensors", some_floats())
        .open()
        .expect("the only part of one");
}

#[test]
fn the_file_may_be_a_link_as_in_the_cache_of_the_hub() {
    let blobs = Folder::new().with("blob", some_floats());
    let folder = Folder::new();
    std::os::unix::fs::symlink(blobs.path("blob"), folder.path("model.safetensors"))
        .expect("a link");
    folder.open().expect("through the link").tensor("half").expect("is there");
}

#[test]
fn every_tiny_fixture_reads() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny");
    let mut seen = 0;
    for entry in tiny.read_dir().into_iter().flatten() {
        let dir = entry.expect("a readable folder").path();
        if !dir.join("config.json").exists() {
            continue;
        }
        let ck = Checkpoint::open(&dir).unwrap_or_else(|error| panic!("{error}"));
        compressed_tensors::quantization(ck.config()).unwrap_or_else(|error| panic!("{error}"));
        for name in ck.names() {
            let tensor = ck.tensor(name).unwrap_or_else(|error| panic!("{error}"));
            let len: u64 = tensor.shape.iter().product();
            assert_eq!(len as usize, tensor.len(), "{name}");
            if tensor.dtype.is_float() {
                let values = tensor.to_f32().unwrap_or_else(|error| panic!("{error}"));
                assert!(values.iter().all(|x| x.is_finite()), "{name}");
            }
            if let Some(base) = name.strip_suffix(".weight_packed") {
                let packed = compressed_tensors::open(&ck, base)
                    .unwrap_or_else(|error| panic!("{error}"))
                    .expect("the packed tensor is there");
                packed.dequantize_row(packed.rows - 1, &mut vec![0.0; packed.cols as usize]);
            }
        }
        seen += 1;
    }
    println!("read {seen} of the checkpoints in fixtures/tiny");
}

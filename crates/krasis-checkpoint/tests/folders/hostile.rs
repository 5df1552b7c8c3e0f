//! Files that are broken, by accident or on purpose. Each is refused in a sentence that names the
//! file; none ends the process.

use crate::support::{Folder, Made, f32s, safetensors};
use krasis_checkpoint::CheckpointError;
use proptest::prelude::*;
use safetensors::Dtype;
use std::os::unix::fs::symlink;

/// Opens and reads everything: some faults show only when a shard is mapped.
fn open_all(folder: &Folder) -> Result<usize, CheckpointError> {
    let ck = folder.open()?;
    let mut bytes = 0;
    for name in ck.names() {
        bytes += ck.tensor(name)?.bytes.len();
    }
    Ok(bytes)
}

/// The folder is refused with a message that has all of these parts.
fn refused(folder: &Folder, parts: &[&str]) {
    let message = open_all(folder).expect_err("a broken checkpoint").to_string();
    for part in parts {
        assert!(message.contains(part), "{message}\nshould contain\n{part}");
    }
    assert!(!message.ends_with('.') && message.contains("; "), "no remedy, or a dot: {message}");
}

fn file(header_bytes: u64, header: &str, data: usize) -> Vec<u8> {
    [&header_bytes.to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

fn good() -> Vec<u8> {
    safetensors(&[
        Made("a", Dtype::F32, vec![2, 3], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        Made("b", Dtype::U8, vec![5], vec![1, 2, 3, 4, 5]),
    ])
}

#[test]
fn headers_that_lie_are_refused() {
    let check = |bytes: &[u8], part: &str| {
        refused(&Folder::new().with("model.safetensors", bytes), &["model.safetensors", part]);
    };
    let header = |header: &str, data, part: &str| {
        check(&file(header.len() as u64, header, data), part);
    };
    // The prefix.
    check(b"", "0 bytes long");
    check(b"1234567", "7 bytes long");
    check(&file(0, "", 0), "its header claims to be 0 bytes long");
    check(&file(0, "{}", 0), "its header claims to be 0 bytes long");
    check(&file(7, "{\"a\":1}", 0), "invalid type");
    check(&file(7, "", 0), "is 8 bytes long but its header promises 15");
    check(&file(100, "{}", 0), "is 10 bytes long but its header promises 108");
    check(&file(100_000_001, "{}", 0), "claims to be 100000001 bytes");
    check(&file(1 << 63, "{}", 0), "claims to be 9223372036854775808 bytes");
    check(&file(u64::MAX, "{}", 0), "claims to be 18446744073709551615 bytes");
    check(b"<!DOCTYPE html><html>not found</html>", "claims to be");
    // The JSON.
    header("not json", 0, "line 1 column");
    header("{\"a\":", 0, "line 1 column");
    header("[]", 0, "invalid type");
    header("null", 0, "invalid type");
    header("{\"a\": 1}", 0, "invalid type");
    header("{} {}", 0, "trailing characters");
    header(
        &format!("{{\"__metadata__\":{}{}}}", "[".repeat(5000), "]".repeat(5000)),
        0,
        "line 1 column",
    );
    header(&format!("{{\"a\":{}", "{\"a\":".repeat(5000)), 0, "safetensors file");
    header(r#"{"__metadata__":{"a":1}}"#, 0, "invalid type");
    check(&[&8u64.to_le_bytes()[..], b"{\"\xff\xfe\":1}"].concat(), "safetensors file");
    // The tensors. Offsets:
    let a = |shape: &str, from: &str, to: &str| {
        format!(r#""dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]"#)
    };
    header(&format!("{{\"a\":{{{}}}}}", a("[1]", "0", "4")), 3, "its header promises");
    header(&format!("{{\"a\":{{{}}}}}", a("[1]", "0", "4")), 5, "its header promises");
    header("{}", 1, "is 11 bytes long but its header promises 10");
    header(&format!("{{\"a\":{{{}}}}}", a("[1]", "4", "0")), 4, "invalid offset for tensor `a`");
    header(&format!("{{\"a\":{{{}}}}}", a("[1]", "4", "8")), 8, "invalid offset for tensor `a`");
    header(&format!("{{\"a\":{{{}}}}}", a("[1]", "-4", "0")), 4, "integer `-4`");
    header(&format!("{{\"a\":{{{}}}}}", a("[1]", "0", "18446744073709551615")), 4, "invalid shape");
    header(&format!("{{\"a\":{{{}}}}}", a("[1]", "0", "18446744073709551616")), 4, "line 1 column");
    let two = |first: &str, second: &str| format!("{{\"a\":{{{first}}},\"b\":{{{second}}}}}");
    header(&two(&a("[1]", "0", "4"), &a("[1]", "0", "4")), 4, "invalid offset");
    header(&two(&a("[2]", "0", "8"), &a("[2]", "4", "12")), 12, "invalid offset");
    header(&two(&a("[1]", "0", "4"), &a("[1]", "8", "12")), 12, "invalid offset");
    // Shapes:
    header(&format!("{{\"a\":{{{}}}}}", a("[2]", "0", "4")), 4, "invalid shape");
    header(&format!("{{\"a\":{{{}}}}}", a("[4294967296,4294967296]", "0", "0")), 0, "overflow");
    header(
        &format!("{{\"a\":{{{}}}}}", a("[0,4294967296,4294967296]", "0", "4")),
        4,
        "invalid shape",
    );
    header(&format!("{{\"a\":{{{}}}}}", a("[-1]", "0", "4")), 4, "line 1 column");
    header(&format!("{{\"a\":{{{}}}}}", a("[1.5]", "0", "4")), 4, "line 1 column");
    // Types and fields:
    header(r#"{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}"#, 4, "unknown variant `F31`");
    header(r#"{"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,5]}}"#, 5, "invalid shape");
    header(r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1, "byte boundary");
    header(r#"{"a":{"shape":[1],"data_offsets":[0,4]}}"#, 4, "missing field `dtype`");
    header(r#"{"a":{"dtype":"F32","data_offsets":[0,4]}}"#, 4, "missing field `shape`");
    header(r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4, "missing field `data_offsets`");
    header(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#, 4, "line 1 column");
    // Twice the same name, once pointing elsewhere and once not.
    let twice = |second: &str| format!("{{\"a\":{{{}}},\"a\":{{{second}}}}}", a("[1]", "0", "4"));
    header(&twice(&a("[1]", "0", "4")), 4, "\"a\" comes twice");
    header(&twice(&a("[1]", "4", "8")), 8, "\"a\" comes twice");
}

#[test]
fn sizes_that_overflow_only_in_sum_are_refused() {
    // Eight tensors of almost 2⁶¹ bytes: each is in order, the end of the last plus the header is
    // beyond 2⁶⁴.
    let size = (1u64 << 61) - 1;
    let entries: Vec<String> = (0..8)
        .map(|i| {
            let (start, end) = (i * size, (i + 1) * size);
            format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let folder = Folder::new().with("model.safetensors", file(header.len() as u64, &header, 16));
    refused(&folder, &["model.safetensors", "its header promises 18446744073709551615"]);
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let good = good();
    for len in 0..good.len() {
        refused(&Folder::new().with("model.safetensors", &good[..len]), &["model.safetensors"]);
    }
    let cut = Folder::new().with("model.safetensors", &good[..good.len() - 9]);
    let expected =
        format!("is {} bytes long but its header promises {}", good.len() - 9, good.len());
    refused(&cut, &[&expected, "download it again"]);
    let longer = [&good[..], &[0]].concat();
    refused(&Folder::new().with("model.safetensors", longer), &["its header promises"]);
}

#[test]
fn pointers_of_git_lfs_are_recognised() {
    let pointer =
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3996250744\n";
    let lfs = |folder: Folder, name| refused(&folder, &[name, "git-LFS pointer", "git lfs pull"]);
    lfs(Folder::new().with("model.safetensors", pointer), "model.safetensors");
    lfs(Folder::new().with("model.safetensors.index.json", pointer), "index.json");
    lfs(Folder::new().with("config.json", pointer), "config.json");
    let index = r#"{"weight_map": {"a": "x.safetensors"}}"#;
    let sharded = Folder::new().with("model.safetensors.index.json", index);
    lfs(sharded.with("x.safetensors", pointer), "x.safetensors");
}

#[test]
fn an_index_is_not_believed() {
    const INDEX: &str = "model.safetensors.index.json";
    let check = |index: &str, parts: &[&str]| {
        let folder = Folder::new().with(INDEX, index).with("x.safetensors", good());
        refused(&folder, &[&[INDEX], parts].concat());
    };
    check("", &["it is empty"]);
    check("not json", &["line 1 column 2"]);
    check("[]", &["line 1 column"]);
    check("{}", &["missing field `weight_map`"]);
    check(r#"{"weight_map": []}"#, &["invalid type", "line 1 column"]);
    check(r#"{"weight_map": {"a": 1}}"#, &["invalid type", "line 1 column"]);
    check(
        r#"{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}"#,
        &["\"a\" comes twice"],
    );
    for path in [
        "../x.safetensors",
        "/etc/passwd",
        "sub/../../x",
        "",
        ".",
        "..",
        "./x.safetensors",
        "x\\u0000y",
    ] {
        let index = format!(r#"{{"weight_map": {{"tensor": "{path}"}}}}"#);
        let shown = format!("{:?}", path.replace("\\u0000", "\0"));
        check(&index, &["\"tensor\"", &shown, "is not the name of a file in this folder"]);
    }
    let missing = r#"{"weight_map": {"a": "x.safetensors", "b": "y-2.safetensors"}}"#;
    check(missing, &["\"b\"", "\"y-2.safetensors\"", "is missing", "hf download"]);
    check(
        r#"{"weight_map": {"other": "x.safetensors"}}"#,
        &["x.safetensors has no tensor \"other\""],
    );
    check("{\"weight_map\": {\"a\\u001b[31m\": \"y\"}}", &["\"a\\u{1b}[31m\""]);
}

#[test]
fn links_and_folders_in_the_place_of_files_are_refused() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("model.safetensors")).expect("a folder");
    refused(&folder, &["model.safetensors", "not a plain file"]);

    let folder = Folder::new();
    symlink(folder.path("model.safetensors"), folder.path("model.safetensors")).expect("a link");
    refused(&folder, &["model.safetensors cannot be read", "check"]);

    let folder = Folder::new();
    symlink("/nowhere/blob", folder.path("model.safetensors")).expect("a link");
    refused(&folder, &["model.safetensors cannot be read", "check"]);

    // Reading it would never end.
    let folder = Folder::new();
    symlink("/dev/zero", folder.path("model.safetensors")).expect("a link");
    refused(&folder, &["not a plain file"]);
    let folder = Folder::new().without("config.json");
    symlink("/dev/zero", folder.path("config.json")).expect("a link");
    refused(&folder, &["config.json", "not a plain file"]);
}

#[test]
fn a_folder_without_usable_weights_says_what_it_has() {
    refused(&Folder::new(), &["model.safetensors is missing", "download the model's weights"]);
    let bin = Folder::new().with("pytorch_model.bin", "x");
    refused(&bin, &["pytorch_model.bin is a pickle", "safetensors"]);
    refused(&Folder::new().with("consolidated.00.pth", "x"), &["consolidated.00.pth is a pickle"]);
    refused(&Folder::new().with("q4.gguf", "x"), &["q4.gguf is a GGUF file"]);
    let parts = Folder::new()
        .with("model-00001-of-00002.safetensors", good())
        .with("model-00002-of-00002.safetensors", good());
    refused(&parts, &["\"model-00001-of-00002.safetensors\"", "no model.safetensors.index.json"]);
    let one = Folder::new().with("model-00002-of-00002.safetensors", good());
    refused(&one, &["no model.safetensors.index.json"]);
}

#[test]
fn configs_are_refused_with_line_and_column() {
    let with =
        |name: &str, text: &str| Folder::new().with("model.safetensors", good()).with(name, text);
    refused(&with("config.json", ""), &["config.json", "it is empty"]);
    refused(
        &with("config.json", "{\n  \"a\": 1,\n  \"b\"\n}"),
        &["config.json", "line 4 column 1"],
    );
    refused(&with("config.json", "[1]"), &["config.json", "expected a map", "line 1 column"]);
    refused(&with("config.json", "\"text\""), &["config.json", "line 1 column"]);
    refused(&with("config.json", "{\"a\": NaN}"), &["config.json", "line 1 column"]);
    refused(&with("config.json", &"{\"a\":".repeat(100_000)), &["config.json", "recursion"]);
    refused(&with("generation_config.json", "{"), &["generation_config.json", "line 1 column 1"]);
    refused(&with("generation_config.json", "7"), &["generation_config.json", "line 1 column"]);
    let no_config = with("config.json", "").without("config.json");
    refused(&no_config, &["config.json is missing", "hf download"]);
}

#[test]
fn the_path_must_be_a_folder() {
    let folder = Folder::new().with("model.safetensors", good());
    for name in ["model.safetensors", "nothing", "config.json/x"] {
        let error = krasis_checkpoint::Checkpoint::open(&folder.path(name)).expect_err("no folder");
        assert!(error.to_string().contains(&format!("{name} is not a folder; pass")), "{error}");
    }
}

#[test]
fn headers_with_many_tensors_take_no_time_to_speak_of() {
    let entries: Vec<String> = (0..100_000)
        .map(|i| format!(r#""t{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#, i + 1))
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let bytes = file(header.len() as u64, &header, 100_000);
    assert_eq!(open_all(&Folder::new().with("model.safetensors", bytes)).expect("valid"), 100_000);
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = open_all(&Folder::new().with("model.safetensors", bytes));
    }

    #[test]
    fn any_header_is_refused_or_read(
        changes in prop::collection::vec((0usize..200, any::<u8>()), 1..6),
    ) {
        let mut bytes = good();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let _ = open_all(&Folder::new().with("model.safetensors", bytes));
    }

    #[test]
    fn any_index_is_refused_or_read(text in r#"[{}\[\]":,a-z./\\0-9 ]{0,60}"#, file in "[a-z./]{0,12}") {
        let _ = open_all(&Folder::new().with("model.safetensors.index.json", &text));
        let index = format!(r#"{{"weight_map": {{"a": {file:?}}}}}"#);
        let _ = open_all(&Folder::new().with("model.safetensors.index.json", index));
    }
}

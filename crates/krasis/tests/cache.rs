//! `krasis cache` from outside: killed at any moment, many at once, without room.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The demo model in a folder of its own.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/model");
    for entry in demo.read_dir().unwrap() {
        let from = entry.unwrap().path();
        if from.is_file() {
            std::fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
        }
    }
    dir
}

fn command(model: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_krasis"));
    command.args(arguments).arg("--model-path").arg(model).stdin(Stdio::null());
    command.env("KRASIS_HOME", model.join("home")).env("KRASIS_LOG", "info");
    // Where there is a GPU, these tests do not see it.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// What a command printed, both ways, and its exit code.
fn said(command: &mut Command) -> (String, Option<i32>) {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.code())
}

#[track_caller]
fn done(command: &mut Command) -> String {
    let (text, code) = said(command);
    assert_eq!(code, Some(0), "{text}");
    text
}

const BUILD: [&str; 4] = ["cache", "build", "--cpu-expert-bits", "4"];

fn file(model: &Path) -> PathBuf {
    let files = krasis_checkpoint::cache::list(&model.join(".krasis_cache"));
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn a_cache_is_built_listed_verified_and_removed() {
    let model = model();
    let model = model.path();
    assert!(done(&mut command(model, &["cache", "list"])).contains("nothing is kept"));
    let (text, code) = said(&mut command(model, &["cache", "build"]));
    assert!(code == Some(3) && text.contains("--cpu-expert-bits 4"), "{text}");
    let text = done(&mut command(model, &BUILD));
    assert!(text.contains("int4-g128-") && text.contains("resident at most"), "{text}");
    assert!(done(&mut command(model, &BUILD)).contains("was there already"));
    assert!(done(&mut command(model, &["cache", "list"])).contains("layers 0 to 5"));
    assert!(done(&mut command(model, &["cache", "verify"])).contains("sound"));
    let mut bytes = std::fs::read(file(model)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file(model), bytes).unwrap();
    let (text, code) = said(&mut command(model, &["cache", "verify"]));
    assert!(code == Some(4) && text.contains("is damaged"), "{text}");
    // A changed checkpoint is another one.
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    std::fs::write(model.join("config.json"), config + " ").unwrap();
    assert!(done(&mut command(model, &["cache", "list"])).contains("another checkpoint"));
    // What was measured stays unless it is meant too.
    let measured = model.join(".krasis_cache/auto_optimise.json");
    std::fs::write(&measured, "{\"format\": 1}").unwrap();
    assert!(done(&mut command(model, &["cache", "list"])).contains("what was measured"));
    let text = done(&mut command(model, &["cache", "rm"]));
    assert!(text.contains("removed") && text.contains("--all"), "{text}");
    assert!(measured.exists());
    let left = krasis_checkpoint::cache::list(&model.join(".krasis_cache"));
    assert!(left.is_empty(), "{left:?}");
    assert!(done(&mut command(model, &["cache", "rm", "--all"])).contains("auto_optimise.json"));
    assert!(!model.join(".krasis_cache").exists());
}

/// KRASIS_KILLS=100 for the hundred of the issue.
#[test]
fn a_killed_build_is_finished_by_the_next_start() {
    let kills = std::env::var("KRASIS_KILLS").map_or(20, |kills| kills.parse().unwrap());
    let model = model();
    let model = model.path();
    let start = std::time::Instant::now();
    done(&mut command(model, &BUILD));
    let time = start.elapsed();
    let whole = std::fs::read(file(model)).unwrap();
    let (mut state, mut unfinished, mut resumed) = (1u64, 0, 0);
    for _ in 0..kills {
        done(&mut command(model, &["cache", "rm"]));
        // A linear congruence (Knuth's MMIX).
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut child =
            command(model, &BUILD).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(time.mul_f64((state >> 40) as f64 / (1u64 << 24) as f64));
        child.kill().unwrap();
        child.wait().unwrap();
        let folder = model.join(".krasis_cache");
        let left = krasis_checkpoint::cache::list(&folder);
        unfinished += usize::from(left.iter().any(|file| !file.exists()));
        let text = done(&mut command(model, &BUILD));
        resumed +=
            usize::from(text.contains("of it before") && !text.contains(" 0 B of it before"));
        assert!(std::fs::read(file(model)).unwrap() == whole, "{text}");
        done(&mut command(model, &["cache", "verify"]));
    }
    println!("{kills} kills, {unfinished} left an unfinished build, {resumed} were resumed");
    assert!(unfinished > 0, "no kill hit the build");
}

#[test]
fn many_at_once_build_once() {
    let model = model();
    let start = |_| -> Child {
        let mut command =
            command(model.path(), &["run", "--cpu-expert-bits", "4", "--temperature", "0"]);
        command.args(["--krasis-threads", "1", "What is 2+2?"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<Child> = (0..8).map(start).collect();
    let mut built = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        assert!(String::from_utf8_lossy(&output.stdout).contains('4'), "{log}");
        assert!(log.contains("of it from the cache"), "{log}");
        built += log.matches("built ").count();
    }
    assert_eq!(built, 1);
}

/// A limit on file sizes refuses a write as a full disk does, in the middle.
#[test]
fn a_full_disk_is_told_and_the_model_runs() {
    let model = model();
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 2000; exec \"$@\"", "sh"]);
    shell.arg(env!("CARGO_BIN_EXE_krasis"));
    shell.args(["run", "--cpu-expert-bits", "4", "--temperature", "0", "What is 2+2?"]);
    shell.arg("--model-path").arg(model.path()).env("KRASIS_HOME", model.path().join("home"));
    shell.env("CUDA_VISIBLE_DEVICES", "");
    let (text, code) = said(&mut shell);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("no cache of weights: cannot write"), "{text}");
    assert!(text.contains("4.64 MiB would hold them") && text.contains('4'), "{text}");
    let left = krasis_checkpoint::cache::list(&model.path().join(".krasis_cache"));
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn a_lock_that_is_held_is_waited_for() {
    let model = model();
    done(&mut command(model.path(), &BUILD));
    let path = file(model.path());
    std::fs::remove_file(&path).unwrap();
    let lock = krasis_checkpoint::cache::Lock::take(&path).unwrap();
    let (text, code) = said(&mut command(model.path(), &["cache", "rm"]));
    assert!(code == Some(0) && text.contains("nothing is kept"), "{text}");
    let child = command(model.path(), &BUILD).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn();
    std::thread::sleep(Duration::from_millis(700));
    assert!(!path.exists());
    drop(lock);
    let output = child.unwrap().wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains(&format!("waiting for process {}", std::process::id())), "{log}");
    assert!(output.status.success() && path.exists(), "{log}");
}

//! What a GPU machine without Rust needs, in `.gpu/`: test programs, `krasis`, and a script.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Runs from the repository's root, beside fixtures and demo model.
const RUN: &str = include_str!("gpu_run.sh");

/// Builds, strips and collects.
pub fn gpu_pack(root: &Path) -> Result<ExitCode> {
    let tests = ["test", "--no-run", "-p", "krasis-cuda", "-p", "krasis-engine", "--test", "gpu"];
    let [vector, delta, attention, copies] = ["vector", "delta", "attention", "copies"]
        .map(|name| ["build", "-p", "krasis-cuda", "--example", name]);
    let folder = root.join(".gpu");
    fs::create_dir_all(&folder)?;
    for (built, name) in [
        (executable(&tests, "crates/krasis-cuda/")?, "ops"),
        (executable(&tests, "crates/krasis-engine/")?, "models"),
        (executable(&["build", "-p", "krasis"], "crates/krasis/")?, "krasis"),
        (executable(&vector, "crates/krasis-cuda/")?, "vector"),
        (executable(&delta, "crates/krasis-cuda/")?, "delta"),
        (executable(&attention, "crates/krasis-cuda/")?, "attention"),
        (executable(&copies, "crates/krasis-cuda/")?, "copies"),
    ] {
        let file = folder.join(name);
        let packed = folder.join(format!("{name}.gz"));
        // A program that runs cannot be overwritten, but it can be replaced.
        for old in [&file, &packed] {
            let _ = fs::remove_file(old);
        }
        fs::copy(&built, &file).with_context(|| format!("cannot copy {}", built.display()))?;
        // Without binutils the programs are larger, and work all the same.
        let _ = Command::new("strip").arg(&file).status();
        // Nor do they have to be packed, but what travels may be limited.
        let _ = Command::new("gzip").arg("-9").arg(&file).status();
        let file = if packed.exists() { packed } else { file };
        println!("{}: {} KiB", file.display(), fs::metadata(&file)?.len() >> 10);
    }
    fs::write(folder.join("run.sh"), RUN)?;
    println!("on the GPU machine, from the repository's root: bash .gpu/run.sh");
    Ok(ExitCode::SUCCESS)
}

/// Runs cargo in release mode and finds the program of the package in `folder`.
fn executable(arguments: &[&str], folder: &str) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(arguments).args(["--release", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo {} failed", arguments.join(" "));
    let found = String::from_utf8(output.stdout)?.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let source = message["target"]["src_path"].as_str()?;
        let program = message["executable"].as_str()?;
        source.contains(folder).then(|| PathBuf::from(program))
    });
    found.with_context(|| format!("cargo built no program of {folder}"))
}

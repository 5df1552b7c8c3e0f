//! Automation of the repository: `cargo xt tidy` checks its rules, `cargo xt readme` prints the
//! commands that its README promises, `cargo xt kernels` compiles the GPU's kernels,
//! `cargo xt gpu-pack` collects what a GPU machine needs to test them, and `cargo xt mutants` makes mistakes
//! that tests must notice.
#![forbid(unsafe_code)]

mod docs;
mod gpu_pack;
mod kernels;
mod layers;
mod mask;
mod mutants;
mod source;

use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// A rule that is broken, and where.
#[derive(Debug, PartialEq)]
struct Finding {
    file: String,
    line: usize,
    sentence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.sentence)
    }
}

fn main() -> Result<ExitCode> {
    let metadata = output("cargo", &["metadata", "--no-deps", "--format-version", "1"])?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let root = metadata["workspace_root"].as_str().context("cargo names the workspace's root")?;
    std::env::set_current_dir(root)?;
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy(&metadata, Path::new(root)),
        Some("readme") => {
            for command in docs::commands(&fs::read_to_string("README.md")?) {
                println!("{command}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Some("kernels") => {
            let target = metadata["target_directory"].as_str().context("cargo names a folder")?;
            kernels::kernels(Path::new(target))
        }
        Some("mutants") => {
            let target = metadata["target_directory"].as_str().context("cargo names a folder")?;
            let words = std::env::args().nth(2).unwrap_or_default();
            mutants::mutants(Path::new(root), Path::new(target), &words)
        }
        Some("gpu-pack") => gpu_pack::gpu_pack(Path::new(root)),
        _ => bail!("say `cargo xt tidy`, `readme`, `kernels`, `mutants` or `gpu-pack`"),
    }
}

/// Prints every broken rule; all files that git tracks, or would, are read.
fn tidy(metadata: &serde_json::Value, root: &Path) -> Result<ExitCode> {
    let crates = layers::crates(metadata, root)?;
    let mut findings = Vec::new();
    for krate in &crates {
        let manifest = fs::read_to_string(&krate.manifest)?;
        findings.extend(layers::check(krate, &manifest));
    }
    let listed = output("git", &["ls-files", "--cached", "--others", "--exclude-standard"])?;
    let files: Vec<&str> = listed.lines().filter(|file| Path::new(file).is_file()).collect();
    ensure!(!files.is_empty(), "git lists no files");
    for &file in files.iter().filter(|file| source::is_prose_or_code(file)) {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        findings.extend(source::check(file, &text));
        if file.ends_with(".md") {
            let exists = |target: &PathBuf| target.exists();
            findings.extend(docs::check_links(file, &text, exists));
        }
        let lines = text.lines().count();
        if file.ends_with(".rs") && lines > source::LONG {
            eprintln!("note: {file} has {lines} lines: is it still one idea?");
        }
    }
    findings.iter().for_each(|finding| println!("{finding}"));
    println!("tidy: {} crates, {} files, {} violations", crates.len(), files.len(), findings.len());
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn output(program: &str, args: &[&str]) -> Result<String> {
    let run = Command::new(program).args(args).output();
    let run = run.with_context(|| format!("cannot start {program}"))?;
    let complaint = String::from_utf8_lossy(&run.stderr);
    ensure!(run.status.success(), "{program} {}: {complaint}", args.join(" "));
    Ok(String::from_utf8(run.stdout)?)
}

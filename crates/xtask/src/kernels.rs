//! GPU kernels on machines without a GPU: the compiler comes from the Python registry.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The compiler; its version is part of the cache's keys.
const NVRTC: &str = "nvidia-cuda-nvrtc==13.5.37";

/// Ampere, its small siblings, Ada, Hopper, Blackwell's small siblings.
const ARCHS: [&str; 5] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"];

/// Compiles all kernels for all architectures; what has not changed is not compiled again.
pub fn kernels(target: &Path) -> Result<ExitCode> {
    let tools = target.join("tools");
    let compiler = nvrtc(&tools)?;
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "-q", "--release", "-p", "krasis-cuda", "--example", "kernels", "--"]);
    cargo.arg(tools.join("kernels")).args(ARCHS).env("LD_LIBRARY_PATH", compiler);
    let status = cargo.status().context("cannot start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The folder of libnvrtc, installed if need be. PYTHON names an interpreter that has pip.
fn nvrtc(tools: &Path) -> Result<PathBuf> {
    let packages = tools.join(NVRTC.replace("==", "-"));
    let libraries = packages.join("nvidia/cu13/lib");
    if !libraries.join("libnvrtc.so.13").is_file() {
        let python = std::env::var_os("PYTHON").unwrap_or("python3".into());
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "-q", "--disable-pip-version-check", "--target"]);
        let status = pip.arg(&packages).arg(NVRTC).status();
        let status = status.with_context(|| format!("cannot start {}", python.display()))?;
        ensure!(status.success(), "pip could not install {NVRTC}");
    }
    Ok(libraries)
}

//! Compiles every kernel for the architectures given, without a GPU, and prints registers, shared
//! memory and spills of those that were not in the cache: `kernels CACHE sm_80 sm_90 …`.
//! `cargo xt kernels` fetches the compiler and runs it.

use krasis_cuda::Limits;
use krasis_cuda::compile::{Cubin, Target, all};
use krasis_cuda::programs::Build;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let cache = arguments.next().expect("a folder for cubins");
    for arch in arguments {
        // The mode for comparisons shares everything but the element type: one architecture shows
        // that it compiles.
        for activation in if arch == "sm_80" { &["bf16", "float"][..] } else { &["bf16"] } {
            let options = ["-Xptxas=-v"];
            let cache = Some(Path::new(&cache));
            let limits = limits(&arch);
            let target = Target {
                arch: &arch,
                activation,
                limits,
                wanted: &wanted,
                cache,
                options: &options,
            };
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            match all(&target, threads) {
                Ok(cubins) => report(&arch, activation, &cubins),
                Err(error) => {
                    eprintln!("{error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}

/// Products in lines take long to compile, and groups differ in a few instructions: one shows that
/// they compile.
fn wanted(build: &Build) -> bool {
    let others = ["-DGROUP=32", "-DGROUP=64"];
    !build.defines.iter().any(|define| others.contains(&define.as_str()))
}

/// What blocks may have of shared memory: CUDA C++ Programming Guide, technical specifications per
/// compute capability. Multiprocessors change nothing that is compiled.
fn limits(arch: &str) -> Limits {
    let shared_max = match arch {
        "sm_80" => 163 << 10,
        "sm_90" => 227 << 10,
        "sm_86" | "sm_89" | "sm_120" => 99 << 10,
        other => panic!("no shared memory is known of {other}"),
    };
    Limits { processors: 1, shared_max }
}

fn report(arch: &str, activation: &str, cubins: &[Cubin]) {
    let compiled = cubins.iter().filter(|cubin| !cubin.log.is_empty()).count();
    println!("{arch}, {activation}: {} programs, {compiled} compiled", cubins.len());
    for cubin in cubins {
        let (mut entry, mut spills) = ("", "");
        for line in cubin.log.lines() {
            if line.contains("warning") {
                println!("    {}/{}: {line}", cubin.program.name, cubin.variant);
            } else if let Some((_, name)) = line.split_once("entry function '") {
                entry = name.split('\'').next().unwrap_or("");
            } else if let Some((_, frame)) = line.split_once("stack frame, ") {
                spills = frame;
            } else if let Some((_, used)) = line.split_once("Used ") {
                println!("    {entry}/{}: {used}; {spills}", cubin.variant);
            }
        }
    }
}

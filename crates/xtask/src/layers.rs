//! Which crate may use which: one table, compared with the manifests.

use crate::Finding;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;

/// What one crate may do. Whatever is not listed is not allowed.
pub struct Layer {
    /// Its name.
    pub name: &'static str,
    /// Crates of this workspace that it may use; `*` for all.
    uses: &'static [&'static str],
    /// Those that its tests may use besides.
    tests_use: &'static [&'static str],
    /// Where below its folder it may say `unsafe`: path prefixes, "" for everywhere.
    pub unsafe_in: &'static [&'static str],
    /// Whether it is a program, which may read the environment and use `anyhow`.
    pub program: bool,
}

const fn library(name: &'static str, uses: &'static [&'static str]) -> Layer {
    Layer { name, uses, tests_use: &[], unsafe_in: &[], program: false }
}

/// The architecture, bottom up.
pub const LAYERS: [Layer; 11] = [
    library("krasis-core", &[]),
    Layer { unsafe_in: &["src/mmap.rs"], ..library("krasis-checkpoint", &["krasis-core"]) },
    Layer { unsafe_in: &[""], ..library("krasis-cpu", &["krasis-core"]) },
    Layer { unsafe_in: &[""], ..library("krasis-ops", &["krasis-core", "krasis-cpu"]) },
    // Its tests run whole models on kernels that are compiled as C++.
    Layer {
        unsafe_in: &[""],
        tests_use: &["krasis-cpu", "krasis-engine"],
        ..library("krasis-cuda", &["krasis-core", "krasis-ops"])
    },
    Layer {
        tests_use: &["krasis-checkpoint", "krasis-cpu"],
        ..library("krasis-model", &["krasis-core", "krasis-ops"])
    },
    library(
        "krasis-engine",
        &[
            "krasis-checkpoint",
            "krasis-core",
            "krasis-cpu",
            "krasis-cuda",
            "krasis-model",
            "krasis-ops",
        ],
    ),
    library("krasis-text", &[]),
    library("krasis-server", &["krasis-engine", "krasis-text"]),
    Layer { program: true, ..library("krasis", &["*"]) },
    Layer { program: true, ..library("xtask", &[]) },
];

/// Crates from elsewhere that belong to some layers only, and why.
const KEPT: [(&[&str], &[&str], &str); 5] = [
    (
        &["tokio", "axum", "hyper", "tower", "tower-http"],
        &["krasis-server", "krasis"],
        "waiting and HTTP are the server's",
    ),
    (&["anyhow"], &["krasis", "xtask"], "a library's errors are typed values"),
    (
        &["serde_json"],
        &["krasis-checkpoint", "krasis-model", "krasis-text", "krasis-server", "krasis", "xtask"],
        "the engine knows no JSON",
    ),
    (&["cudarc"], &["krasis-cuda"], "the driver is the GPU's"),
    (&["memmap2", "safetensors"], &["krasis-checkpoint"], "files of weights are the checkpoint's"),
];

/// The row of a crate, if it has one.
pub fn layer(name: &str) -> Option<&'static Layer> {
    LAYERS.iter().find(|layer| layer.name == name)
}

/// What cargo says about one crate.
pub struct Crate {
    name: String,
    /// Path of its manifest from the workspace's root.
    pub manifest: String,
    /// Names, and whether they are for tests alone.
    dependencies: Vec<(String, bool)>,
}

/// The crates of `cargo metadata --no-deps`.
pub fn crates(metadata: &Value, root: &Path) -> Result<Vec<Crate>> {
    let one = |package: &Value| {
        let manifest = Path::new(package["manifest_path"].as_str()?);
        let dependencies = package["dependencies"].as_array()?.iter();
        Some(Crate {
            name: package["name"].as_str()?.to_owned(),
            manifest: manifest.strip_prefix(root).ok()?.to_str()?.replace('\\', "/"),
            dependencies: dependencies
                .map(|used| Some((used["name"].as_str()?.to_owned(), used["kind"] == "dev")))
                .collect::<Option<_>>()?,
        })
    };
    let packages = metadata["packages"].as_array().context("cargo lists packages")?;
    packages.iter().map(|package| one(package).context("cargo describes a package")).collect()
}

/// Compares one crate with its row, and its manifest with the workspace's conventions.
pub fn check(krate: &Crate, manifest: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |word: &str, sentence: String| {
        let line = 1 + manifest.lines().position(|line| line.starts_with(word)).unwrap_or(0);
        findings.push(Finding { file: krate.manifest.clone(), line, sentence });
    };
    let name = krate.name.as_str();
    let Some(layer) = layer(name) else {
        say("name", format!("{name} has no row in the table of crates/xtask/src/layers.rs"));
        return findings;
    };
    for (used, for_tests) in &krate.dependencies {
        let ours = self::layer(used).is_some() || used.starts_with("krasis");
        let tests_use = if *for_tests { layer.tests_use } else { &[] };
        let mut allowed = layer.uses.iter().chain(tests_use);
        if ours && !allowed.any(|&name| name == used || name == "*") {
            say(
                used,
                format!("{name} must not use {used}: see the table of crates/xtask/src/layers.rs"),
            );
        }
        for (kept, keepers, why) in KEPT {
            if kept.contains(&used.as_str()) && !keepers.contains(&name) && !for_tests {
                say(used, format!("{name} must not use {used}: {why}"));
            }
        }
    }
    for field in ["version", "edition", "rust-version", "license", "publish"] {
        if !manifest.lines().any(|line| line == format!("{field}.workspace = true")) {
            say(field, format!("{name} must inherit `{field}` from the workspace"));
        }
    }
    if !manifest.contains("[lints]\nworkspace = true") {
        say("[lints]", format!("{name} must inherit the workspace's lints"));
    }
    let mut section = "";
    for line in manifest.lines() {
        section = if line.starts_with('[') { line } else { section };
        let entry =
            section.ends_with("dependencies]") && line.contains('=') && !line.starts_with('#');
        if entry && !line.contains("workspace = true") {
            say(line, format!("{line}: the version belongs into the workspace's Cargo.toml"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{Crate, LAYERS, check, layer};

    const MANIFEST: &str = "[package]\nname = \"x\"\nversion.workspace = true\n\
        edition.workspace = true\nrust-version.workspace = true\nlicense.workspace = true\n\
        publish.workspace = true\n\n[lints]\nworkspace = true\n\n[dependencies]\nhalf.workspace = true\n";

    fn complaints(name: &str, dependencies: &[(&str, bool)], manifest: &str) -> Vec<String> {
        let dependencies = dependencies.iter().map(|&(name, dev)| (name.to_owned(), dev)).collect();
        let krate =
            Crate { name: name.to_owned(), manifest: "Cargo.toml".to_owned(), dependencies };
        check(&krate, manifest).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_table_is_ordered_so_that_no_cycle_is_possible() {
        for (i, layer) in LAYERS.iter().enumerate() {
            for used in layer.uses.iter().filter(|used| **used != "*") {
                assert!(
                    LAYERS[..i].iter().any(|below| below.name == *used),
                    "{} {used}",
                    layer.name
                );
            }
        }
    }

    #[test]
    fn dependencies_go_downwards() {
        for (name, used, dev, allowed) in [
            ("krasis-engine", "krasis-model", false, true),
            ("krasis-model", "krasis-engine", false, false),
            ("krasis-server", "krasis-core", false, false),
            ("krasis-text", "krasis-core", false, false),
            ("krasis-core", "xtask", false, false),
            ("krasis-model", "krasis-checkpoint", false, false),
            ("krasis-model", "krasis-checkpoint", true, true),
            ("krasis-core", "krasis-checkpoint", true, false),
            ("krasis-engine", "tokio", false, false),
            ("krasis-server", "tokio", false, true),
            ("krasis-engine", "serde_json", false, false),
            ("krasis-engine", "serde_json", true, true),
            ("krasis-cpu", "anyhow", false, false),
            ("krasis-engine", "half", false, true),
        ] {
            let found = complaints(name, &[(used, dev)], MANIFEST);
            assert_eq!(found.is_empty(), allowed, "{name} uses {used}: {found:?}");
        }
    }

    #[test]
    fn a_crate_needs_a_row() {
        assert!(layer("krasis-core").is_some());
        assert!(
            complaints("krasis-new", &[], MANIFEST)[0]
                .starts_with("Cargo.toml:2: krasis-new has no row")
        );
    }

    #[test]
    fn manifests_inherit() {
        let broken =
            |from: &str, to: &str| complaints("krasis-core", &[], &MANIFEST.replace(from, to));
        assert_eq!(broken("", ""), Vec::<String>::new());
        assert!(
            broken("license.workspace = true", "license = \"MIT\"")[0]
                .contains(":6: krasis-core must inherit `license`")
        );
        assert!(broken("[lints]\nworkspace = true", "[lints]")[0].contains("lints"));
        assert!(
            broken("half.workspace = true", "half = \"2\"")[0]
                .contains(":13: half = \"2\": the version")
        );
    }
}

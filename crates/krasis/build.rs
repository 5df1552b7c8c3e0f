//! Tells the program which commit it was built from, for `krasis bench` and `--version`.

use std::process::Command;

fn main() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // Without git, or outside a checkout, the version alone has to do.
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=10"]);
    println!("cargo::rustc-env=KRASIS_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    for file in ["HEAD", "logs/HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

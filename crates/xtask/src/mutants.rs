//! What must be noticed: `cargo xt mutants [WORDS]` makes one mistake after the other in a copy of the last
//! commit, and runs the tests that should fail of it. That takes some minutes a mistake, so CI only looks
//! whether each can still be made.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

/// A mistake of one line in how experts are brought and who computes them.
struct Mutant {
    name: &'static str,
    file: &'static str,
    /// Stands once in the file.
    right: &'static str,
    wrong: &'static str,
    /// What notices: arguments of `cargo test`, which builds parts of crates anew.
    tests: &'static str,
}

const fn mutant(
    name: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    tests: &'static str,
) -> Mutant {
    Mutant { name, file, right, wrong, tests }
}

const STRATEGIES: &str = "-p krasis-engine --test strategies -- every_strategy one_conversation";
const OVERFLOW: &str = "-p krasis-engine --test overflow";
const RANKS: &str = "-p krasis-engine --test ranks";
/// Copies come as late as they may there.
const LATE: &str = "-p krasis-cuda --test emulated_models -- experts_are_waited beside_a_prompt \
                    strategies_change";

const AWAY: &str = "crates/krasis-engine/src/experts/away.rs";
const TOGETHER: &str = "crates/krasis-engine/src/experts/away/together.rs";
const SWAP: &str = "crates/krasis-engine/src/experts/away/swap.rs";
const HELPERS: &str = "crates/krasis-engine/src/experts/away/helpers.rs";
const SLOTS: &str = "crates/krasis-engine/src/experts/slots.rs";
const ON_DISK: &str = "crates/krasis-engine/src/experts/overflow/mod.rs";
const COMBINE: &str = "crates/krasis-ops/src/combine/mod.rs";
const MEMORY: &str = "crates/krasis-ops/src/memory.rs";

const MUTANTS: &[Mutant] = &[
    mutant("copies are not waited for", AWAY, "        d.brought();\n", "", LATE),
    mutant(
        "what was brought is not noted as on its way",
        AWAY,
        "        self.pending |= !self.brought.is_empty();\n",
        "",
        LATE,
    ),
    mutant(
        "swapped experts are used at once",
        TOGETHER,
        "&& !self.coming.contains(&slot)",
        "",
        LATE,
    ),
    mutant(
        "steps beside a prompt use what is on its way",
        TOGETHER,
        "&& (!self.open || self.slots.is_hot(slot))",
        "",
        LATE,
    ),
    mutant(
        "the device is not told what has moved",
        AWAY,
        "        self.moved |= !self.brought.is_empty();\n",
        "",
        STRATEGIES,
    ),
    mutant(
        "the next layers take the slots of those at work",
        AWAY,
        "self.slots.is_hot(slot) || self.slots.holder(slot).is_some_and(needed)",
        "self.slots.is_hot(slot) || { let _ = needed; false }",
        STRATEGIES,
    ),
    mutant(
        "the next layers come without room for both",
        AWAY,
        "if self.moving() >= self.missing_of(both.clone())",
        "if self.missing_of(both.clone()) < usize::MAX",
        STRATEGIES,
    ),
    mutant(
        "who is evicted seems to be there",
        SLOTS,
        "            self.slot_of[before as usize] = NONE;\n",
        "",
        STRATEGIES,
    ),
    mutant(
        "slots in use are given away",
        SLOTS,
        ".filter(|slot| age(slot) <= since + 1)",
        ".filter(|slot| age(slot) <= u64::MAX - since)",
        STRATEGIES,
    ),
    mutant(
        "the CPU's pairs are forgotten",
        TOGETHER,
        "        if mine > 0 {",
        "        if mine > 1 {",
        STRATEGIES,
    ),
    mutant(
        "the CPU's empty rows replace the device's",
        MEMORY,
        "        if *place != ABSENT {\n            d.upload_act",
        "        if *place <= ABSENT {\n            d.upload_act",
        STRATEGIES,
    ),
    mutant(
        "the scale is applied twice",
        COMBINE,
        "add_scaled(sum, scale * weight,",
        "add_scaled(sum, scale * scale * weight,",
        STRATEGIES,
    ),
    mutant(
        "no scale is applied",
        COMBINE,
        "add_scaled(sum, scale * weight,",
        "add_scaled(sum, scale * 0.0 + weight,",
        STRATEGIES,
    ),
    mutant(
        "the shared expert is added twice",
        COMBINE,
        "add_scaled(sum, gate, inputs.row(shared.out, row as u32));",
        "add_scaled(sum, 2.0 * gate, inputs.row(shared.out, row as u32));",
        STRATEGIES,
    ),
    mutant(
        "what helpers have computed is not taken",
        HELPERS,
        "            d.take_rows(back, shaped(home.places, &work).whole(), work.out);\n",
        "",
        RANKS,
    ),
    mutant(
        "half an expert from the disk counts as there",
        ON_DISK,
        "slots.find(index, *expert).filter(|&slot| coming[slot as usize] == 0)",
        "slots.find(index, *expert).filter(|&slot| coming[slot as usize] <= 1)",
        OVERFLOW,
    ),
    mutant(
        "an expert that could not be read counts as there",
        ON_DISK,
        "            self.slots.empty(slot);\n        }\n        result",
        "        }\n        result",
        OVERFLOW,
    ),
    mutant("the device is not told of swaps", SWAP, "        self.moved = true;\n", "", LATE),
    mutant(
        "a slot is filled without a word",
        SWAP,
        "            self.slots.put(slot, index, expert);\n",
        "",
        LATE,
    ),
];

impl Mutant {
    /// The file's text with the mistake in it.
    fn made(&self, text: &str) -> Result<String> {
        let found = text.matches(self.right).count();
        ensure!(found == 1, "'{}': its line stands {found} times in {}", self.name, self.file);
        Ok(text.replace(self.right, self.wrong))
    }
}

/// Makes those whose name has `words` in it, all without any.
pub fn mutants(root: &Path, target: &Path, words: &str) -> Result<ExitCode> {
    let tree = target.join("mutants");
    let git = |arguments: &[&str]| Command::new("git").current_dir(root).args(arguments).output();
    let path = tree.to_str().context("a folder whose name is text")?;
    // What an interrupted run has left.
    let _ = git(&["worktree", "remove", "--force", path]);
    let made = git(&["worktree", "add", "--detach", path, "HEAD"])?;
    ensure!(made.status.success(), "no worktree: {}", String::from_utf8_lossy(&made.stderr));
    let mut unnoticed = 0;
    for mutant in MUTANTS.iter().filter(|mutant| mutant.name.contains(words)) {
        let file = tree.join(mutant.file);
        let right = fs::read_to_string(&file)?;
        fs::write(&file, mutant.made(&right)?)?;
        // Tests come before what is for them alone.
        let (built, _) = mutant.tests.split_once(" -- ").unwrap_or((mutant.tests, ""));
        let cargo = |more: &[&str], tests: &str| {
            // Some mistakes have whoever waits wait for ever.
            let mut cargo = Command::new("timeout");
            cargo.args(["900", "cargo", "test", "-q"]).args(more);
            cargo.args(tests.split_whitespace()).env("CARGO_TARGET_DIR", target);
            cargo.current_dir(&tree).output()
        };
        let built = cargo(&["--no-run"], built)?;
        let said = || String::from_utf8_lossy(&built.stderr).into_owned();
        ensure!(built.status.success(), "'{}' does not compile: {}", mutant.name, said());
        let noticed = !cargo(&[], mutant.tests)?.status.success();
        println!("{}: {}", if noticed { "noticed" } else { "NOT NOTICED" }, mutant.name);
        unnoticed += u32::from(!noticed);
        fs::write(&file, right)?;
    }
    git(&["worktree", "remove", "--force", path])?;
    Ok(if unnoticed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_can_be_made() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for mutant in MUTANTS {
            let text = fs::read_to_string(root.join(mutant.file)).unwrap();
            assert_ne!(mutant.made(&text).unwrap(), text, "{}", mutant.name);
        }
    }
}

//! Rules on the text of source files.

use crate::layers::{Layer, layer};
use crate::{Finding, mask};

/// Lines from which a file is worth a second look.
pub const LONG: usize = 400;

/// Words of code that some crates must not say, and why.
struct Ban {
    words: &'static [&'static str],
    /// Whether the file at this path below its crate's folder is exempt.
    exempt: fn(&Layer, &str) -> bool,
    /// Whether tests may say them.
    tests_may: bool,
    why: &'static str,
}

const BANS: [Ban; 5] = [
    Ban {
        words: &["unsafe"],
        exempt: |layer, path| layer.unsafe_in.iter().any(|part| path.starts_with(part)),
        tests_may: false,
        why: "unsafe code lives where the table of crates/xtask/src/layers.rs says",
    },
    Ban {
        words: &["std::fs", "fs::", "File::", "OpenOptions"],
        exempt: |layer, _| layer.name != "krasis-model",
        tests_may: true,
        why: "krasis-model describes and computes; it opens no files",
    },
    Ban {
        words: &["(feature =", "(feature=", ", feature ="],
        exempt: |_, _| false,
        tests_may: false,
        why: "there is one build: what a machine has is found out when the program starts",
    },
    Ban {
        words: &["env::var", "env::vars", "env::var_os"],
        exempt: |layer, _| layer.program,
        tests_may: true,
        why: "only programs read the environment; pass the value down",
    },
    Ban {
        words: &["todo!", "unimplemented!"],
        exempt: |_, _| false,
        tests_may: false,
        why: "finish it, or refuse with an error that says what is not supported",
    },
];

/// Whether the rules read this file.
pub fn is_prose_or_code(file: &str) -> bool {
    let kinds = ["rs", "md", "toml", "py", "sh", "cu", "cuh", "yml", "yaml"];
    file == ".ci/run" || kinds.iter().any(|kind| file.ends_with(&format!(".{kind}")))
}

/// All broken rules of the file at `file` from the workspace's root.
pub fn check(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |line: usize, sentence: &str| {
        findings.push(Finding { file: file.to_owned(), line, sentence: sentence.to_owned() });
    };
    for mark in [["TO", "DO"].concat(), ["FIX", "ME"].concat()] {
        for line in lines_with(text, &mark) {
            say(line, &format!("{mark}: do it now, or describe the limit where users look"));
        }
    }
    let mut parts = file.splitn(3, '/');
    if let (Some("crates"), Some(name), Some(path)) = (parts.next(), parts.next(), parts.next())
        && path.ends_with(".rs")
        && let Some(layer) = layer(name)
    {
        check_rust(layer, path, text, say);
    }
    findings
}

fn check_rust(layer: &Layer, path: &str, text: &str, mut say: impl FnMut(usize, &str)) {
    let opening = text.lines().next().and_then(|line| line.strip_prefix("//! "));
    if opening.is_none_or(|sentence| !sentence.contains(' ')) {
        say(1, "a file opens with a `//!` sentence that says what it is about");
    }
    let code = mask::code(text);
    let untested = if is_test(path) { "" } else { before_tests(&code) };
    for ban in BANS.iter().filter(|ban| !(ban.exempt)(layer, path)) {
        for word in ban.words {
            for line in lines_with(if ban.tests_may { untested } else { &code }, word) {
                say(line, &format!("`{word}`: {}", ban.why));
            }
        }
    }
    let lint = match layer.unsafe_in {
        [] => "#![forbid(unsafe_code)]",
        [""] => "",
        // Its own files of unsafe code could not allow what is forbidden.
        _ => "#![deny(unsafe_code)]",
    };
    if ["src/lib.rs", "src/main.rs"].contains(&path) && !code.contains(lint) {
        say(1, &format!("{} must say `{lint}`", layer.name));
    }
}

/// Lines, from 1, where `word` stands by itself.
fn lines_with(text: &str, word: &str) -> Vec<usize> {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let alone = |&(at, _): &(usize, &str)| {
        let before = part(word.chars().next()) && part(text[..at].chars().next_back());
        let after = part(word.chars().next_back()) && part(text[at + word.len()..].chars().next());
        !before && !after
    };
    text.match_indices(word)
        .filter(alone)
        .map(|(at, _)| 1 + text[..at].matches('\n').count())
        .collect()
}

/// Whether a whole file is test code.
fn is_test(path: &str) -> bool {
    ["tests/", "benches/"].iter().any(|part| path.starts_with(part))
        || ["/tests.rs", "/testing.rs"].iter().any(|name| path.ends_with(name))
}

/// What stands above the `mod tests {` of a file; tests come last.
fn before_tests(code: &str) -> &str {
    let inline = |&(at, mark): &(usize, &str)| {
        let next = code[at + mark.len()..].trim_start();
        let end = next.find(['{', ';']).unwrap_or(0);
        next.starts_with("mod ") && next[end..].starts_with('{')
    };
    code.match_indices("#[cfg(test)]").find(inline).map_or(code, |(at, _)| &code[..at])
}

#[cfg(test)]
mod tests {
    use super::{check, is_prose_or_code};

    /// Lines that are complained about.
    fn lines(file: &str, text: &str) -> Vec<usize> {
        check(file, text).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn words_are_banned_where_the_table_says() {
        let uses_unsafe = "//! A file.\n// unsafe in a comment\nlet x = unsafe { y };\n";
        let opens = "//! A file.\nuse std::fs;\n#[cfg(test)]\nmod testing;\nlet a = fs::read(b);\n\
            #[cfg(test)]\nmod tests { fn f() { fs::read(c) } }\n";
        let environment = "//! A file.\nlet home = std::env::var(\"HOME\");\n";
        for (file, text, expected) in [
            ("crates/krasis-text/src/stop.rs", uses_unsafe, vec![3]),
            ("crates/krasis-text/tests/stop.rs", uses_unsafe, vec![3]),
            ("crates/krasis-checkpoint/src/gguf.rs", uses_unsafe, vec![3]),
            ("crates/krasis-checkpoint/src/mmap.rs", uses_unsafe, vec![]),
            ("crates/krasis-cpu/src/team.rs", uses_unsafe, vec![]),
            ("crates/krasis-ops/src/linear/cpu.rs", uses_unsafe, vec![]),
            ("crates/krasis-model/src/source.rs", opens, vec![2, 5]),
            (
                "crates/krasis-model/src/x.rs",
                "//! A file.\n#[cfg(test)]\nmod t;\nuse std::fs;",
                vec![4],
            ),
            ("crates/krasis-model/tests/golden.rs", opens, vec![]),
            ("crates/krasis-checkpoint/src/source.rs", opens, vec![]),
            ("crates/krasis-engine/src/plan.rs", environment, vec![2]),
            ("crates/krasis-engine/tests/plan.rs", environment, vec![]),
            ("crates/krasis/src/options.rs", environment, vec![]),
            (
                "crates/krasis/src/x.rs",
                "//! A file.\n#[cfg(feature = \"cuda\")]\nfn f() {}",
                vec![2],
            ),
            (
                "crates/krasis-cpu/src/x.rs",
                "//! A file.\n#[cfg(target_feature = \"avx2\")]",
                vec![],
            ),
            ("crates/krasis/src/x.rs", "//! A file.\nfn f() { todo!() }", vec![2]),
        ] {
            assert_eq!(lines(file, text), expected, "{file}");
        }
    }

    #[test]
    fn roots_forbid_unsafe_code() {
        for (file, lint, expected) in [
            ("crates/krasis-core/src/lib.rs", "#![forbid(unsafe_code)]", vec![]),
            ("crates/krasis-core/src/lib.rs", "", vec![1]),
            ("crates/krasis-core/src/lib.rs", "// #![forbid(unsafe_code)]", vec![1]),
            ("crates/krasis/src/main.rs", "#![deny(unsafe_code)]", vec![1]),
            ("crates/krasis-checkpoint/src/lib.rs", "#![deny(unsafe_code)]", vec![]),
            ("crates/krasis-cpu/src/lib.rs", "", vec![]),
            ("crates/krasis-core/src/slot.rs", "", vec![]),
        ] {
            assert_eq!(lines(file, &format!("//! A file.\n{lint}\n")), expected, "{file} {lint}");
        }
    }

    #[test]
    fn files_open_with_a_sentence_and_leave_nothing_for_later() {
        let file = "crates/krasis-cpu/src/x.rs";
        assert_eq!(lines(file, "use a;\n"), [1]);
        assert_eq!(lines(file, "//! placeholder\n"), [1]);
        assert!(lines(file, "//! Pinned threads.\n").is_empty());
        let later = ["//! A file.\n// TO", "DO: more\n"].concat();
        assert_eq!(lines(file, &later), [2]);
        assert_eq!(lines("notes.md", &later), [2]);
        assert!(is_prose_or_code("README.md") && !is_prose_or_code("model/tokenizer.json"));
    }
}

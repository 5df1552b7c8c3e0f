//! Markdown: links that lead somewhere, and the commands of the README.

use crate::Finding;
use std::path::{Path, PathBuf};

/// The lines of the ```` ```sh ```` blocks that run something, in order.
pub fn commands(markdown: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let (mut inside, mut continued) = (false, false);
    for line in markdown.lines().map(str::trim) {
        if line.starts_with("```") {
            inside = !inside && line == "```sh";
            continued = false;
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let (part, goes_on) =
                line.strip_suffix('\\').map_or((line, false), |part| (part, true));
            match commands.last_mut() {
                Some(last) if continued => last.push_str(part),
                _ => commands.push(part.to_owned()),
            }
            continued = goes_on;
        }
    }
    commands
}

/// Relative links of `markdown`, a file at `file`, whose target does not exist.
pub fn check_links(file: &str, markdown: &str, exists: impl Fn(&PathBuf) -> bool) -> Vec<Finding> {
    let folder = Path::new(file).parent().unwrap_or(Path::new(""));
    let mut findings = Vec::new();
    let mut fenced = false;
    for (i, line) in markdown.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        // Every second part between backticks is code.
        let prose = line.split('`').step_by(2).collect::<Vec<_>>().join("_");
        for link in prose.split("](").skip(1).filter(|_| !fenced) {
            let target = link.split([')', ' ', '#']).next().unwrap_or("");
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if !target.is_empty() && !elsewhere && !exists(&folder.join(target)) {
                let sentence = format!("the link to {target} leads nowhere");
                findings.push(Finding { file: file.to_owned(), line: i + 1, sentence });
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{check_links, commands};

    #[test]
    fn commands_are_the_lines_of_shell_blocks() {
        let readme = "```rust\nlet x;\n```\n```sh\n# why\ncargo run\n\ncargo test \\\n  --release\n```\n\
            cargo no\n```\ncargo output\n```\n```sh\nlast\n```\n";
        assert_eq!(commands(readme), ["cargo run", "cargo test --release", "last"]);
    }

    #[test]
    fn links_lead_to_files() {
        let text = "[a](b.md) [c](gone.md#part)\n[w](https://x.org) [h](#here) `[x](gone.md)`\n\
            ```\n[f](gone.md)\n```\n[`code`](../e.md \"title\") [g](gone.rs)\n";
        let there = ["docs/b.md", "docs/../e.md"];
        let found =
            check_links("docs/a.md", text, |target| there.iter().any(|t| target.as_os_str() == *t));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "docs/a.md:1: the link to gone.md leads nowhere",
                "docs/a.md:6: the link to gone.rs leads nowhere"
            ]
        );
    }
}

//! SECURITY.md promises nothing without a test.

use std::path::Path;

/// Everything that Rust files below a folder say.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &std::fs::read_to_string(&path).unwrap();
        }
    }
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let promises = std::fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let mut tests = String::new();
    sources(&root.join("crates"), &mut tests);
    let mut rows = 0;
    for row in promises.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let named = row.trim_end_matches([' ', '|']).rsplit(" | ").next().unwrap();
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named: {row}");
        for name in names {
            let found = match name.contains('/') {
                true => root.join(name).is_file(),
                false => {
                    tests.contains(&format!("#[test]\nfn {name}("))
                        || tests.contains(&format!("    async fn {name}("))
                        || tests.contains(&format!("    #[test]\n    fn {name}("))
                }
            };
            assert!(found, "there is no test {name}: {row}");
        }
        rows += 1;
    }
    assert!(rows > 10, "{rows} promises were found");
}

//! What is true of the files themselves.

use super::{ASSETS, Asset, HTML, SCRIPT};
use std::collections::HashSet;
use std::path::Path;

fn text(asset: &Asset) -> &'static str {
    std::str::from_utf8(asset.bytes).unwrap()
}

#[test]
fn every_file_of_the_folder_is_served() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
    let files = std::fs::read_dir(folder).unwrap();
    let there: HashSet<String> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let served: HashSet<String> = ASSETS.iter().map(|asset| asset.name.to_owned()).collect();
    assert_eq!(served, there);
    assert!(served.len() == ASSETS.len(), "each once");
}

/// The name of a namespace, which nobody loads.
const NAMESPACE: &str = "http://www.w3.org/2000/svg";

#[test]
fn nothing_comes_from_elsewhere() {
    for asset in &ASSETS {
        let text = text(asset).replace(NAMESPACE, "");
        for remote in ["http://", "https://", "\"//", "'//", "(//", "data:image", "@import"] {
            assert!(!text.contains(remote), "{remote} in {}", asset.name);
        }
    }
}

#[test]
fn nothing_is_inline_and_no_text_becomes_html() {
    for asset in &ASSETS {
        let text = text(asset);
        if asset.kind == HTML {
            assert_eq!(
                text.matches("<script").count(),
                text.matches("<script type=\"module\" src=").count()
            );
            for inline in [" style=", "<style", " onclick", " onload", "javascript:"] {
                assert!(!text.contains(inline), "{inline} in {}", asset.name);
            }
        }
        for parsing in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!text.contains(parsing), "{parsing} in {}", asset.name);
        }
        assert!(!text.contains("setAttribute(\"style"), "{}", asset.name);
    }
}

/// Whatever a file asks for is there.
#[test]
fn files_name_files_that_exist() {
    let known = |name: &str| ASSETS.iter().any(|asset| asset.name == name);
    let mut seen = 0;
    for asset in &ASSETS {
        let text = text(asset);
        let (begin, end) =
            if asset.kind == SCRIPT { ("from \"./", '"') } else { ("=\"page/", '"') };
        for name in text.split(begin).skip(1).map(|rest| rest.split(end).next().unwrap()) {
            assert!(known(name), "{name} in {}", asset.name);
            seen += 1;
        }
    }
    assert!(seen > 12, "{seen}");
}

/// Every element that a script asks for by id is in the page.
#[test]
fn scripts_ask_for_elements_that_exist() {
    let page = text(&ASSETS[0]);
    let made_by_scripts = ["edit"];
    let mut seen = 0;
    for asset in ASSETS.iter().filter(|asset| asset.kind == SCRIPT) {
        for id in text(asset).split("byId(\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            let there = page.contains(&format!("id=\"{id}\"")) || made_by_scripts.contains(&id);
            assert!(there, "{id} in {}", asset.name);
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn the_page_is_small() {
    let bytes: usize = ASSETS.iter().map(|asset| asset.bytes.len()).sum();
    assert!(bytes < 100_000, "{bytes} bytes");
}

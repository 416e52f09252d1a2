//! Tests that each layer imports only from the layers listed for it here.

use std::{collections::BTreeSet, fs, path::Path};

/// Each layer, with the layers that it may import.
const LAYERS: [(&str, &[&str]); 6] = [
    ("domain", &[]),
    ("message", &["domain"]),
    ("settings", &["domain", "message"]),
    ("process", &["domain", "message", "settings"]),
    ("broker", &["domain", "message", "settings", "process"]),
    ("database", &["domain", "message", "settings", "process"]),
];

/// Every Rust file of a layer: `layer.rs` and all below `layer/`.
fn files(path: &Path, found: &mut Vec<(String, String)>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push((path.display().to_string(), fs::read_to_string(path).unwrap()));
    }
}

/// The layers that a file names after `crate::`, also within braces.
fn imports(text: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let mut depth = 0_u32;
        // True at the start, and after each comma of the outermost braces.
        let mut begins = true;
        for (place, letter) in rest.char_indices() {
            if begins && letter.is_ascii_alphabetic() {
                let end =
                    rest[place..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(rest.len(), |end| place + end);
                found.insert(&rest[place..end]);
                begins = false;
            }
            match letter {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                ',' if depth == 1 => begins = true,
                _ => {}
            }
            if depth == 0 && (!begins || letter == '}') {
                break;
            }
        }
    }
    found
}

#[test]
fn each_layer_imports_only_from_those_below_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (layer, may) in LAYERS {
        let mut found = Vec::new();
        files(&source.join(format!("{layer}.rs")), &mut found);
        if source.join(layer).exists() {
            files(&source.join(layer), &mut found);
        }
        for (path, text) in found {
            for other in imports(&text).into_iter().filter(|other| *other != layer) {
                assert!(may.contains(&other), "{path} imports crate::{other}; {layer} may import {may:?}");
            }
        }
    }
}

#[test]
fn imports_are_found_within_braces_and_without() {
    assert_eq!(imports("use crate::database::connect;"), BTreeSet::from(["database"]));
    let nested = "use crate::{\n    message::{topology::Topology, wakeup},\n    domain::task, settings,\n};\nuse std::{fs};";
    assert_eq!(imports(nested), BTreeSet::from(["message", "domain", "settings"]));
}

//! Tests that no two files of the workspace define a type with the same name, so that one name means one thing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The names that sea-orm gives to the types of each entity.
const OF_ENTITIES: [&str; 5] = ["ActiveModel", "Column", "Entity", "Model", "Relation"];
/// The associated types of standard traits.
const OF_TRAITS: [&str; 5] = ["Err", "Error", "Item", "Output", "Target"];

/// Every Rust file below a folder, except what cargo builds.
fn files(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, found);
            }
        } else if name.ends_with(".rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The type that a line defines.
fn defined(line: &str) -> Option<&str> {
    let mut line = line.trim_start();
    if let Some(rest) = line.strip_prefix("pub") {
        line = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(rest, |(_, rest)| rest).trim_start();
    }
    let line = line.strip_prefix("unsafe ").unwrap_or(line);
    let rest = ["struct ", "enum ", "trait ", "type ", "union "].iter().find_map(|keyword| line.strip_prefix(keyword))?;
    let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    name.starts_with(char::is_uppercase).then_some(name)
}

/// The names that more than one of the files defines, with these files.
fn repeated(files: &[(String, String)]) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut places = BTreeMap::<_, BTreeSet<_>>::new();
    for (path, text) in files {
        let names = text.lines().filter_map(defined).filter(|name| !OF_TRAITS.contains(name));
        for name in names.filter(|name| !(path.contains("/database/entity/") && OF_ENTITIES.contains(name))) {
            places.entry(name).or_default().insert(path.as_str());
        }
    }
    places.retain(|_, paths| paths.len() > 1);
    places
}

#[test]
fn no_two_files_define_a_type_with_the_same_name() {
    let mut found = Vec::new();
    files(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap(), &mut found);
    assert!(found.len() > 200, "only {} files", found.len());
    let repeated = repeated(&found);
    assert!(repeated.is_empty(), "give each type a name of its own: {repeated:#?}");
}

#[test]
fn a_repeated_name_is_found_however_it_is_defined() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let own = file("a.rs", "pub(crate) struct Queue;\npub enum Rung {}\n// struct Lane;\n    type Err = ();\n");
    let other = file("b.rs", "fn f() {\n    struct Queue {}\n}\ntype Rung<'a> = &'a str;\nstruct Lane;\ntype Err = ();\n");
    assert_eq!(repeated(&[own, other]).into_keys().collect::<Vec<_>>(), ["Queue", "Rung"]);
    let entities = ["x/database/entity/a.rs", "x/database/entity/b.rs", "x/c.rs"].map(|path| file(path, "pub struct Model {}\n"));
    assert!(repeated(&entities).is_empty(), "outside of the entities the name occurs once");
}

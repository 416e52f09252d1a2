//! The claims of `fuzz/` without its tools: over the inputs in `fuzz/seeds/`, and over so many mutations of them, the same in every
//! run. Searching for new inputs is libFuzzer's work (`make fuzz`), which takes minutes to build.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets an error has failed")]

use std::{fs, panic, path::Path};

use rand::{RngExt, SeedableRng, rngs::StdRng};

#[path = "../../fuzz/src/lib.rs"]
mod claims;

/// Mutations of each target's seeds: a few seconds in all.
const MUTATIONS: u32 = 100_000;
/// Most changes to one input.
const CHANGES_MAX: u32 = 8;

/// One test for all: memory is counted for the whole process, so nothing else may run beside it.
#[test]
fn any_bytes_are_understood_or_refused_without_a_panic_and_within_the_messages_size() {
    for (name, claim) in claims::claims() {
        let seeds = seeds(name);
        assert!(seeds.len() >= 12, "{name} has {} seeds", seeds.len());
        for input in seeds.iter().chain(&long()) {
            check(name, claim, input);
        }
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..MUTATIONS {
            let mut input = seeds[random.random_range(0..seeds.len())].clone();
            for _ in 0..random.random_range(1..=CHANGES_MAX) {
                change(&mut input, &seeds, &mut random);
            }
            check(name, claim, &input);
        }
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a seed")).collect()
}

/// Inputs as long as a wake-up may be, or as a frame, which mutations do not grow to.
fn long() -> Vec<Vec<u8>> {
    let body = |kind: &str, subjects: &str| {
        let rest = r#""due_at":"2026-11-24T05:06:07Z","attempt":0"#;
        format!(r#"{{"v":1,"id":"00000000-0000-0000-0000-000000000001","kind":"{kind}",{rest},"subjects":[{subjects}]}}"#)
    };
    let subject = |n: u32| format!(r#""00000000-0000-0000-0000-{n:012}""#);
    let subjects = |count: u32| (0..count).map(subject).collect::<Vec<_>>().join(",");
    let mut headers = b"key\x1ebody\x1e\x05mineyS\0\0\xc3\x50".to_vec();
    headers.resize(headers.len() + 50_000, b'x');
    vec![
        body("confirm-receipt", &subjects(1_000)).into_bytes(),
        body("confirm-receipt", &subjects(1_600)).into_bytes(),
        body(&"\\n".repeat(30_000), &subjects(1)).into_bytes(),
        body(&format!("\\n{}", "x".repeat(60_000)), &subjects(1)).into_bytes(),
        format!(r#"{{"v":"{}"}}"#, "\x7f".repeat(60_000)).into_bytes(),
        format!(r#""{}""#, "\x7f".repeat(65_000)).into_bytes(),
        body("confirm-receipt", &subjects(1))
            .replace('[', &format!("\"{}", "\x7f".repeat(60_000)))
            .replace(']', "\"")
            .into_bytes(),
        "[".repeat(70_000).into_bytes(),
        "\u{1ebf}".repeat(40_000).into_bytes(),
        headers,
    ]
}

fn check(name: &str, claim: claims::Claim, input: &[u8]) {
    if let Err(broken) = panic::catch_unwind(|| claim(input)) {
        eprintln!("{name} does not hold for b\"{}\"", input.escape_ascii());
        panic::resume_unwind(broken);
    }
}

/// What fuzzers do: a bit, a byte, a piece less, a piece twice, a piece of another seed, a number next to it.
fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut StdRng) {
    let piece = |of: &[u8], random: &mut StdRng| {
        let from = random.random_range(0..=of.len());
        let to = random.random_range(from..=of.len().min(from + 64));
        of[from..to].to_vec()
    };
    let at = random.random_range(0..=input.len());
    match random.random_range(0..6) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = random.random(),
        2 => drop(input.splice(at..(at + random.random_range(0..32)).min(input.len()), [])),
        3 => {
            let twice = piece(input, random);
            input.splice(at..at, twice);
        }
        4 => {
            let other = piece(&seeds[random.random_range(0..seeds.len())], random);
            input.splice(at..at, other);
        }
        _ if at < input.len() => input[at] = input[at].wrapping_add(1),
        _ => input.push(random.random()),
    }
}

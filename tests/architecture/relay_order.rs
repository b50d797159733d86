//! Dependency order of the files in `src/relay`.
//!
//! Owns that order. Most of the files implement one type, so neither the compiler nor the
//! imports show which file calls which: a call of a method of `Relay` counts as a dependency
//! on the file that defines it. The type itself may be named everywhere.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;

use super::source::{calls_of_self, lex, mentions, method_names, module_of, remove_test_items};

/// A file with the folder of its name, and below it all that it may depend on.
const ORDER: &[&str] = &[
    "keyed_hash",
    "conn_id",
    "ping_phase",
    "counts",
    "envelope",
    "admission",
    "stats",
    "push_wake",
    "warnings",
    "slots",
    "connections",
    "notice",
    "closing",
    "forward",
    "follow_ups",
    "proxied",
    "refusals",
    "gates",
    "deadlines",
    "snapshot",
    "invariants",
    "relay",
    "state",
];

#[test]
fn files_of_the_relay_depend_on_files_below_them_only() {
    let mut files = Vec::new();
    super::collect("src/relay", &mut files);
    let place = |path: &str| {
        let name = path["src/relay/".len()..].trim_end_matches(".rs");
        let name = name.split('/').next().unwrap_or(name);
        ORDER.iter().position(|it| *it == name).unwrap_or_else(|| panic!("{path} has no place"))
    };
    let mut parsed = Vec::new();
    let mut defined = HashMap::new();
    for path in files.iter().filter(|path| !path.ends_with("tests.rs")) {
        let mut tokens = lex(&fs::read_to_string(path).expect("a source file is readable"));
        remove_test_items(&mut tokens);
        for name in method_names(&tokens, "Relay") {
            defined.insert(name.to_owned(), place(path));
        }
        parsed.push((path, tokens));
    }
    assert!(defined.len() > 20, "methods are not found any more: {defined:?}");

    let mut report = String::new();
    for (path, tokens) in parsed {
        let here = place(path);
        let named = mentions(&tokens, &module_of(path)).into_iter().filter_map(|mention| {
            let [krate, layer, file, rest @ ..] = &*mention.path else { return None };
            let is_type = rest.len() == 1 && rest[0] == "Relay";
            let is_file = krate == "crate" && layer == "relay" && !is_type;
            let there = ORDER.iter().position(|it| is_file && it == file)?;
            Some((mention.line, there))
        });
        let called = calls_of_self(&tokens)
            .filter(|_| !method_names(&tokens, "Relay").is_empty())
            .filter_map(|(line, name)| Some((line, *defined.get(name)?)));
        for (line, there) in named.chain(called).filter(|(_, there)| *there > here) {
            let _ = writeln!(report, "{path}:{line}: depends on {}", ORDER[there]);
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

//! Imports between the parts of `src/server`.
//!
//! Owns the list of them. A part is a file with the folder of its name. `src/server.rs`
//! declares the parts and re-exports names for other layers; no part imports from it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use super::source::{lex, mentions, module_of, remove_test_items};

/// Each part with the parts that it imports, which stand above it: so there is no cycle.
const IMPORTS: &Imports<'_> = &[
    ("os", &[]),
    ("fitting", &[]),
    ("messages", &[]),
    ("handover", &["os"]),
    ("log", &["os"]),
    ("turn", &[]),
    ("net", &["os", "turn"]),
    ("outbound", &["net", "os"]),
    ("certificates", &["fitting", "messages", "net", "os", "outbound"]),
    ("push", &["messages", "os", "outbound"]),
    ("admin", &["log", "messages", "os"]),
    ("event_loop", &["certificates", "handover", "messages", "net", "os", "push", "turn"]),
];

/// The most pairs of importer and imported.
const EDGES_MAX: usize = 24;

type Imports<'a> = [(&'a str, &'a [&'a str])];
type Edge<'a> = (&'a str, &'a str);
/// Imports with their places.
type Found<'a> = [(Edge<'a>, &'a str)];

#[test]
fn the_parts_of_the_shell_import_what_the_list_says() {
    let mut files = Vec::new();
    super::collect("src/server", &mut files);
    assert!(files.len() > 20, "no source");
    let mut found = Vec::new();
    for path in files.into_iter().filter(|path| !path.ends_with("/tests.rs")) {
        let name = path["src/server/".len()..].trim_end_matches(".rs");
        let part = name.split('/').next().unwrap_or(name).to_owned();
        let mut tokens = lex(&fs::read_to_string(&path).expect("a source file is readable"));
        remove_test_items(&mut tokens);
        for mention in mentions(&tokens, &module_of(&path)) {
            // Without a third name it is a visibility, `pub(in crate::server)`.
            if let [krate, layer, import, ..] = &*mention.path
                && (krate, layer) == (&"crate".into(), &"server".into())
                && *import != part
            {
                found.push((part.clone(), import.clone(), format!("{path}:{}", mention.line)));
            }
        }
    }
    let found: Vec<_> = found.iter().map(|(a, b, at)| ((&**a, &**b), &**at)).collect();
    let report = faults(IMPORTS, &found);
    assert!(report.is_empty(), "\n{report}");
}

/// What is wrong with the list, given the imports that were found, each with its place.
fn faults(list: &Imports<'_>, found: &Found<'_>) -> String {
    let mut report = String::new();
    let mut listed = BTreeSet::new();
    let mut above = Vec::new();
    for (part, imports) in list {
        for import in *imports {
            listed.insert((*part, *import));
            if !above.contains(import) {
                let _ = writeln!(report, "{part} imports {import}, which is not above it");
            }
        }
        above.push(*part);
    }
    let used: BTreeSet<_> = found.iter().map(|(edge, _)| *edge).collect();
    for ((part, import), at) in found.iter().filter(|(edge, _)| !listed.contains(edge)) {
        let _ = writeln!(report, "{at}: {part} imports {import}, which is not listed");
    }
    for (part, import) in listed.difference(&used) {
        let _ = writeln!(report, "{part} imports {import} no more");
    }
    let edges = listed.len();
    if edges > EDGES_MAX {
        let _ = writeln!(report, "{edges} pairs, at most {EDGES_MAX}");
    }
    report
}

#[test]
fn each_fault_of_the_list_is_found() {
    let good: &Imports<'_> = &[("low", &[]), ("high", &["low"])];
    let high_low = (("high", "low"), "here");
    let cases: [(&Imports<'_>, &Found<'_>, &str); 4] = [
        (good, &[high_low], ""),
        (
            good,
            &[high_low, (("low", "high"), "f:1")],
            "f:1: low imports high, which is not listed\n",
        ),
        (good, &[], "high imports low no more\n"),
        (
            &[("low", &["high"]), ("high", &["low"])],
            &[high_low, (("low", "high"), "f:1")],
            "low imports high, which is not above it\n",
        ),
    ];
    for (list, found, report) in cases {
        assert_eq!(faults(list, found), report);
    }
}

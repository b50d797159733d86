//! Documents: words that the prose avoids, links that must resolve, the length of the README.
//!
//! Reads documents, users' texts and the comments of the source; the code itself is checked
//! elsewhere.

use std::fs;
use std::path::Path;

/// Patterns that the prose avoids, in lower case, matched as whole words across line ends.
/// The subject of a sentence is a thing, named by its word in `docs/GLOSSARY.md`.
const AVOIDED: &[&str] = &[
    "anybody",
    "is none",
    "is to be",
    "nobody",
    "of no use",
    "so many",
    "somebody",
    "who",
    "who is",
    "whoever",
    "whom",
];

/// Files and directories whose text is checked.
const PLACES: &[&str] = &[
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "deploy",
    "docs",
    "src/cli/help.txt",
    "src/cli/probe_help.txt",
];

/// Files and directories of source whose comments are checked.
const COMMENTED: &[&str] = &["src"];

/// How often avoided patterns still occur in the comments of a file in [`COMMENTED`]. An
/// entry may only shrink, and is removed with its last occurrence.
const TOLERATED: &[(&str, usize)] = &[];

const README_LINES_MAX: usize = 150;

/// Every file in [`PLACES`], with its text.
fn documents() -> Vec<(String, String)> {
    PLACES.iter().flat_map(read_all).collect()
}

/// The file, or all files below the directory, with their text; files that are not text are
/// left out.
fn read_all(place: &&str) -> Vec<(String, String)> {
    let mut waiting = vec![(*place).to_string()];
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if Path::new(&path).is_dir() {
            let entries = fs::read_dir(&path).expect("a directory of the repository is readable");
            waiting.extend(entries.map(|entry| {
                let name = entry.expect("its entries are readable").file_name();
                format!("{path}/{}", name.to_str().expect("names are UTF-8"))
            }));
        } else {
            let bytes = fs::read(&path).expect("a file of the repository is readable");
            found.extend(String::from_utf8(bytes).ok().map(|text| (path, text)));
        }
    }
    found
}

/// Line and pattern of each avoided pattern in `text`.
fn avoided_in(text: &str) -> Vec<(usize, &'static str)> {
    // Words with their line numbers: a pattern may continue on the next line, and the
    // leader of a comment is not a word.
    let words: Vec<(usize, String)> = text
        .lines()
        .enumerate()
        .flat_map(|(at, line)| {
            line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
                .filter(|word| !word.is_empty())
                .map(move |word| (at + 1, word.to_lowercase()))
        })
        .collect();
    let mut found = Vec::new();
    for start in 0..words.len() {
        for pattern in AVOIDED {
            let mut rest = words[start..].iter().map(|(_, word)| word.as_str());
            if pattern.split(' ').all(|word| rest.next() == Some(word)) {
                found.push((words[start].0, *pattern));
            }
        }
    }
    found
}

/// The comment lines of Rust source, at their line numbers. Each other line is replaced by
/// a word in no pattern, so that a pattern does not continue from comment to comment.
fn comments_of(source: &str) -> String {
    let lines =
        source.lines().map(|line| if line.trim_start().starts_with("//") { line } else { "_" });
    lines.collect::<Vec<_>>().join("\n")
}

/// The targets of the links in Markdown, without those in fenced code.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut is_code = false;
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        is_code ^= line.starts_with("```");
        if !is_code {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            found.extend(targets.map(|(target, _)| (at + 1, target)));
        }
    }
    found
}

/// The anchors of the headings: lower case, hyphens for spaces, no punctuation.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    headings
        .map(|heading| {
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
            heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
        })
        .collect()
}

/// The repository's own paths that a document names in backquotes.
fn named_paths(text: &str) -> Vec<(usize, &str)> {
    const TOPS: &[&str] = &["deploy/", "docs/", "fuzz/", "src/", "tests/"];
    let mut found = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let quoted = line.split('`').skip(1).step_by(2);
        found.extend(
            quoted
                .filter(|it| TOPS.iter().any(|top| it.starts_with(top)))
                // A command's words follow its path.
                .filter_map(|it| it.split(' ').next())
                .filter(|it| !it.contains(['*', '…', '<', '$']))
                .map(|path| (at + 1, path)),
        );
    }
    found
}

#[test]
fn the_version_is_the_same_in_the_changelog_and_in_both_lock_files() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = fs::read_to_string("CHANGELOG.md").expect("it is readable");
    let newest = changelog.lines().find_map(|line| line.strip_prefix("## [")?.split_once("] - "));
    assert_eq!(newest.map(|(newest, _)| newest), Some(version), "CHANGELOG.md");
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let text = fs::read_to_string(lock).expect("it is readable");
        let own = format!("name = \"pyrycode-relay\"\nversion = \"{version}\"\n");
        assert!(text.contains(&own), "{lock}: run `cargo update --workspace` (docs/RELEASING.md)");
    }
}

#[test]
fn documents_avoid_these_words() {
    let mut report = Vec::new();
    for (path, text) in documents() {
        let found = avoided_in(&text);
        report.extend(found.iter().map(|(line, word)| format!("{path}:{line}: {word:?}")));
    }
    assert!(report.is_empty(), "name the thing instead:\n{}", report.join("\n"));
}

#[test]
fn comments_avoid_these_words() {
    let files: Vec<_> = COMMENTED.iter().flat_map(read_all).collect();
    let mut report = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".rs")) {
        let found = avoided_in(&comments_of(text));
        let tolerated = TOLERATED.iter().find(|(file, _)| file == path).map_or(0, |it| it.1);
        if found.len() > tolerated {
            let lines = found.iter().map(|(line, word)| format!("{path}:{line}: {word:?}"));
            report.extend(lines);
        } else if found.len() < tolerated {
            report.push(format!("{path}: lower its entry in TOLERATED to {}", found.len()));
        }
    }
    for (path, count) in TOLERATED {
        let is_checked = files.iter().any(|(file, _)| file == path);
        if *count == 0 || !is_checked {
            report.push(format!("{path}: remove its entry in TOLERATED"));
        }
    }
    assert!(report.is_empty(), "name the thing instead:\n{}", report.join("\n"));
    assert!(files.len() > 15, "{} files: have they moved?", files.len());
}

#[test]
fn links_and_paths_in_documents_exist() {
    let mut report = Vec::new();
    let mut count = 0;
    for (path, text) in documents().iter().filter(|(path, _)| path.ends_with(".md")) {
        let directory = Path::new(path).parent().expect("a file is in a directory");
        for (line, target) in links(text).into_iter().filter(|(_, it)| !it.contains("://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let there = if file.is_empty() { path.into() } else { directory.join(file) };
            let is_there = fs::read_to_string(&there).is_ok_and(|text| {
                anchor.is_empty() || anchors(&text).iter().any(|it| it == anchor)
            });
            if !is_there {
                report.push(format!("{path}:{line}: {target}"));
            }
            count += 1;
        }
        for (line, named) in named_paths(text) {
            if !Path::new(named).exists() {
                report.push(format!("{path}:{line}: {named}"));
            }
            count += 1;
        }
    }
    assert!(report.is_empty(), "not in the repository:\n{}", report.join("\n"));
    assert!(count > 30, "{count} links and paths: what they look like has changed");
}

/// "`name` in `src/file.rs`" holds: the file defines that name.
#[test]
fn items_named_in_documents_are_where_they_say() {
    let mut report = Vec::new();
    let mut count = 0;
    for (path, text) in documents().iter().filter(|(path, _)| path.ends_with(".md")) {
        let quoted: Vec<&str> = text.split('`').collect();
        // Outside code at even places, inside it at odd ones.
        for four in quoted.windows(4).skip(1).step_by(2) {
            let [name, between, file, _] = four else { continue };
            let is_file = file.starts_with("src/") && file.ends_with(".rs");
            if !is_file || between.trim() != "in" {
                continue;
            }
            let name = name.rsplit("::").next().unwrap_or(name).trim_end_matches('!');
            let code = fs::read_to_string(file).unwrap_or_default();
            let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            if !words.any(|word| word == name) {
                report.push(format!("{path}: {name} in {file}"));
            }
            count += 1;
        }
    }
    assert!(report.is_empty(), "not there:\n{}", report.join("\n"));
    assert!(count > 15, "{count} items: what they look like has changed");
}

/// Source and scripts name documents of this repository only, by their whole path.
#[test]
fn documents_named_in_the_source_exist() {
    let mut report = Vec::new();
    let mut count = 0;
    let files = ["src", "tests", "deploy", "fuzz/fuzz_targets"].iter().flat_map(read_all);
    // This file names documents that do not exist.
    for (path, text) in files.filter(|(path, _)| !path.ends_with("/documents.rs")) {
        for (at, line) in text.lines().enumerate() {
            let is_part = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_');
            let words = line.split(|c| !is_part(c)).map(|word| word.trim_end_matches('.'));
            for named in words.filter_map(document) {
                count += 1;
                if !Path::new(named).exists() {
                    report.push(format!("{path}:{}: {named}", at + 1));
                }
            }
        }
    }
    assert!(report.is_empty(), "not in the repository:\n{}", report.join("\n"));
    assert!(count > 5, "{count} documents: what they look like has changed");
}

/// The word, if it is the name of a document rather than a mere extension.
fn document(word: &str) -> Option<&str> {
    let name = word.strip_suffix(".md")?;
    (name.ends_with(char::is_alphanumeric) && !word.contains("/usr/")).then_some(word)
}

#[test]
fn the_readme_is_an_introduction() {
    let text = fs::read_to_string("README.md").expect("the README is readable");
    let lines = text.lines().count();
    assert!(lines <= README_LINES_MAX, "{lines} lines; reference belongs into docs/");
}

#[test]
fn avoided_patterns_are_found_as_words_and_across_lines() {
    for (text, expected) in [
        ("# The peer, whom\n", vec![(1, "whom")]),
        ("one\n# Nobody's", vec![(2, "nobody")]),
        ("what is\n    # to be done", vec![(1, "is to be")]),
        ("It is of no\n// use.", vec![(1, "of no use")]),
        ("this is to begin; whole, nobodys", vec![]),
    ] {
        assert_eq!(avoided_in(text), expected, "{text}");
    }
}

#[test]
fn comments_are_told_from_code() {
    let source =
        "//! Whom\nlet who = 1; // who\n    // is\nlet x;\n    /// none of\n    // no use\n";
    assert_eq!(comments_of(source), "//! Whom\n_\n    // is\n_\n    /// none of\n    // no use");
    // "is" and "none" are in comments apart from each other, "of" and "no use" are not.
    assert_eq!(avoided_in(&comments_of(source)), [(1, "whom"), (5, "of no use")]);
}

#[test]
fn links_anchors_and_paths_are_found() {
    assert_eq!(links("a [b](c.md#d) [e](f)\n```\n[x](y)\n```\n"), [(1, "c.md#d"), (1, "f")]);
    assert_eq!(anchors("# A, b's `c`\n## More than one"), ["a-bs-c", "more-than-one"]);
    assert_eq!(document("OTHER.md"), Some("OTHER.md"));
    assert_eq!((document(".md"), document("/.md"), document("a.rs")), (None, None, None));
    assert_eq!(named_paths("`tests/run x` or `src/**/a`, `b`"), [(1, "tests/run")]);
}

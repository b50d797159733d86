//! Tests of the rules: each one fires on a bad example, and on nothing else.

use super::*;

/// `line: rule` of each violation.
fn broken(path: &str, text: &str) -> Vec<(usize, &'static str)> {
    check(path, text).iter().map(|it| (it.line, it.rule)).collect()
}

/// A file in which the rule holds.
fn place(rule: &Rule) -> String {
    format!("{}/made_up.rs", rule.within[0])
}

#[test]
fn each_path_of_each_rule_is_found_however_it_is_written() {
    for rule in RULES {
        for path in rule.paths {
            let (parent, last) = path.rsplit_once("::").unwrap_or(("", path));
            let (parent, glob) = match parent {
                "" => (String::new(), format!("{path}::*")),
                _ => (format!("{parent}::"), format!("{parent}::*")),
            };
            for text in [
                format!("//!\nuse {path};"),
                format!("//!\nuse ::{path}::inner::Thing;"),
                format!("//!\npub(crate) use {path} as harmless;"),
                format!("//!\nuse {glob};"),
                format!("//!\nuse {parent}{{{last}}};"),
                format!("//!\nuse {parent}{{\nother,\n{last}::{{self, Thing}}}};"),
                format!("//!\nfn f() {{ {path}::thing(); }}"),
                format!("//!\nfn f(x: &'static {path}::Thing<'_>) {{}}"),
            ] {
                let found = broken(&place(rule), &text);
                assert!(found.iter().any(|(_, name)| *name == rule.name), "{text}\n{found:?}");
                assert!(found.iter().all(|(line, _)| *line >= 2), "{text}\n{found:?}");
            }
        }
    }
}

#[test]
fn each_name_of_each_rule_is_found() {
    for rule in RULES {
        for name in rule.names {
            for text in [
                format!("//!\nfn f() {{\n    {name}(\"x\") {{}};\n}}"),
                format!("//!\n\nuse some::{{other::{}}};", name.trim_end_matches('!')),
            ] {
                let is_macro_import = name.ends_with('!') && text.contains("use");
                let expected = if is_macro_import { vec![] } else { vec![(3, rule.name)] };
                assert_eq!(broken(&place(rule), &text), expected, "{text}");
            }
        }
    }
}

#[test]
fn detours_are_found() {
    let clock = "the core has no clock and no thread";
    let socket = "the core touches no socket, file or stream";
    let shell = "the core knows no shell";
    let printed = "what is printed goes through terminal.rs";
    let seeded = "the core draws no unseeded randomness";
    let cases = [
        ("src/relay/a.rs", "use std::time;\nfn f() { time::Instant::now(); }", vec![(3, clock)]),
        ("src/relay/a.rs", "use std as s;\nfn f() { s::thread::yield_now() }", vec![(3, clock)]),
        (
            "src/relay/a.rs",
            "use std::{net::{self as n}};\ntype T = n::TcpStream;",
            vec![(3, socket)],
        ),
        ("src/relay/a.rs", "use super::super::server::Socket;", vec![(2, shell)]),
        ("src/relay/a.rs", "fn f() { super::super::cli::parse() }", vec![(2, shell)]),
        ("src/relay.rs", "use super::cli;", vec![(2, shell)]),
        ("src/relay/a/b.rs", "use crate::{config, server::Socket};", vec![(2, shell)]),
        ("src/protocol/a.rs", "fn f() { std::println!() }", vec![(2, printed)]),
        ("src/server/a.rs", "fn f() { if a { eprint!(\"x\") } }", vec![(2, printed)]),
        (
            "src/protocol/a.rs",
            "use super::super::relay;",
            vec![(2, "one connection knows no other")],
        ),
        ("src/time/a.rs", "use super::super::config;", vec![(2, "time knows its state only")]),
        ("src/time.rs", "use crate::config::Limits;", vec![(2, "time knows its state only")]),
        ("src/relay/a.rs", "use rand::{self, rngs::OsRng};", vec![(2, seeded)]),
        (
            "src/relay/a.rs",
            "use std::collections::HashMap;\nfn f() { HashMap::<u8, u8>::new(); HashMap::new() }",
            vec![(3, seeded)],
        ),
        ("src/server/a.rs", "use tungstenite::Message;", vec![(2, "tungstenite has one importer")]),
        ("src/relay/a.rs", "fn f() { if a! { unsafe { g() } } }", vec![(2, "no unsafe")]),
        // Text before the violation that is not code.
        ("src/time/a.rs", "/* /* */ \n */ use mio::Poll;", vec![(3, socket)]),
        ("src/time/a.rs", "const A: &str = r#\"\"\n\"#; use mio::Poll;", vec![(3, socket)]),
        ("src/time/a.rs", "const A: &[u8] = b\"\\\"//\"; use mio::Poll;", vec![(2, socket)]),
        ("src/time/a.rs", "const A: char = '\"'; use mio::Poll; // \"", vec![(2, socket)]),
        ("src/time/a.rs", "const A: char = '\\''; use mio::Poll; // '", vec![(2, socket)]),
        ("src/time/a.rs", "fn f<'a>(x: &'a str) {} use mio::Poll; // '", vec![(2, socket)]),
        ("src/time/a.rs", "fn f() { 0..std::env::args() }", vec![(2, shell)]),
        // After test code.
        ("src/time/a.rs", "#[cfg(test)]\nmod tests;\nuse mio::Poll;", vec![(4, socket)]),
        (
            "src/time/a.rs",
            "#[cfg(test)]\n#[allow(x)]\nmod tests { fn f() { g([1; 2]); } }\nuse mio::Poll;",
            vec![(5, socket)],
        ),
        ("src/time/a.rs", "struct A {\n#[cfg(test)]\na: u8\n}\nuse mio::Poll;", vec![(6, socket)]),
        ("src/time/a.rs", "#[cfg(not(test))]\nuse mio::Poll;", vec![(3, socket)]),
    ];
    for (path, text, expected) in cases {
        assert_eq!(broken(path, &format!("//!\n{text}\n")), expected, "{path}: {text}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    let cases = [
        ("src/relay/a.rs", "// use mio::Poll; unsafe\n/// [`std::thread::spawn`]\nfn f() {}"),
        ("src/relay/a.rs", "/* use mio::Poll; /* */ unsafe */"),
        ("src/relay/a.rs", "const A: &str = \"use mio::Poll; \\\" println!() unsafe\";"),
        ("src/relay/a.rs", "const A: &str = r#\"use mio::Poll; \" unsafe\"#;"),
        ("src/relay/a.rs", "fn f() { self.slab.insert(mio); let slab = 1; slab.len() }"),
        ("src/relay/a.rs", "use std::net::{IpAddr, SocketAddr};\nuse std::time::Duration;"),
        ("src/relay/a.rs", "use crate::{config, protocol, time::Instant};\nuse super::b;"),
        ("src/relay/a.rs", "use rand::{SeedableRng, rngs::StdRng};\nuse std::io::Write;"),
        ("src/relay/a.rs", "use std::collections::HashMap;\ntype M = HashMap<u8, u8, Keys>;"),
        ("src/relay/a.rs", "fn f() { if println != 3 { write!(x, \"\"); } }"),
        ("src/relay/connections.rs", "use slab::Slab;"),
        ("src/protocol/websocket.rs", "use tungstenite::protocol::frame::FrameHeader;"),
        ("src/protocol/request.rs", "use httparse::Request;"),
        ("src/time.rs", "mod wheel;\npub use wheel::Wheel;\nuse self::wheel::*;"),
        ("src/time/wheel.rs", "use super::Instant;\nuse crate::time::instant;"),
        ("src/server/a.rs", "use std::{thread, time::Instant, env};\nfn f() { write!() }"),
        ("src/relay_extra/a.rs", "use std::thread;"),
        ("src/relay/a/tests.rs", "use std::thread;"),
        ("src/relay/a.rs", "#[cfg(test)]\nmod tests {\n    use std::thread;\n}"),
        ("src/relay/a.rs", "#[cfg(test)]\nuse std::{thread, env};\nfn f() {}"),
    ];
    for (path, text) in cases {
        let found = check(path, &format!("//!\n{text}\n"));
        assert!(found.is_empty(), "{path}: {text}\n{found:?}");
    }
}

#[test]
fn a_file_without_a_head_is_found() {
    for text in ["", "fn f() {}", "// A comment.", "\n//! Late.", "/// An item."] {
        assert_eq!(broken("src/main.rs", text), [(1, HEAD)], "{text:?}");
        assert_eq!(broken("src/relay/a/tests.rs", text), [(1, HEAD)], "{text:?}");
    }
}

#[test]
fn a_long_file_is_found_unless_it_is_long_for_its_tests() {
    let code = "fn f() {}\n";
    let longest = format!("//!\n{}", code.repeat(LINES_MAX - 1));
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", code.repeat(1000));
    assert_eq!(broken("src/cli.rs", &longest), []);
    assert_eq!(broken("src/cli.rs", &format!("{longest}{tests}")), []);
    assert_eq!(broken("src/cli.rs", &format!("{longest}{code}")), [(500, LENGTH)]);
    assert_eq!(broken("src/cli.rs", &format!("{longest}// A comment.")), [(500, LENGTH)]);
    assert_eq!(broken("src/cli/tests.rs", &format!("{longest}{code}")), []);
}

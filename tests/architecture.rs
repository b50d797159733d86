//! Architecture of the program, as a test.
//!
//! Reads `src/` as text and checks rules that the compiler cannot: the paths that each layer
//! may name, a single importer for each replaceable library, a head comment in every file,
//! and a maximum file length. Ignores comments (except the head), string literals and test
//! code. A path is found in every spelling: `use` groups and aliases, `self`, `super`, globs,
//! and in expressions.

#[path = "architecture/documents.rs"]
mod documents;
#[path = "architecture/log_keys.rs"]
mod log_keys;
#[path = "architecture/relay_order.rs"]
mod relay_order;
#[path = "architecture/server_parts.rs"]
mod server_parts;
#[path = "architecture/source.rs"]
mod source;
#[path = "architecture/tests.rs"]
mod tests;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use source::{Mention, lex, mentions, module_of, remove_test_items};

/// The deterministic core.
const CORE: &[&str] = &["src/protocol", "src/relay", "src/time"];
/// The longest file, tests excepted.
const LINES_MAX: usize = 500;

/// Paths and names that code within some directories may not use.
struct Rule {
    name: &'static str,
    /// Directories, each with the module file of the same name beside it.
    within: &'static [&'static str],
    /// Files without this restriction.
    except: &'static [&'static str],
    /// Paths that may not be named, nor anything below them.
    paths: &'static [&'static str],
    /// Exceptions from `paths`.
    allowed: &'static [&'static str],
    /// Names that may not occur in any path; `!` ends that of a macro.
    names: &'static [&'static str],
}

const RULE: Rule =
    Rule { name: "", within: &["src"], except: &[], paths: &[], allowed: &[], names: &[] };

const RULES: &[Rule] = &[
    Rule {
        name: "the core knows no shell",
        within: CORE,
        paths: &["crate::server", "crate::cli", "signal_hook", "std::process", "std::env"],
        ..RULE
    },
    Rule {
        name: "the core touches no socket, file or stream",
        within: CORE,
        paths: &[
            "mio",
            "ring",
            "rustix",
            "rustls",
            "socket2",
            "std::fs",
            "std::io::stderr",
            "std::io::stdin",
            "std::io::stdout",
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::net::UdpSocket",
            "std::os",
        ],
        ..RULE
    },
    Rule {
        // These macros panic on a closed or full stream.
        name: "what is printed goes through terminal.rs",
        names: &["dbg!", "eprint!", "eprintln!", "print!", "println!"],
        ..RULE
    },
    Rule {
        name: "the core has no clock and no thread",
        within: CORE,
        paths: &[
            "std::sync::mpsc",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime",
            "std::time::UNIX_EPOCH",
        ],
        ..RULE
    },
    Rule {
        name: "the core draws no unseeded randomness",
        within: CORE,
        paths: &[
            "getrandom",
            "ring::rand",
            "rand::make_rng",
            "rand::random",
            "rand::rng",
            // Without an explicit hasher, these seed their own.
            "std::collections::HashMap::default",
            "std::collections::HashMap::from",
            "std::collections::HashMap::new",
            "std::collections::HashMap::with_capacity",
            "std::collections::HashSet::default",
            "std::collections::HashSet::from",
            "std::collections::HashSet::new",
            "std::collections::HashSet::with_capacity",
        ],
        names: &["OsRng", "RandomState", "SysRng", "ThreadRng", "thread_rng"],
        ..RULE
    },
    Rule {
        name: "one connection knows no other",
        within: &["src/protocol"],
        paths: &["crate::relay"],
        ..RULE
    },
    Rule {
        // Its auditor need not know the library that it continues.
        name: "the TLS record layer knows ring, zeroize and itself",
        within: &["src/server/net/tls_record"],
        paths: &["crate", "mio", "rustls", "std::io", "std::net", "std::time"],
        allowed: &["crate::server::net::tls_record"],
        ..RULE
    },
    Rule {
        name: "time knows its state only",
        within: &["src/time"],
        paths: &["crate"],
        allowed: &["crate::time", "crate::state"],
        ..RULE
    },
    Rule {
        name: "a format of states depends on nothing that may change",
        within: &["src/state"],
        paths: &["crate"],
        allowed: &["crate::state"],
        ..RULE
    },
    Rule {
        name: "tungstenite has one importer",
        // One importer, and the client that must share nothing with it.
        except: &["src/protocol/websocket.rs", "src/probe/peer.rs"],
        paths: &["tungstenite"],
        ..RULE
    },
    Rule {
        name: "httparse has one importer",
        except: &["src/protocol/request.rs", "src/probe/health.rs"],
        paths: &["httparse"],
        ..RULE
    },
    Rule {
        name: "ppp has one importer",
        except: &["src/protocol/proxy_header.rs", "src/probe/address.rs"],
        paths: &["ppp"],
        ..RULE
    },
    Rule {
        name: "HTTPS calls are made by two clients, on what they share",
        except: &[
            "src/server/certificates/acme/client.rs",
            "src/server/outbound/https.rs",
            "src/server/outbound/dns.rs",
            "src/server/outbound/stream.rs",
            "src/server/push/client.rs",
        ],
        paths: &["ureq"],
        ..RULE
    },
    Rule {
        name: "nix is for execve and the signal mask",
        except: &["src/server/handover/program.rs", "src/server/os/signals.rs"],
        paths: &["nix"],
        ..RULE
    },
    Rule {
        name: "connections alone use a slab",
        except: &[
            "src/relay/connections.rs",
            "src/relay/connections/clients.rs",
            "src/relay/connections/state.rs",
        ],
        paths: &["slab"],
        ..RULE
    },
    Rule {
        name: "the probe shares nothing with a relay",
        within: &["src/probe"],
        paths: &["crate"],
        // Parsing PEM files is not specific to a relay.
        allowed: &["crate::probe", "crate::pem"],
        ..RULE
    },
    Rule {
        name: "a relay knows no probe",
        within: &["src/protocol", "src/relay", "src/server", "src/time"],
        paths: &["crate::probe"],
        ..RULE
    },
    Rule { name: "no unsafe", names: &["unsafe"], ..RULE },
];

const HEAD: &str = "a file begins with `//!`";
const LENGTH: &str = "a file can be read at a sitting";

#[test]
fn the_layers_hold() {
    // Cargo runs tests with the package root as the working directory.
    let mut files = Vec::new();
    collect("src", &mut files);
    assert!(!files.is_empty(), "no source");
    let mut report = String::new();
    for path in &files {
        let text = fs::read_to_string(path).expect("a source file is readable UTF-8");
        for Violation { line, rule, what } in check(path, &text) {
            let _ = writeln!(report, "{path}:{line}: {rule}: {what}");
        }
    }
    assert!(report.is_empty(), "\n{report}");
}

/// The program is one poll loop and a few threads: no library adds a scheduler of its own,
/// not even for a target or a feature that is not built.
#[test]
fn no_async_runtime_is_locked() {
    const RUNTIMES: &[&str] =
        &["async-executor", "async-global-executor", "async-io", "async-std", "smol", "tokio"];
    let lock = fs::read_to_string("Cargo.lock").expect("the lock file is readable");
    let names: Vec<_> = lock.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
    assert!(names.contains(&"\"mio\""), "what names look like has changed");
    for runtime in RUNTIMES {
        assert!(
            !names.contains(&&*format!("{runtime:?}")),
            "{runtime}: see `cargo tree -i {runtime}`"
        );
    }
}

/// All `.rs` files below `directory`, in order.
fn collect(directory: &str, files: &mut Vec<String>) {
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("src is readable")
        .map(|entry| entry.expect("src is readable").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    for name in names {
        let path = format!("{directory}/{name}");
        if Path::new(&path).is_dir() {
            collect(&path, files);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}

#[derive(Debug)]
struct Violation {
    line: usize,
    rule: &'static str,
    what: String,
}

/// All rules over one file; `path` is relative to the root of the package.
fn check(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    if !text.starts_with("//!") {
        violations.push(Violation { line: 1, rule: HEAD, what: "this one does not".into() });
    }
    if path.ends_with("/tests.rs") || path.contains("/tests/") {
        return violations;
    }
    let mut tokens = lex(text);
    let test_lines = remove_test_items(&mut tokens);
    let lines = text.lines().count() - test_lines;
    if lines > LINES_MAX {
        violations.push(Violation {
            line: LINES_MAX,
            rule: LENGTH,
            what: format!("{lines} lines, at most {LINES_MAX}"),
        });
    }
    let mentions = mentions(&tokens, &module_of(path));
    for rule in RULES.iter().filter(|rule| rule.applies_to(path)) {
        let broken = mentions.iter().filter(|mention| rule.forbids(mention));
        violations.extend(broken.map(|mention| Violation {
            line: mention.line,
            rule: rule.name,
            what: mention.path.join("::"),
        }));
    }
    violations
}

impl Rule {
    fn applies_to(&self, path: &str) -> bool {
        let is_within = |directory: &&str| {
            path.strip_prefix(*directory).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
        };
        self.within.iter().any(is_within) && !self.except.contains(&path)
    }

    fn forbids(&self, mention: &Mention) -> bool {
        let path = &mention.path;
        if self.names.iter().any(|name| path.iter().any(|segment| segment == name)) {
            return true;
        }
        // A single name in an expression is a variable or a field.
        if path.len() == 1 && !mention.is_use {
            return false;
        }
        let is_allowed = self.allowed.iter().any(|above| lies_below(path, above));
        !is_allowed
            && self.paths.iter().any(|above| lies_below(path, above) || brings_in(path, above))
    }
}

fn lies_below(path: &[String], above: &str) -> bool {
    let mut names = path.iter();
    above.split("::").all(|name| names.next().is_some_and(|it| it == name))
}

/// Whether `path` is a glob under which `below` lies.
fn brings_in(path: &[String], below: &str) -> bool {
    let mut names = below.split("::");
    path.split_last().is_some_and(|(last, parent)| {
        last == "*" && parent.iter().all(|it| names.next().is_some_and(|name| it == name))
    })
}

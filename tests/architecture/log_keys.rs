//! Log keys: only those of the closed list are logged.
//!
//! Reads the arguments of the `log` macros as text, up to the `;` that ends the keys. It
//! cannot see keys that a value supplies at run time; no code here does that.

use std::fs;

use pyrycode_relay::server::log::KEYS;

/// The keys of every call of a `log` macro in `text`, with their lines.
fn logged_keys(text: &str) -> Vec<(usize, String)> {
    let macros = ["error!(", "warn!(", "info!(", "debug!(", "trace!(", "log!("];
    let starts = macros.iter().flat_map(|name| {
        let call = format!("log::{name}");
        text.match_indices(&call).map(|(at, call)| at + call.len()).collect::<Vec<_>>()
    });
    let mut keys = Vec::new();
    for start in starts {
        let (mut depth, mut argument) = (0, String::new());
        let line = 1 + text[..start].matches('\n').count();
        let mut arguments = Vec::new();
        for c in text[start..].chars() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth -= 1,
                _ => {}
            }
            match c {
                // No keys: the tokens so far are the message.
                _ if depth < 0 => {
                    arguments.clear();
                    break;
                }
                ';' if depth == 0 => {
                    arguments.push(argument);
                    break;
                }
                ',' if depth == 0 => arguments.push(std::mem::take(&mut argument)),
                _ => argument.push(c),
            }
        }
        // The first argument of `log!` is the level, not a key.
        let is_log = text[..start].ends_with("log!(");
        keys.extend(arguments.iter().skip(usize::from(is_log)).map(|argument| {
            let is_key = |c: &char| c.is_ascii_lowercase() || *c == '_';
            (line, argument.trim_start().chars().take_while(is_key).collect())
        }));
    }
    keys
}

#[test]
fn the_log_speaks_only_of_what_is_on_the_closed_list() {
    let mut files = Vec::new();
    crate::collect("src", &mut files);
    let mut count = 0;
    for path in files.iter().filter(|path| !path.ends_with("tests.rs")) {
        let text = fs::read_to_string(path).expect("a source file is readable UTF-8");
        for (line, key) in logged_keys(&text) {
            assert!(KEYS.contains(&key.as_str()), "{path}:{line}: {key:?} is not on the list");
            count += 1;
        }
    }
    assert!(count > 40, "{count} keys: the reading is wrong");
}

#[test]
fn keys_are_found_in_every_form() {
    let text = r#"
        log::info!("no keys {}", a(b));
        log::warn!(err:% = error, path; "event");
        log::log!(
            level, cause = f(x, y), binary_conn_id:% = self.id(z);
            "event"
        );
    "#;
    let keys: Vec<String> = logged_keys(text).into_iter().map(|(_, key)| key).collect();
    assert_eq!(keys, ["err", "path", "cause", "binary_conn_id"]);
}

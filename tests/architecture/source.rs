//! Rust source text as the paths that it names, found by a small lexer: enough for rules
//! about paths, not a parser. Comments, lifetimes and the text of literals are left out;
//! items under `#[cfg(test)]` can be.
//!
//! Cannot see names that a macro builds, or methods on values from another layer.

use std::collections::HashMap;

/// `src/relay/forward.rs` → `crate::relay::forward`
pub(crate) fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    let inner = path.split('/').filter(|name| !matches!(*name, "lib" | "main"));
    ["crate"].into_iter().chain(inner).map(String::from).collect()
}

/// A path that the code names, as written from the root of its crate.
#[derive(Debug)]
pub(crate) struct Mention {
    pub(crate) line: usize,
    pub(crate) path: Vec<String>,
    pub(crate) is_use: bool,
}

/// Every path that the code names.
pub(crate) fn mentions(tokens: &[Token], module: &[String]) -> Vec<Mention> {
    let mut found = Vec::new();
    // The local name that `use` gives to each path in this file.
    let mut names = HashMap::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].text == "use" {
            at = use_tree(tokens, at + 1, &[], module, &mut names, &mut found);
        } else {
            at += 1;
        }
    }

    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        // Except in `..name`, the end of a range.
        let is_field = at > 1 && tokens[at - 1].text == "." && tokens[at - 2].text != ".";
        if token.text == "use" {
            while at < tokens.len() && tokens[at].text != ";" {
                at += 1;
            }
        } else if token.is_name() && !is_field {
            let mut path = vec![token.text.clone()];
            while is(tokens, at + 1, "::") && tokens.get(at + 2).is_some_and(Token::is_name) {
                path.push(tokens[at + 2].text.clone());
                at += 2;
            }
            if is(tokens, at + 1, "!") && !is(tokens, at + 2, "=") {
                path.last_mut().expect("it has a name").push('!');
            } else if let Some(full) = names.get(&path[0]) {
                path.splice(..1, Vec::clone(full));
            }
            found.push(Mention { line: token.line, path: resolve(&path, module), is_use: false });
        }
        at += 1;
    }
    found
}

/// Reads one branch of a `use` from `tokens[at]`; returns where it ends.
fn use_tree(
    tokens: &[Token],
    mut at: usize,
    parent: &[String],
    module: &[String],
    names: &mut HashMap<String, Vec<String>>,
    found: &mut Vec<Mention>,
) -> usize {
    let mut path = parent.to_vec();
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "::" => {}
            "{" => {
                at += 1;
                while at < tokens.len() && tokens[at].text != "}" {
                    at = use_tree(tokens, at, &path, module, names, found);
                    at += usize::from(is(tokens, at, ","));
                }
                return at + 1;
            }
            "self" if !parent.is_empty() => {}
            name if token.is_name() || name == "*" => path.push(name.to_string()),
            _ => break,
        }
        at += 1;
        if is(tokens, at, "as") {
            break;
        }
    }
    let line = tokens.get(at - 1).map_or(0, |token| token.line);
    let path = resolve(&path, module);
    let mut name = path.last().cloned();
    if is(tokens, at, "as") {
        name = tokens.get(at + 1).map(|token| token.text.clone());
        at += 2;
    }
    names.extend(name.map(|name| (name, path.clone())));
    found.push(Mention { line, path, is_use: true });
    // Any other token is not part of a `use`: skip it.
    at + usize::from(!is(tokens, at, ",") && !is(tokens, at, "}"))
}

/// Replaces a leading `self` or `super`s.
fn resolve(path: &[String], module: &[String]) -> Vec<String> {
    let ups = path.iter().take_while(|name| *name == "super").count();
    let selfs = usize::from(path.first().is_some_and(|name| name == "self"));
    if ups + selfs == 0 {
        return path.to_vec();
    }
    let base = &module[..module.len().saturating_sub(ups)];
    base.iter().chain(&path[ups + selfs..]).cloned().collect()
}

/// Names of the functions in `impl` blocks of `type_name` itself.
pub(crate) fn method_names<'a>(tokens: &'a [Token], type_name: &str) -> Vec<&'a str> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let is_block =
            is(tokens, at, "impl") && is(tokens, at + 1, type_name) && is(tokens, at + 2, "{");
        at += if is_block { 3 } else { 1 };
        let mut depth = usize::from(is_block);
        while depth > 0 && at < tokens.len() {
            match &*tokens[at].text {
                "{" => depth += 1,
                "}" => depth -= 1,
                "fn" if depth == 1 => found.push(&*tokens[at + 1].text),
                _ => {}
            }
            at += 1;
        }
    }
    found
}

/// Lines and names of the methods that are called as `self.name(`.
pub(crate) fn calls_of_self(tokens: &[Token]) -> impl Iterator<Item = (usize, &str)> {
    tokens.windows(4).filter_map(|four| {
        let is_call = four[0].text == "self" && four[1].text == "." && four[3].text == "(";
        is_call.then_some((four[2].line, &*four[2].text))
    })
}

/// A name, a literal (its text left out) or a punctuation mark.
#[derive(Debug)]
pub(crate) struct Token {
    text: String,
    line: usize,
}

impl Token {
    fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

fn is(tokens: &[Token], at: usize, text: &str) -> bool {
    tokens.get(at).is_some_and(|token| token.text == text)
}

/// Code without comments, lifetimes and the text of literals.
pub(crate) fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (length, token) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), "")
        } else if rest.starts_with("/*") {
            (block_comment(rest), "")
        } else if let Some(length) = literal(rest) {
            (length, "\"")
        } else if let Some(name) = rest.strip_prefix("r#") {
            let word = name.find(|c| !is_word(c)).unwrap_or(name.len());
            (2 + word, &name[..word])
        } else if first == '\'' {
            // A lifetime: `literal` has taken the characters.
            (1 + rest[1..].find(|c| !is_word(c)).unwrap_or(rest.len() - 1), "")
        } else if word > 0 {
            (word, &rest[..word])
        } else if rest.starts_with("::") {
            (2, "::")
        } else if first.is_whitespace() {
            (first.len_utf8(), "")
        } else {
            (first.len_utf8(), &rest[..first.len_utf8()])
        };
        if !token.is_empty() {
            tokens.push(Token { text: token.to_string(), line });
        }
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// Length of the block comment, which may hold others, at the start of `text`.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(mark) = text.as_bytes().get(at..at + 2) {
        match mark {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Length of the string or character literal at the start of `text`, if there is one.
fn literal(text: &str) -> Option<usize> {
    let unprefixed = text.trim_start_matches(['b', 'c', 'r']);
    let prefix = &text[..text.len() - unprefixed.len()];
    if !matches!(prefix, "" | "b" | "c" | "r" | "br" | "cr") {
        return None;
    }
    if prefix.ends_with('r') {
        let hashes = unprefixed.len() - unprefixed.trim_start_matches('#').len();
        let body = unprefixed[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let close = body.find(&end).map_or(body.len(), |close| close + end.len());
        return Some(text.len() - body.len() + close);
    }
    let quote = unprefixed.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut inner = unprefixed[1..].char_indices();
    if quote == '\'' && !unprefixed.starts_with("'\\") {
        // `'a'` is a character, `'a` a lifetime.
        inner.next();
        let (close, c) = inner.next()?;
        return (c == '\'').then_some(prefix.len() + 1 + close + 1);
    }
    while let Some((at, c)) = inner.next() {
        match c {
            '\\' => drop(inner.next()),
            _ if c == quote => return Some(prefix.len() + 1 + at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

/// Removes the items that are compiled for tests only; returns their lines.
pub(crate) fn remove_test_items(tokens: &mut Vec<Token>) -> usize {
    let mut lines = 0;
    let mut at = 0;
    while at < tokens.len() {
        let start = ["#", "[", "cfg", "(", "test", ")", "]"];
        if !start.iter().enumerate().all(|(offset, text)| is(tokens, at + offset, text)) {
            at += 1;
            continue;
        }
        let (mut end, mut depth) = (at + start.len(), 0_i32);
        while end < tokens.len() {
            match tokens[end].text.as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            if depth < 0 {
                // A last field or variant: the enclosing item ends here.
                break;
            }
            end += 1;
            // An item ends with its braces or its semicolon, an attribute with neither.
            if depth == 0 && matches!(tokens[end - 1].text.as_str(), "}" | ";") {
                break;
            }
        }
        lines += tokens[end - 1].line - tokens[at].line + 1;
        tokens.drain(at..end);
    }
    lines
}

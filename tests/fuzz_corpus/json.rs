//! RFC 8259 as a grammar, to compare parsers with.
//!
//! Owns a checker that builds no value: written from the RFC alone, with an explicit stack
//! instead of recursion. White space is space, tab, CR and LF.

/// `text` with a tilde repeated, so that the string it stands in is most of the text: what the
/// parser is spared is longer than a fuzzer's inputs.
pub(crate) fn stretched(text: &str) -> Option<String> {
    let (before, after) = text.split_once('~')?;
    Some(format!("{before}{}{after}", "~".repeat(text.len() + 512)))
}

/// The end of the value in `text` at `start`; `None` without a value there.
pub(crate) fn value_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    // The closing brackets that are still to come.
    let mut open: Vec<u8> = Vec::new();
    loop {
        // A value begins here.
        let opening = *text.get(at)?;
        match opening {
            b'{' | b'[' => {
                let closing = if opening == b'{' { b'}' } else { b']' };
                at = space_end(text, at + 1);
                if text.get(at) != Some(&closing) {
                    open.push(closing);
                    at = member_start(text, at, closing)?;
                    continue;
                }
                at += 1;
            }
            b'"' => at = string_end(text, at)?,
            b'-' | b'0'..=b'9' => at = number_end(text, at)?,
            _ => {
                let words: [&[u8]; 3] = [b"true", b"false", b"null"];
                at += words.into_iter().find(|word| text[at..].starts_with(word))?.len();
            }
        }
        // And has ended here; perhaps with it some that it was the last part of.
        loop {
            let Some(closing) = open.last().copied() else { return Some(at) };
            at = space_end(text, at);
            let next = *text.get(at)?;
            at += 1;
            if next == b',' {
                at = member_start(text, space_end(text, at), closing)?;
                break;
            }
            if next != closing {
                return None;
            }
            open.pop();
        }
    }
}

/// Where white space from `at` on ends.
pub(crate) fn space_end(text: &[u8], at: usize) -> usize {
    let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    at + text[at..].iter().take_while(is_space).count()
}

/// Where the string ends that begins at `start`.
pub(crate) fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    if text.get(start) != Some(&b'"') {
        return None;
    }
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => match text.get(at + 1)? {
                b'u' => {
                    let digits = text.get(at + 2..at + 6)?;
                    if !digits.iter().all(u8::is_ascii_hexdigit) {
                        return None;
                    }
                    at += 6;
                }
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                _ => return None,
            },
            0..0x20 => return None,
            _ => at += 1,
        }
    }
}

fn number_end(text: &[u8], start: usize) -> Option<usize> {
    let digits_end = |at: usize| {
        let count = text.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then_some(at + count)
    };
    let mut at = start + usize::from(text.get(start) == Some(&b'-'));
    at = if text.get(at) == Some(&b'0') { at + 1 } else { digits_end(at)? };
    if text.get(at) == Some(&b'.') {
        at = digits_end(at + 1)?;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        at += 1;
        at = digits_end(at + usize::from(matches!(text.get(at), Some(b'+' | b'-'))))?;
    }
    Some(at)
}

/// Where the value of the member at `at` begins: in an object behind its name.
fn member_start(text: &[u8], at: usize, closing: u8) -> Option<usize> {
    if closing == b']' {
        return Some(at);
    }
    let colon = space_end(text, string_end(text, at)?);
    (text.get(colon) == Some(&b':')).then(|| space_end(text, colon + 1))
}

/// The one value in `text`, without the white space around it.
pub(crate) fn only_value(text: &str) -> Option<&str> {
    let start = space_end(text.as_bytes(), 0);
    let end = value_end(text.as_bytes(), start)?;
    (space_end(text.as_bytes(), end) == text.len()).then(|| &text[start..end])
}

/// Names and values of an object's members, as they stand in valid `object`.
pub(crate) fn members(object: &str) -> Vec<(&str, &str)> {
    let text = object.as_bytes();
    let mut members = Vec::new();
    let mut at = space_end(text, 1);
    while text[at] != b'}' {
        let name_end = string_end(text, at).expect("valid");
        let start = member_start(text, at, b'}').expect("valid");
        let end = value_end(text, start).expect("valid");
        members.push((&object[at..name_end], &object[start..end]));
        at = space_end(text, end);
        if text[at] == b',' {
            at = space_end(text, at + 1);
        }
    }
    members
}

/// How deep valid `json` nests.
pub(crate) fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut at) = (0, 0, 0);
    while let Some(byte) = json.as_bytes().get(at) {
        match byte {
            b'"' => at = string_end(json.as_bytes(), at).expect("valid") - 1,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
        at += 1;
    }
    deepest
}

//! Shortened texts: the verdict on them is the verdict on the whole text.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::super::{frame, parse, unwrap, value};
use super::*;

fn shortened(text: &str) -> Option<String> {
    Shortened::new(text).map(|it| it.as_str().to_owned())
}

/// As long as what is left out.
fn inside() -> String {
    "a\u{e9}~".repeat(INSIDE_MIN / 4)
}

#[test]
fn the_inside_of_a_long_string_is_left_out() {
    let inside = inside();
    for (before, after) in [
        ("\"", "\""),
        (r#"{"v":2,"type":"noise_msg","data":""#, r#""}"#),
        (r#" [ "a" , ""#, r#"" , "\\" ] "#),
        // An escaped quote ends nothing.
        (r#"["a\""#, r#""]"#),
    ] {
        let text = format!("{before}{inside}{after}");
        assert_eq!(shortened(&text), Some(format!("{before}{after}")));
        assert_eq!(frame(&text), Some(text.trim()));
    }
}

#[test]
fn other_texts_are_not_shortened() {
    let inside = inside();
    for text in [
        String::new(),
        "\"\"".into(),
        inside.clone(),
        format!("\"{inside}"),
        format!("{inside}\""),
        // Too short.
        format!("\"{}\"", &inside[..INSIDE_MIN - 4]),
        // Escapes, and what has to be escaped.
        format!("\"{inside}\\n\""),
        format!("\"\\n{inside}\""),
        format!("\"{inside}\\\"{inside}\""),
        format!("\"{inside}\u{1f}\""),
        // Less than half of the text.
        format!("[\"{inside}\",{}]", "1,".repeat(inside.len())),
    ] {
        assert_eq!(shortened(&text), None, "{text}");
    }
}

/// Between two strings there are quotes as around one.
#[test]
fn what_stands_between_strings_is_checked_as_before() {
    let numbers = format!("{}1", "1,".repeat(INSIDE_MIN));
    for (text, is_json) in [
        (format!(r#"["a",{numbers},"b"]"#), true),
        (format!(r#"{{"a":[{numbers}],"b":1}}"#), true),
        (format!(r#"["a",{numbers},,"b"]"#), false),
    ] {
        assert!(shortened(&text).is_some());
        assert_eq!(frame(&text), is_json.then_some(&*text));
        let envelope = format!(r#"{{"conn_id":"c","frame":{text}}}"#);
        assert_eq!(unwrap(&envelope).is_ok(), is_json);
        assert_eq!(unwrap(&envelope), parse(&envelope));
    }
}

#[test]
fn parts_are_those_of_the_text() {
    let inside = inside();
    let text = format!(r#"["ab","{inside}","cd"]"#);
    let it = Shortened::new(&text).unwrap();
    let short = it.as_str();
    for (part, original) in [("ab", "ab"), ("cd", "cd"), (short, &*text), ("", "")] {
        let part = &short[short.find(part).unwrap()..][..part.len()];
        assert_eq!(it.original(part), original);
        assert_eq!(it.is_gap_in(part), original.contains(&inside));
    }
}

/// A text around a long string, valid or nearly so.
fn text(rng: &mut StdRng) -> String {
    const AROUND: [(&str, &str); 10] = [
        ("\"", "\""),
        ("[\"", "\"]"),
        (r#"["a\""#, "\"]"),
        (r#"["\\"#, "\"]"),
        (r#"{"conn_id":"c","frame":""#, r#""}"#),
        (r#"{"frame":{"a":""#, r#""},"close_code":4000,"conn_id":"c"}"#),
        (r#"{"conn_id":""#, r#"","frame":1}"#),
        (r#"{"conn_id":"c\""#, r#"","frame":1}"#),
        (r#"{"conn_id":"c","frame":1,""#, r#"":2}"#),
        (r#"{"conn_id":"c","frame":1,"push_wake":{"token":""#, r#""}}"#),
    ];
    const PIECES: &str =
        "\"|\"|\\|\\|{|}|[|]|,|:|1| |\\u00|\u{e9}|\u{1f}|null|\"frame\":|\"conn_id\":|\"a\",";
    let pieces: Vec<_> = PIECES.split('|').collect();
    let (before, after) = AROUND.choose(rng).unwrap();
    let mut text = format!("{before}{}{after}", inside());
    for _ in 0..rng.random_range(0..3) {
        let mut at = match rng.random_range(0..3) {
            0 => rng.random_range(0..=before.len()),
            1 => text.len() - rng.random_range(0..=after.len()),
            _ => rng.random_range(0..=text.len()),
        };
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        match rng.random() {
            true => text.insert_str(at, pieces.choose(rng).unwrap()),
            false if at < text.len() => drop(text.remove(at)),
            false => {}
        }
    }
    text
}

#[test]
fn the_verdict_is_that_on_the_whole_text() {
    let (mut frames, mut envelopes, mut refused) = (0, 0, 0);
    for seed in 0..20_000 {
        let text = text(&mut StdRng::seed_from_u64(seed));
        assert_eq!(frame(&text), value(&text), "seed {seed}: {text}");
        assert_eq!(unwrap(&text), parse(&text), "seed {seed}: {text}");
        let Some(it) = Shortened::new(&text) else { continue };
        frames += usize::from(value(it.as_str()).is_some());
        envelopes += usize::from(super::super::unwrap_shortened(&it).is_some());
        refused += usize::from(value(&text).is_none());
    }
    for count in [frames, envelopes, refused] {
        assert!(count > 1_000, "{frames} frames, {envelopes} envelopes, {refused} refused");
    }
}

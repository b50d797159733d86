//! JSON by RFC 8259, as a phone's frame and inside an envelope: texts that every parser
//! accepts, texts that none may accept, and the relay's choice for the rest.

use super::*;

/// Whether the relay accepts `text` as one JSON value, in each place.
fn expect(text: &str, is_value: bool) {
    let value = text.trim_matches([' ', '\t', '\r', '\n']);
    assert_eq!(frame(text), is_value.then_some(value), "as a frame: {text:?}");
    let unwrapped = |envelope: &str| match unwrap(envelope) {
        Ok(Envelope::Deliver { frame, .. }) => frame.map(str::to_owned),
        _ => None,
    };
    let envelope = format!(r#"{{"frame":{text},"conn_id":"c"}}"#);
    let delivered = is_value.then_some(value).filter(|value| *value != "null");
    assert_eq!(unwrapped(&envelope).as_deref(), delivered, "in an envelope: {text:?}");
    let envelope = format!(r#"{{"unknown":{text},"conn_id":"c","frame":1}}"#);
    assert_eq!(unwrapped(&envelope).is_some(), is_value, "as an unknown field: {text:?}");
}

fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

#[test]
fn what_every_parser_accepts() {
    for text in [
        // Any value may stand alone, with white space around and within.
        " true\n",
        "null",
        "-0",
        "\"\"",
        "\r\n\t [\r\n\t ]",
        "{ \"a\" :\n1 , \"b\"\t: [ ] }",
        // Numbers.
        "[0,-0,0e1,0E+1,-0.0e-0]",
        "[0e0123,1.0E+00]",
        "[0.00000000000000000000000000000000000000000000000000000001]",
        // Keys: empty, twice, with escapes.
        r#"{"":0}"#,
        r#"{"a":1,"a":1,"a":2}"#,
        r#"{"\u0000\"\\":{"\u0061":[]}}"#,
        // Every escape, and characters that need none.
        r#""\"\\\/\b\f\n\r\t\u0000\uFfFf""#,
        r#"["\uD801\udc37","\uDBFF\uDFFF","\u005C\u0022"]"#,
        "\"/ \u{7f}\u{80}\u{2028}\u{2029}\u{fffe}\u{ffff}\u{1fffe}\u{10ffff}\"",
        // A comment, a bracket or an end within a string.
        r##"["/*","//","#","]","}",",","\\"]"##,
    ] {
        expect(text, true);
    }
}

#[test]
fn what_no_parser_may_accept() {
    for group in [
        // Nothing, too little, too much.
        &["", " \n", "[", "[1", "[1,", "{", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,"][..],
        &["\"a", "\"\\", "\"\\\"", "1]", "{}}", "[]]", "[][]", "1,2", "true false", "[1}"],
        // Commas and colons.
        &["[,]", "[,1]", "[1,]", "[1,,2]", "[1;2]", "[\"a\":1]", "{,}", "{\"a\":1,}"],
        &["{\"a\":1,,\"b\":2}", "{\"a\"::1}", "{\"a\",1}", "{\"a\"}", "{:1}", "{\"a\" \"b\"}"],
        // Keys that are not strings.
        &["{a:1}", "{'a':1}", "{1:1}", "{null:1}", "{[]:1}"],
        // Numbers.
        &["[+1]", "[-]", "[--1]", "[- 1]", "[01]", "[-01]", "[00]", "[.1]", "[-.1]", "[1.]"],
        &["[1.e1]", "[1e]", "[1e+]", "[1e+-1]", "[1e1.0]", "[1 000]", "[1_000]", "[0x1]"],
        &["[1e1e1]", "[1.2.3]", "[NaN]", "[Infinity]", "[-Infinity]"],
        // Digits, but not ASCII.
        &["[\u{ff11}]", "[\u{663}]"],
        // Words.
        &["[tru]", "[TRUE]", "[truth]", "[undefined]", "[nul]", "[null0]"],
        // Strings.
        &["['a']", "[`a`]", "[\u{201c}a\u{201d}]", "[\"\\a\"]", "[\"\\x00\"]", "[\"\\U0041\"]"],
        &["[\"\\u\"]", "[\"\\u004\"]", "[\"\\u+041\"]", "[\"\\u00G0\"]", "[\"\\ud834\\u\"]"],
        &["[\"\\ \"]", "[\"\\\u{e9}\"]", "[\"\\\n\"]", "[\"\0\"]", "[\"\n\"]", "[\"\u{1f}\"]"],
        // Characters that are not white space in JSON.
        &["[\u{c}1]", "[\u{b}1]", "[1\0]", "[\u{a0}1]", "[\u{2060}1]", "[\u{2028}1]"],
        &["[1]\0", "[1]\u{c}"],
        // Comments.
        &["[1]//", "[1]#", "/**/1", "[1/**/]", "{\"a\":/**/1}"],
        // Text that would end its place in the envelope.
        &[r#"1,"close_code":4000"#, r#"1},{"frame":2"#, r#"1}{"conn_id":"d","frame":2"#],
    ] {
        for text in group {
            assert_eq!(frame(text), None, "{text:?}");
            // In a binary's own envelope this is another valid field.
            if !text.contains("close_code") {
                expect(text, false);
            }
        }
    }
}

/// Where RFC 8259 lets parsers differ, the relay forwards the text unchanged: the ends
/// interpret numbers and surrogates.
#[test]
fn what_parsers_disagree_about() {
    for (text, is_value) in [
        // Numbers beyond any common type (§6).
        ("[100000000000000000000]".to_owned(), true),
        (format!("[-{}]", "9".repeat(10_000)), true),
        ("[1.5e+9999,-1e9999,0.4e00669999999999999999999999999999999]".to_owned(), true),
        ("[123e-10000000,123.456e-789]".to_owned(), true),
        // Surrogates without a partner, with a wrong one, swapped (§8.2).
        (r#"["\uD800","\uDFAA","\uD800abc","\uDd1ea"]"#.to_owned(), true),
        (r#"["\uD888\u1234","\uD800\n","\uD800\uD800\n"]"#.to_owned(), true),
        (r#"["\uDd1e\uD834"]"#.to_owned(), true),
        (r#"{"\uDFAA":0}"#.to_owned(), true),
        // A byte order mark, which a parser may ignore and Go's does not (§8.1).
        ("\u{feff}{}".to_owned(), false),
        // Depth (§9).
        (nested(500), true),
        (nested(NESTING_MAX), true),
        (nested(NESTING_MAX + 1), false),
        ("[".repeat(100_000), false),
        (r#"[{"":"#.repeat(50_000), false),
    ] {
        expect(&text, is_value);
    }
}

#[test]
fn a_truncated_value_is_refused() {
    let whole = r#"{"a\\\u00e9":[{},[],-1.5e+3,true,false,null,"\ud83d\ude00 é"]}"#;
    expect(whole, true);
    for (end, _) in whole.char_indices() {
        expect(&whole[..end], false);
    }
}

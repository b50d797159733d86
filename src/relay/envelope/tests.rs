//! Envelope: the tables of docs/PROTOCOL.md, "Messages".

use serde_json::Value;

use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef";

fn deliver<'a>(
    conn_id: &'a str,
    frame: Option<&'a str>,
    close_code: Option<u16>,
) -> Result<Envelope<'a>, Dropped> {
    Ok(Envelope::Deliver { conn_id: conn_id.into(), frame, close_code })
}

fn wrapped(frame: &str) -> String {
    String::from_utf8(wrap(ID, frame).concat()).unwrap()
}

/// Whether a phone may send this.
fn accepts(message: &str) -> bool {
    frame(message).is_some()
}

/// `depth` arrays, one in the other.
fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// Runs with 256 KiB of stack, which 100,000 levels of recursion would overflow.
fn on_small_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(256 * 1024).spawn(test).unwrap();
    thread.join().unwrap();
}

#[test]
fn the_envelope_adds_the_documented_bytes() {
    assert_eq!(wrapped("1").len() - 1, OVERHEAD);
    const { assert!(OVERHEAD <= 64) };
}

#[test]
fn what_is_wrapped_is_the_frame_byte_for_byte_and_valid() {
    for frame in [
        "{}",
        "true",
        "\"\\ud800\"",
        "[ 1 ,\t2 ]",
        "1.0000000000000000000000000001e+0400",
        "\"}\\\",\\\"conn_id\\\":\\\"x\"",
        r#"{"conn_id":"x","frame":1}"#,
    ] {
        let envelope = wrapped(frame);
        assert_eq!(envelope, format!(r#"{{"conn_id":"{ID}","frame":{frame}}}"#));
        assert_eq!(unwrap(&envelope), deliver(ID, Some(frame), None));
    }
}

#[test]
fn fields_in_any_order_with_escapes_and_unknown_fields() {
    for (envelope, conn_id, frame, close_code) in [
        (r#"{"conn_id":"c","frame":1}"#, "c", Some("1"), None),
        (r#"{"frame":1,"conn_id":"c"}"#, "c", Some("1"), None),
        (r#"{"close_code":1000,"frame":1,"conn_id":"c"}"#, "c", Some("1"), Some(1000)),
        (r#"{"conn_id":"c","close_code":1000}"#, "c", None, Some(1000)),
        // Keys with escapes.
        (r#"{"\u0063onn_id":"c","fr\u0061me":1}"#, "c", Some("1"), None),
        (r#"{"conn_id":"c","close\u005Fcode":4000}"#, "c", None, Some(4000)),
        // Values with escapes.
        (r#"{"conn_id":"\u0063\/\n","frame":1}"#, "c/\n", Some("1"), None),
        // Unknown fields, whatever they hold and however often.
        (r#"{"x":1,"x":{},"conn_id":"c","":[],"frame":1}"#, "c", Some("1"), None),
        (r#"{"Conn_id":7,"FRAME":2,"conn_id":"c","frame":1}"#, "c", Some("1"), None),
        (r#"{"x":"\ud800","conn_id":"c","frame":1}"#, "c", Some("1"), None),
        (r#"{"conn_id":"c","frame":1,"push_wake":null}"#, "c", Some("1"), None),
        // Null and 0 count as absent.
        (r#"{"conn_id":"c","frame":1,"close_code":null}"#, "c", Some("1"), None),
        (r#"{"conn_id":"c","frame":1,"close_code":0}"#, "c", Some("1"), None),
        (r#"{"conn_id":"c","frame":null,"close_code":1000}"#, "c", None, Some(1000)),
        // White space, which is not part of the frame.
        (" \t\r\n{ \"conn_id\"\n:\r\"c\" ,\t\"frame\" : 1 \n} \n", "c", Some("1"), None),
    ] {
        assert_eq!(unwrap(envelope), deliver(conn_id, frame, close_code), "{envelope}");
    }
}

#[test]
fn a_frame_comes_out_byte_for_byte() {
    for frame in [
        "0",
        "false",
        "\"\"",
        "{}",
        "[]",
        "-0.0E-00",
        "123456789012345678901234567890e99999",
        r#"{"b" : 1 ,  "a":2,"b":3}"#,
        r#""\u0041\/\ud83d\ude00""#,
        // Surrogates need no partner (RFC 8259 §8.2).
        r#"["\ud800","\udc00","\udc00\ud800"]"#,
        "\"\u{2028}\u{7f}\u{0080}\u{feff}\"",
        r#"{"conn_id":"x","conn_id":"y"}"#,
        r#""]}{[\"\\""#,
        "[\t1\r\n,2]",
    ] {
        for envelope in [
            format!(r#"{{"conn_id":"c","frame":{frame}}}"#),
            format!("{{\"frame\": \n{frame}\t , \"conn_id\":\"c\"}}"),
        ] {
            assert_eq!(unwrap(&envelope), deliver("c", Some(frame), None), "{envelope}");
        }
    }
}

#[test]
fn what_is_dropped_and_why() {
    for (envelope, cause) in [
        // Not one JSON value.
        ("", Dropped::Malformed),
        (" ", Dropped::Malformed),
        ("{", Dropped::Malformed),
        ("\u{feff}{\"conn_id\":\"c\",\"frame\":1}", Dropped::Malformed),
        ("\u{c}{\"conn_id\":\"c\",\"frame\":1}", Dropped::Malformed),
        ("\u{a0}{\"conn_id\":\"c\",\"frame\":1}", Dropped::Malformed),
        (r#"{"conn_id":"c","frame":1}x"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":1}{}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":1,}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":01}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":'1'}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":NaN}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":[1}}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":"\x"}"#, Dropped::Malformed),
        ("{\"conn_id\":\"c\",\"frame\":\"\n\"}", Dropped::Malformed),
        (r#"{"conn_id":"c","x":tru,"frame":1}"#, Dropped::Malformed),
        (r#"{conn_id:"c","frame":1}"#, Dropped::Malformed),
        // Not an object. serde takes an array for a struct.
        ("null", Dropped::Malformed),
        ("1", Dropped::Malformed),
        (r#""c""#, Dropped::Malformed),
        ("[]", Dropped::Malformed),
        (r#"["c",1]"#, Dropped::Malformed),
        (r#"["c",1,1000,null]"#, Dropped::Malformed),
        // A known key twice, escaped or not, null or not.
        (r#"{"conn_id":"c","conn_id":"c","frame":1}"#, Dropped::Malformed),
        (r#"{"conn_id":null,"conn_id":"c","frame":1}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":null,"frame":1}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":1,"\u0066rame":1}"#, Dropped::Malformed),
        (r#"{"conn_id":"c","frame":1,"close_code":0,"close_code":0}"#, Dropped::Malformed),
        // Wrong types.
        (r#"{"conn_id":1,"frame":1}"#, Dropped::Malformed),
        (r#"{"conn_id":["c"],"frame":1}"#, Dropped::Malformed),
        (r#"{"conn_id":{"c":"c"},"frame":1}"#, Dropped::Malformed),
        (r#"{"conn_id":true,"frame":1}"#, Dropped::Malformed),
        // No phone to deliver to.
        ("{}", Dropped::NoConnId),
        (r#"{"frame":1}"#, Dropped::NoConnId),
        (r#"{"conn_id":"","frame":1}"#, Dropped::NoConnId),
        (r#"{"conn_id":null,"frame":1}"#, Dropped::NoConnId),
        (r#"{"conn_id":"","close_code":1000}"#, Dropped::NoConnId),
        (r#"{"push_wake":null}"#, Dropped::NoConnId),
        // Keys match exactly.
        (r#"{"Conn_id":"c","frame":1}"#, Dropped::NoConnId),
        (r#"{"conn_id ":"c","frame":1}"#, Dropped::NoConnId),
        (r#"{"conn_id":"c","Frame":1}"#, Dropped::NoFrame),
        (r#"{"conn_id":"c","closecode":1000}"#, Dropped::NoFrame),
        // Nothing to deliver.
        (r#"{"conn_id":"c"}"#, Dropped::NoFrame),
        (r#"{"conn_id":"c","frame":null}"#, Dropped::NoFrame),
        (r#"{"conn_id":"c","frame":null,"close_code":0}"#, Dropped::NoFrame),
        (r#"{"conn_id":"c","close_code":null}"#, Dropped::NoFrame),
    ] {
        assert_eq!(unwrap(envelope), Err(cause), "{envelope:?}");
    }
}

#[test]
fn every_cause_of_a_drop_has_a_counter_and_a_label_of_its_own() {
    let mut labels = Vec::new();
    for (index, cause) in Dropped::ALL.into_iter().enumerate() {
        assert_eq!(cause as usize, index);
        assert!(!labels.contains(&cause.label()), "{cause:?}");
        labels.push(cause.label());
    }
}

#[test]
fn a_close_code_is_an_integer_of_16_bits_without_fraction_or_exponent() {
    let some = |code| Some(Some(code));
    for (written, expected) in [
        ("0", Some(None)),
        ("null", Some(None)),
        ("1", some(1)),
        ("1000", some(1000)),
        ("65535", some(65535)),
        ("65536", None),
        ("4294968296", None),
        ("18446744073709552616", None),
        ("99999999999999999999999999", None),
        ("1.0", None),
        ("1000.0", None),
        ("1000.5", None),
        ("1e3", None),
        ("1E3", None),
        ("1000e0", None),
        ("0.0", None),
        ("0e0", None),
        ("-0", None),
        ("-0.0", None),
        ("-1", None),
        ("-1000", None),
        ("+1", None),
        ("01", None),
        ("0x3e8", None),
        ("\"1\"", None),
        ("\"1000\"", None),
        ("true", None),
        ("[1000]", None),
        ("{}", None),
        ("", None),
    ] {
        let envelope = format!(r#"{{"conn_id":"c","frame":1,"close_code":{written}}}"#);
        match expected {
            Some(code) => assert_eq!(unwrap(&envelope), deliver("c", Some("1"), code), "{written}"),
            None => assert_eq!(unwrap(&envelope), Err(Dropped::Malformed), "{written}"),
        }
    }
}

#[test]
fn a_frame_may_nest_as_deep_as_documented_on_any_stack() {
    on_small_stack(|| {
        for (depth, is_accepted) in
            [(128, true), (NESTING_MAX, true), (NESTING_MAX + 1, false), (100_000, false)]
        {
            let frame = nested(depth);
            assert_eq!(accepts(&frame), is_accepted, "{depth}");
            let expected =
                if is_accepted { deliver("c", Some(&frame), None) } else { Err(Dropped::TooDeep) };
            let envelope = format!(r#"{{"conn_id":"c","frame":{frame}}}"#);
            assert_eq!(unwrap(&envelope), expected, "{depth}");
            // Nor is it accepted elsewhere in the envelope.
            let envelope = format!(r#"{{"conn_id":"c","frame":1,"x":{frame}}}"#);
            assert_eq!(unwrap(&envelope).is_ok(), is_accepted, "{depth}");
        }
        let objects = format!("{}1{}", r#"{"a":"#.repeat(NESTING_MAX), "}".repeat(NESTING_MAX));
        assert!(accepts(&objects));
        assert!(!accepts(&format!("[{objects}]")));
    });
}

#[test]
fn unclosed_and_misplaced_brackets_are_refused_on_any_stack() {
    on_small_stack(|| {
        for open in ["[", "{\"a\":", "[[],"] {
            let endless = open.repeat(100_000);
            assert!(!accepts(&endless));
            for envelope in [
                endless.clone(),
                format!(r#"{{"conn_id":"c","frame":{endless}"#),
                format!(r#"{{"x":{endless}"#),
            ] {
                assert_eq!(unwrap(&envelope), Err(Dropped::Malformed));
            }
        }
        let deep = nested(100_000);
        for field in ["conn_id", "close_code"] {
            let envelope = format!(r#"{{"frame":1,"{field}":{deep}}}"#);
            assert_eq!(unwrap(&envelope), Err(Dropped::Malformed), "{field}");
        }
        assert_eq!(unwrap(&deep), Err(Dropped::Malformed));
    });
}

#[test]
fn brackets_count_neither_in_strings_nor_side_by_side() {
    let brackets = "[{".repeat(NESTING_MAX);
    for frame in [
        format!("\"{brackets}\""),
        format!("{{\"{brackets}\":1}}"),
        format!("[\"\\\"{brackets}\",\"\\\\\",\"{brackets}\\\\\"]"),
        format!("[{}[]]", "[],".repeat(2 * NESTING_MAX)),
    ] {
        assert!(accepts(&frame));
        let envelope = format!(r#"{{"conn_id":"c","frame":{frame}}}"#);
        assert_eq!(unwrap(&envelope), deliver("c", Some(&frame), None));
    }
    // With siblings too the documented depth is accepted.
    let deepest = format!("[[],{}]", nested(NESTING_MAX - 1));
    assert!(accepts(&deepest));
    assert!(!accepts(&format!("[{deepest}]")));
    // Closing brackets in strings do not reduce the depth.
    let deep = format!("{}1{}", "[\"]\",".repeat(NESTING_MAX + 1), "]".repeat(NESTING_MAX + 1));
    assert!(!accepts(&deep));
    // A quote that is escaped ends no string, and an escaped backslash escapes nothing.
    let hidden = format!("[\"\\\\\",{}]", nested(NESTING_MAX));
    assert!(!accepts(&hidden));
}

#[test]
fn a_frame_is_one_json_value() {
    for good in
        ["{}", "[]", "0", "-1.5e+10", "\"\"", "null", "true", "\"\\u0000\\ud800\"", "\"\u{7f}\""]
    {
        assert!(accepts(good), "{good:?}");
        assert!(accepts(&format!(" \t\r\n{good}\n")), "{good:?}");
    }
    for bad in [
        "",
        " ",
        "{",
        "}",
        "[1,]",
        "{\"a\":1,}",
        "{}{}",
        "1 2",
        "01",
        ".5",
        "5.",
        "1e",
        "+1",
        "-",
        "NaN",
        "nul",
        "True",
        "'a'",
        "\"",
        "\"\\u12g4\"",
        "\"\\x\"",
        "\"\t\"",
        "\"\0\"",
        "{a:1}",
        "{1:1}",
        "/**/1",
        "\u{feff}1",
        "\u{a0}1",
        "1\u{c}",
        "[1 2]",
        "{\"a\" 1}",
    ] {
        assert!(!accepts(bad), "{bad:?}");
    }
}

#[test]
fn a_push_wake_needs_no_conn_id_and_yields_to_one() {
    let wake = r#"{"platform":"fcm","token":"t"}"#;
    assert_eq!(unwrap(&format!(r#"{{"push_wake":{wake}}}"#)), push_wake("t"));
    let both = format!(r#"{{"push_wake":{wake},"conn_id":"c","frame":1}}"#);
    assert_eq!(unwrap(&both), deliver("c", Some("1"), None));
}

fn push_wake(token: &str) -> Result<Envelope<'_>, Dropped> {
    Ok(Envelope::PushWake { token: token.into() })
}

#[test]
fn a_push_wake_names_a_platform_and_a_token() {
    let longest = "t".repeat(DEVICE_TOKEN_MAX);
    for (object, token) in [
        (r#"{"token":"t","platform":"fcm"}"#, "t"),
        (r#"{"platf\u006frm":"f\u0063m","token":"\u0074:\/"}"#, "t:/"),
        (r#"{"platform":"fcm","token":"t","data":{"a":1},"data":2}"#, "t"),
        (" { \"platform\" : \"fcm\" ,\n\"token\" : \" \" } ", " "),
        (&format!(r#"{{"platform":"fcm","token":"{longest}"}}"#), &longest),
    ] {
        assert_eq!(unwrap(&format!(r#"{{"push_wake":{object}}}"#)), push_wake(token), "{object}");
        let unnamed = format!(r#"{{"conn_id":"","push_wake":{object},"frame":1}}"#);
        assert_eq!(unwrap(&unnamed), push_wake(token), "{object}");
    }
    for object in [
        "1",
        "true",
        "\"fcm\"",
        "[]",
        r#"["fcm","t"]"#,
        "{}",
        r#"{"platform":"fcm"}"#,
        r#"{"token":"t"}"#,
        r#"{"platform":"apns","token":"t"}"#,
        r#"{"platform":"FCM","token":"t"}"#,
        r#"{"platform":null,"token":"t"}"#,
        r#"{"platform":"fcm","token":null}"#,
        r#"{"platform":"fcm","token":""}"#,
        r#"{"platform":"fcm","token":7}"#,
        r#"{"platform":"fcm","token":["t"]}"#,
        r#"{"platform":"fcm","token":"\ud800"}"#,
        r#"{"platform":"fcm","Token":"t"}"#,
        r#"{"platform":"fcm","token":"t","token":"t"}"#,
        r#"{"platform":"fcm","token":"t","tok\u0065n":"t"}"#,
        &format!(r#"{{"platform":"fcm","token":"{longest}t"}}"#),
    ] {
        let envelope = format!(r#"{{"push_wake":{object}}}"#);
        assert_eq!(unwrap(&envelope), Err(Dropped::PushWakeMalformed), "{object}");
        // With a conn_id it is an ignored field.
        let addressed = format!(r#"{{"push_wake":{object},"conn_id":"c","frame":1}}"#);
        assert_eq!(unwrap(&addressed), deliver("c", Some("1"), None), "{object}");
    }
}

/// Random text is accepted exactly where serde_json accepts it.
#[test]
fn frames_are_what_a_parser_with_a_tree_accepts() {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    const PIECES: [&str; 24] = [
        "{", "}", "[", "]", ",", ":", "\"", "\"a\"", "\\", "\\u00", "41", "1", "-", "0", ".", "e-",
        "+", "true", "null", " ", "\n", "ü", "{\"a\":", "[1,2]",
    ];
    for seed in 0..20_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(1..8);
        let text: String = (0..count).map(|_| PIECES[rng.random_range(0..PIECES.len())]).collect();
        let is_json = serde_json::from_str::<Value>(&text).is_ok();
        assert_eq!(accepts(&text), is_json, "seed {seed}: {text:?}");
        if is_json {
            let envelope = wrapped(&text);
            serde_json::from_str::<Value>(&envelope).unwrap();
            let expected = Some(text.trim_ascii()).filter(|frame| *frame != "null");
            match unwrap(&envelope) {
                Ok(Envelope::Deliver { frame, .. }) => assert_eq!(frame, expected, "seed {seed}"),
                other => {
                    assert_eq!((other, expected), (Err(Dropped::NoFrame), None), "seed {seed}");
                }
            }
        }
    }
}

#[test]
fn opening_brackets_are_counted_across_the_chunks_of_the_count() {
    let naive = |json: &str| json.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    for len in [0, 1, 254, 255, 256, 510, 511, 70_000] {
        for text in ["[".repeat(len), "{".repeat(len), "x".repeat(len), "[;{K".repeat(len)] {
            assert_eq!(opening_brackets(&text), naive(&text), "{len} of {:?}", text.chars().next());
        }
    }
    // Every other character, those that differ from a bracket in one bit above all.
    let all: String = (0..=255_u32).filter_map(char::from_u32).collect();
    assert_eq!(opening_brackets(&all), 2);
}

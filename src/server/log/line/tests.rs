//! Lines: hostile values in both formats give one line each and can be read back.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Map, Value as Json};

use super::*;

const FORMATS: [LogFormat; 2] = [LogFormat::Logfmt, LogFormat::Json];

fn rendered(format: LogFormat, since_epoch: Duration, record: &Record<'_>) -> String {
    let mut text = String::from("before\n");
    render(format, since_epoch, record, &mut text);
    text.split_off("before\n".len())
}

/// The line of an event `e` with these pairs, at the start of 1970.
fn line(format: LogFormat, pairs: &[(&str, Value<'_>)]) -> String {
    let record = Record::builder().args(format_args!("e")).key_values(&pairs).build();
    rendered(format, Duration::ZERO, &record)
}

/// Reads a line as its consumer would; every value as it was before escaping.
fn parse(format: LogFormat, line: &str) -> Vec<(String, String)> {
    let line = line.strip_suffix('\n').unwrap();
    assert!(!line.contains(is_hazard), "{line:?}");
    match format {
        LogFormat::Json => {
            let object: Map<String, Json> = serde_json::from_str(line).unwrap();
            let plain = |value: Json| value.as_str().map_or(value.to_string(), str::to_owned);
            object.into_iter().map(|(key, value)| (key, plain(value))).collect()
        }
        LogFormat::Logfmt => parse_logfmt(line),
    }
}

fn parse_logfmt(mut rest: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').unwrap();
        let (value, after) = if after.starts_with('"') {
            let mut json = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let value = json.next().unwrap().unwrap();
            (value, &after[json.byte_offset()..])
        } else {
            let end = after.find(char::is_whitespace).unwrap_or(after.len());
            assert!(end > 0 && !after[..end].contains(['=', '"', '\\']), "{after:?}");
            (after[..end].to_owned(), &after[end..])
        };
        pairs.push((key.to_owned(), value));
        assert!(after.is_empty() || after.starts_with(' '), "{after:?}");
        rest = after.strip_prefix(' ').unwrap_or(after);
    }
    pairs
}

fn value_of(format: LogFormat, line: &str, key: &str) -> String {
    let mut pairs = parse(format, line).into_iter();
    let (_, value) = pairs.find(|(name, _)| name == key).unwrap();
    assert!(pairs.all(|(name, _)| name != key), "{key} is there twice: {line}");
    value
}

#[test]
fn a_line_looks_like_this() {
    let time = Duration::from_millis(1_709_210_096_789);
    let pairs: &[(&str, Value<'_>)] = &[
        ("server_id", "home".into()),
        ("device_name", "Ann's \"phone\"".into()),
        ("remote", Value::from_display(&"[::1]:80")),
        ("conn_id", Value::null()),
        ("close_code", 1011_u16.into()),
        ("connections", (-1_i8).into()),
        ("err", "".into()),
    ];
    let args = format_args!("server_claimed");
    let record = Record::builder().level(Level::Warn).args(args).key_values(&pairs).build();
    assert_eq!(
        rendered(LogFormat::Logfmt, time, &record),
        "time=2024-02-29T12:34:56.789Z level=WARN msg=server_claimed server_id=home \
         device_name=\"Ann's \\\"phone\\\"\" remote=[::1]:80 close_code=1011 connections=-1 \
         err=\"\"\n"
    );
    assert_eq!(
        rendered(LogFormat::Json, time, &record),
        "{\"time\":\"2024-02-29T12:34:56.789Z\",\"level\":\"WARN\",\"msg\":\"server_claimed\",\
         \"server_id\":\"home\",\"device_name\":\"Ann's \\\"phone\\\"\",\"remote\":\"[::1]:80\",\
         \"close_code\":1011,\"connections\":-1,\"err\":\"\"}\n"
    );
}

#[test]
fn levels_are_spelt_as_slog_does() {
    // log/slog, Level.String: trace is four below debug.
    for (level, spelt) in [
        (Level::Error, "ERROR"),
        (Level::Warn, "WARN"),
        (Level::Info, "INFO"),
        (Level::Debug, "DEBUG"),
        (Level::Trace, "DEBUG-4"),
    ] {
        let record = Record::builder().level(level).args(format_args!("e")).build();
        let logfmt = rendered(LogFormat::Logfmt, Duration::ZERO, &record);
        assert_eq!(logfmt, format!("time=1970-01-01T00:00:00.000Z level={spelt} msg=e\n"));
        let json = rendered(LogFormat::Json, Duration::ZERO, &record);
        assert!(json.contains(&format!("\"level\":\"{spelt}\"")), "{json}");
    }
}

#[test]
fn no_value_forges_a_line_or_a_key() {
    for (value, logfmt) in [
        ("plain", "plain"),
        ("", r#""""#),
        ("größe…", "größe…"),
        ("two words", r#""two words""#),
        ("no\u{a0}break", "\"no\u{a0}break\""),
        ("x level=ERROR", r#""x level=ERROR""#),
        ("a=b", r#""a=b""#),
        ("\"", r#""\"""#),
        ("\\", r#""\\""#),
        ("\\n", r#""\\n""#),
        ("\" cause=\"x", r#""\" cause=\"x""#),
        ("a\nmsg=forged", r#""a\nmsg=forged""#),
        ("a\r\nb\tc", r#""a\r\nb\tc""#),
        ("\0\u{7}\u{b}\u{7f}", r#""\u0000\u0007\u000b\u007f""#),
        ("\u{1b}[2J\u{1b}[31m", r#""\u001b[2J\u001b[31m""#),
        ("\u{85}\u{9b}2J", r#""\u0085\u009b2J""#),
        ("\u{2028}\u{2029}", r#""\u2028\u2029""#),
        ("\u{202e}abc\u{202c}\u{2066}\u{2069}", r#""\u202eabc\u202c\u2066\u2069""#),
        ("\u{61c}\u{200b}\u{200f}\u{feff}", r#""\u061c\u200b\u200f\ufeff""#),
        ("\u{e0041}", r#""\udb40\udc41""#),
        ("\u{fffd}\u{10ffff}", "\u{fffd}\u{10ffff}"),
        ("},{\"level\":\"error\"", r#""},{\"level\":\"error\"""#),
    ] {
        for format in FORMATS {
            let line = line(format, &[("device_name", value.into()), ("cause", "end".into())]);
            assert_eq!(value_of(format, &line, "device_name"), value, "{line}");
            assert_eq!(parse(format, &line).len(), 5, "{line}");
        }
        let line = line(LogFormat::Logfmt, &[("err", value.into())]);
        assert!(line.ends_with(&format!(" err={logfmt}\n")), "{line} is not {logfmt}");
    }
}

#[test]
fn the_event_is_escaped_like_a_value() {
    for format in FORMATS {
        let event = format!("{}\nforged{}", "x", "\u{1b}");
        // In one statement: `format_args!` in a `let` of its own needs Rust 1.89.
        let line = rendered(
            format,
            Duration::ZERO,
            &Record::builder().args(format_args!("{event}")).build(),
        );
        assert_eq!(value_of(format, &line, "msg"), event);
    }
}

#[test]
fn a_long_value_is_cut_between_characters_and_escapes() {
    for (unit, takes) in [("x", 1), ("ß", 2), ("€", 3), ("🦀", 4), ("\"", 2), ("\u{1b}", 6)] {
        for format in FORMATS {
            let fits = unit.repeat(VALUE_MAX / takes);
            let exact = line(format, &[("path", fits.as_str().into())]);
            assert_eq!(value_of(format, &exact, "path"), fits);

            let long = fits + unit;
            let kept = (VALUE_MAX - ELLIPSIS.len_utf8()) / takes;
            let cut = line(format, &[("path", long.as_str().into())]);
            assert_eq!(value_of(format, &cut, "path"), unit.repeat(kept) + "…");
        }
    }
}

#[test]
fn formatting_ends_when_the_value_is_full() {
    struct Endless;
    impl Display for Endless {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            loop {
                f.write_str("more")?;
            }
        }
    }
    let endless = line(LogFormat::Logfmt, &[("err", Value::from_display(&Endless))]);
    assert_eq!(value_of(LogFormat::Logfmt, &endless, "err").len(), VALUE_MAX);
}

#[test]
fn any_value_comes_back_or_its_beginning_does() {
    const PARTS: [&str; 14] = [
        "x", " ", "=", "\"", "\\", "\n", "\u{1b}[", "\u{2028}", "\u{202e}", "ß", "€", "🦀", "{",
        "\u{0}",
    ];
    for seed in 0..2_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let length = rng.random_range(0..200);
        let value: String = (0..length).map(|_| PARTS[rng.random_range(0..PARTS.len())]).collect();
        for format in FORMATS {
            let line = line(format, &[("path", value.as_str().into()), ("cause", "end".into())]);
            assert!(line.len() < 2 * VALUE_MAX, "seed {seed}: {line}");
            let read = value_of(format, &line, "path");
            let is_cut = read.strip_suffix(ELLIPSIS).is_some_and(|head| value.starts_with(head));
            assert!(read == value || is_cut, "seed {seed}: {line}");
            assert_eq!(value_of(format, &line, "cause"), "end", "seed {seed}: {line}");
        }
    }
}

#[test]
fn keys_of_the_closed_list_need_no_escape_and_are_no_fixed_field() {
    for (index, key) in KEYS.iter().enumerate() {
        assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{key}");
        assert!(!["time", "level", "msg"].contains(key), "{key}");
        assert!(!KEYS[..index].contains(key), "{key} is there twice");
        let line = line(LogFormat::Logfmt, &[(key, 1.into())]);
        assert!(line.ends_with(&format!(" {key}=1\n")), "{line}");
    }
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "not on the closed list"))]
fn an_unknown_key_is_a_bug_and_says_nothing() {
    let line = line(LogFormat::Logfmt, &[("token", "secret".into()), ("cause", "end".into())]);
    assert_eq!(line, "time=1970-01-01T00:00:00.000Z level=INFO msg=e cause=end\n");
}

#[test]
fn times_are_rfc_3339_in_utc() {
    // date -u -d @SECONDS +%FT%TZ
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00"),
        (86_399, "1970-01-01T23:59:59"),
        (5_097_599, "1970-02-28T23:59:59"),
        (5_097_600, "1970-03-01T00:00:00"),
        (68_169_600, "1972-02-29T00:00:00"),
        (951_782_400, "2000-02-29T00:00:00"),
        (951_868_800, "2000-03-01T00:00:00"),
        (1_735_689_599, "2024-12-31T23:59:59"),
        (2_147_483_648, "2038-01-19T03:14:08"),
        (4_107_542_399, "2100-02-28T23:59:59"),
        (4_107_542_400, "2100-03-01T00:00:00"),
        (13_574_563_200, "2400-02-29T00:00:00"),
    ] {
        let time = rfc3339(Duration::new(seconds, 9_999_999));
        assert_eq!(str::from_utf8(&time), Ok(&*format!("{expected}.009Z")));
    }
}

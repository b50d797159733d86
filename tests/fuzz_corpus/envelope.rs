//! A binary's envelope against the table in section 6 of the contract, applied
//! to the members as they stand in the text.

use pyrycode_relay::config::NESTING_MAX;
use pyrycode_relay::relay::envelope::{self, Dropped, Envelope};
use serde_json::Value;

use super::json;

/// The expected result of [`envelope::unwrap`].
#[derive(Debug, PartialEq)]
enum Verdict<'a> {
    Dropped,
    PushWake { token: String },
    Deliver { conn_id: String, frame: Option<&'a str>, close_code: Option<u16> },
}

/// Checks the text, and the same with a long string.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    check(text);
    json::stretched(text).iter().for_each(|long| check(long));
}

/// Compares both readings.
fn check(text: &str) {
    let verdict = match envelope::unwrap(text) {
        Err(_) => Verdict::Dropped,
        Ok(Envelope::PushWake { token }) => Verdict::PushWake { token: token.into_owned() },
        Ok(Envelope::Deliver { conn_id, frame, close_code }) => {
            Verdict::Deliver { conn_id: conn_id.into_owned(), frame, close_code }
        }
    };
    assert_eq!(verdict, read(text).unwrap_or(Verdict::Dropped), "{text:?}");
    let is_json = json::only_value(text).is_some();
    if !is_json {
        assert_eq!(envelope::unwrap(text), Err(Dropped::Malformed), "{text:?}");
    }
}

/// What a `push_wake` asks for; `None`: to be dropped.
fn wake(object: &str) -> Option<Verdict<'_>> {
    if !object.starts_with('{') {
        return None;
    }
    let (mut platform, mut token) = (None, None);
    for (name, value) in json::members(object) {
        let name: String = serde_json::from_str(name).ok()?;
        let member = match &*name {
            "platform" => &mut platform,
            "token" => &mut token,
            _ => continue,
        };
        if member.replace(serde_json::from_str::<String>(value).ok()?).is_some() {
            return None;
        }
    }
    let token = token.filter(|token| (1..=4096).contains(&token.len()))?;
    (platform? == "fcm").then_some(Verdict::PushWake { token })
}

/// `None`: to be dropped.
fn read(text: &str) -> Option<Verdict<'_>> {
    let object = json::only_value(text).filter(|value| value.starts_with('{'))?;
    if json::depth(object) > NESTING_MAX + 1 {
        return None;
    }
    let (mut conn_id, mut frame, mut close_code, mut push_wake) = (None, None, None, None);
    for (name, value) in json::members(object) {
        // A name of half a surrogate pair is no text.
        let name: String = serde_json::from_str(name).ok()?;
        let member = match &*name {
            "conn_id" => &mut conn_id,
            "frame" => &mut frame,
            "close_code" => &mut close_code,
            "push_wake" => &mut push_wake,
            _ => continue,
        };
        if member.replace(value).is_some() {
            return None;
        }
    }
    // Null is as good as absent, but counts as a duplicate.
    let [conn_id, frame, close_code, push_wake] =
        [conn_id, frame, close_code, push_wake].map(|value| value.filter(|value| *value != "null"));
    let conn_id = match conn_id.map(serde_json::from_str::<Value>) {
        None => String::new(),
        Some(Ok(Value::String(conn_id))) => conn_id,
        Some(_) => return None,
    };
    let close_code = match close_code {
        None => 0,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
    };
    let close_code = Some(close_code).filter(|code| *code != 0);
    if conn_id.is_empty() {
        return wake(push_wake?);
    }
    (frame.is_some() || close_code.is_some()).then_some(Verdict::Deliver {
        conn_id,
        frame,
        close_code,
    })
}

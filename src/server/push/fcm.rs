//! FCM: requests and replies of its HTTP v1 interface. Pure.
//!
//! Owns the request, the outcomes, and which parts of a reply may be logged. Must not know
//! the network.
//!
//! Source: the reference of `projects.messages.send`, and `ErrorCode` there.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::relay::stats::WakeOutcome;

/// The HTTP status for a refused access token.
pub(super) const UNAUTHORIZED: u16 = 401;
const TOO_MANY_REQUESTS: u16 = 429;
/// The pause after a 429 without Retry-After, from Google's guide to scaling.
const PAUSE_DEFAULT: Duration = Duration::from_secs(60);
/// The type of the error detail that holds FCM's own code.
const FCM_ERROR: &str = "type.googleapis.com/google.firebase.fcm.v1.FcmError";
/// The longest message name that is logged, in bytes.
const NAME_MAX: usize = 256;
/// The longest enum value that is accepted, in bytes.
const ENUM_MAX: usize = 64;

/// The URL to which a project's messages are sent.
pub(super) fn send_url(endpoint: &str, project_id: &str) -> String {
    format!("{endpoint}/v1/projects/{project_id}/messages:send")
}

#[derive(Serialize)]
struct Request<'a> {
    message: FcmMessage<'a>,
}

#[derive(Serialize)]
struct FcmMessage<'a> {
    token: &'a str,
    android: Android,
}

#[derive(Serialize)]
struct Android {
    priority: &'static str,
}

/// A message without data and of high priority: it wakes the app and carries no content.
pub(super) fn message(token: &str) -> String {
    let request = Request { message: FcmMessage { token, android: Android { priority: "HIGH" } } };
    serde_json::to_string(&request).expect("strings become JSON")
}

/// Whether FCM has accepted the message.
pub(super) fn is_taken(status: u16) -> bool {
    (200..300).contains(&status)
}

/// The name that FCM gave the message, if it has the form of a message name.
pub(super) fn message_name(body: &[u8]) -> Option<String> {
    let reply: Value = serde_json::from_slice(body).ok()?;
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"/:%_-".contains(&byte);
    let is_name =
        |name: &&str| (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(is_name_byte);
    reply["name"].as_str().filter(is_name).map(str::to_owned)
}

/// FCM's error in its two enum fields, whose form admits neither a token nor a line feed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FcmError {
    /// `google.rpc.Code`.
    pub(super) status: Option<String>,
    /// `google.firebase.fcm.v1.ErrorCode`.
    pub(super) error_code: Option<String>,
}

/// The parts of an error reply that may be logged.
pub(super) fn parse_error(body: &[u8]) -> FcmError {
    let reply: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &reply["error"];
    let mut details = error["details"].as_array().into_iter().flatten();
    let detail = details.find(|detail| detail["@type"] == FCM_ERROR);
    FcmError {
        status: enum_word(&error["status"]),
        error_code: detail.and_then(|detail| enum_word(&detail["errorCode"])),
    }
}

fn enum_word(value: &Value) -> Option<String> {
    let is_enum_byte =
        |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    let is_enum =
        |word: &&str| (1..=ENUM_MAX).contains(&word.len()) && word.bytes().all(is_enum_byte);
    value.as_str().filter(is_enum).map(str::to_owned)
}

/// The outcome of a refusal, whatever its HTTP status.
pub(super) fn outcome(error: &FcmError) -> WakeOutcome {
    match error.error_code.as_deref() {
        Some("UNREGISTERED") => WakeOutcome::Unregistered,
        _ => WakeOutcome::SendFailed,
    }
}

/// The pause that a refusal asks for; `retry_after` is the one that its header names.
pub(super) fn pause(status: u16, retry_after: Option<Duration>) -> Option<Duration> {
    let default = (status == TOO_MANY_REQUESTS).then_some(PAUSE_DEFAULT);
    retry_after.or(default).filter(|pause| !pause.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: &str, kind: &str, code: &str) -> FcmError {
        let body = format!(
            r#"{{"error":{{"code":404,"message":"Requested entity was not found.","status":"{status}",
            "details":[{{"@type":"type.googleapis.com/google.rpc.Help","errorCode":5}},
            {{"@type":"{kind}","errorCode":"{code}"}}]}}}}"#
        );
        parse_error(body.as_bytes())
    }

    #[test]
    fn the_request_is_the_contracts() {
        assert_eq!(
            message("a\"b\n"),
            r#"{"message":{"token":"a\"b\n","android":{"priority":"HIGH"}}}"#
        );
        assert_eq!(
            send_url("https://fcm.googleapis.com", "my-project"),
            "https://fcm.googleapis.com/v1/projects/my-project/messages:send"
        );
    }

    #[test]
    fn unregistered_is_what_fcm_s_own_detail_says() {
        let gone = refusal("NOT_FOUND", FCM_ERROR, "UNREGISTERED");
        assert_eq!(gone.status.as_deref(), Some("NOT_FOUND"));
        assert_eq!(outcome(&gone), WakeOutcome::Unregistered);
        for (kind, code) in [
            ("type.googleapis.com/google.rpc.ErrorInfo", "UNREGISTERED"),
            ("FcmError", "UNREGISTERED"),
            (FCM_ERROR, "INVALID_ARGUMENT"),
            (FCM_ERROR, "unregistered"),
        ] {
            let error = refusal("NOT_FOUND", kind, code);
            assert_eq!(outcome(&error), WakeOutcome::SendFailed, "{kind} {code}");
        }
        for body in [
            "",
            "not found",
            r#"{"error":{"status":"NOT_FOUND"}}"#,
            r#"{"error":{"status":"UNREGISTERED"}}"#,
            r#"{"error":{"details":[{"errorCode":"UNREGISTERED"}]}}"#,
        ] {
            assert_eq!(outcome(&parse_error(body.as_bytes())), WakeOutcome::SendFailed, "{body}");
        }
    }

    #[test]
    fn only_what_looks_like_an_enum_is_repeated() {
        let long = "A".repeat(65);
        for word in ["", "not_found", "A B", "A\\nlevel=ERROR", "ABc", &long, "Ü"] {
            assert_eq!(refusal(word, FCM_ERROR, word), FcmError::default(), "{word}");
        }
        for body in ["[]", "{}", r#"{"error":"A"}"#, r#"{"error":{"status":1}}"#, "\u{0}", "{"] {
            assert_eq!(parse_error(body.as_bytes()), FcmError::default(), "{body}");
        }
        let longest = "A_9".repeat(21) + "Z";
        let error = refusal(&longest, FCM_ERROR, "QUOTA_2");
        assert_eq!(error.status, Some(longest));
        assert_eq!(error.error_code.as_deref(), Some("QUOTA_2"));
    }

    #[test]
    fn a_name_is_told_if_it_has_the_form_of_one() {
        let name = |name: &str| message_name(format!(r#"{{"name":{name}}}"#).as_bytes());
        let good = "projects/my-project/messages/0:1500415314455276%31bd1c9631bd1c96_";
        assert_eq!(name(&format!("\"{good}\"")).as_deref(), Some(good));
        let longest = "a".repeat(256);
        assert_eq!(name(&format!("\"{longest}\"")), Some(longest.clone()));
        for bad in
            ["\"\"", "7", "null", "\"a b\"", "\"a\\nb\"", "\"a=b\"", &format!("\"{longest}a\"")]
        {
            assert_eq!(name(bad), None, "{bad}");
        }
        for body in ["", "[]", "{}", "garbage"] {
            assert_eq!(message_name(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn a_refusal_may_ask_for_a_pause() {
        let seconds = |count| Some(Duration::from_secs(count));
        assert_eq!(pause(429, None), seconds(60));
        assert_eq!(pause(429, seconds(5)), seconds(5));
        assert_eq!(pause(429, seconds(0)), None);
        assert_eq!(pause(503, seconds(7)), seconds(7));
        assert_eq!(pause(503, None), None);
        assert_eq!(pause(404, None), None);
    }
}

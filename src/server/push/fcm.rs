//! FCM's HTTP v1 interface: what is asked, and what a reply means. Pure.
//!
//! Owns the request, the outcomes, and what of a reply may be repeated elsewhere.
//! Knows no network.
//!
//! Source: the reference of `projects.messages.send`, and `ErrorCode` there.

use serde::{Deserialize, Serialize};

use crate::relay::stats::WakeOutcome;

/// The access token was refused.
pub(super) const UNAUTHORIZED: u16 = 401;
const NOT_FOUND: u16 = 404;
/// The longest enum value that is believed to be one, in bytes.
const ENUM_MAX: usize = 64;

/// Where messages of a project are sent to.
pub(super) fn send_url(endpoint: &str, project_id: &str) -> String {
    format!("{endpoint}/v1/projects/{project_id}/messages:send")
}

#[derive(Serialize)]
struct Request<'a> {
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    token: &'a str,
    android: Android,
}

#[derive(Serialize)]
struct Android {
    priority: &'static str,
}

/// A message without data, of high priority: it wakes the app and says nothing.
pub(super) fn message(token: &str) -> String {
    let request = Request { message: Message { token, android: Android { priority: "HIGH" } } };
    serde_json::to_string(&request).expect("strings become JSON")
}

/// Whether FCM has taken the message.
pub(super) fn is_taken(status: u16) -> bool {
    (200..300).contains(&status)
}

/// What FCM says is wrong, in its two enums: words of a shape that can carry
/// neither a token nor a line feed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Complaint {
    /// `google.rpc.Code`.
    pub(super) status: Option<String>,
    /// `google.firebase.fcm.v1.ErrorCode`.
    pub(super) error_code: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    error: Error,
}

#[derive(Deserialize)]
struct Error {
    #[serde(default)]
    status: Option<String>,
    #[serde(default)]
    details: Vec<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    #[serde(default, rename = "errorCode")]
    error_code: Option<String>,
}

/// What of a reply's body may be repeated.
pub(super) fn complaint(body: &[u8]) -> Complaint {
    let Ok(Refusal { error }) = serde_json::from_slice(body) else { return Complaint::default() };
    let mut codes = error.details.into_iter().filter_map(|detail| detail.error_code);
    Complaint {
        status: error.status.filter(|word| is_enum(word)),
        error_code: codes.next().filter(|word| is_enum(word)),
    }
}

fn is_enum(word: &str) -> bool {
    (1..=ENUM_MAX).contains(&word.len())
        && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

/// What a refusal comes to.
pub(super) fn outcome(status: u16, complaint: &Complaint) -> WakeOutcome {
    if status == NOT_FOUND && complaint.error_code.as_deref() == Some("UNREGISTERED") {
        WakeOutcome::Unregistered
    } else {
        WakeOutcome::SendFailed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNREGISTERED: &str = r#"{"error":{"code":404,"message":"Requested entity was not found.",
        "status":"NOT_FOUND","details":[{"@type":"t","errorCode":"UNREGISTERED"}]}}"#;

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
    fn only_a_404_that_says_so_is_unregistered() {
        let gone = complaint(UNREGISTERED.as_bytes());
        assert_eq!(gone.status.as_deref(), Some("NOT_FOUND"));
        assert_eq!(outcome(404, &gone), WakeOutcome::Unregistered);
        assert_eq!(outcome(403, &gone), WakeOutcome::SendFailed);
        for body in ["", "not found", r#"{"error":{"status":"NOT_FOUND"}}"#] {
            assert_eq!(outcome(404, &complaint(body.as_bytes())), WakeOutcome::SendFailed);
        }
    }

    #[test]
    fn only_what_looks_like_an_enum_is_repeated() {
        let long = "A".repeat(65);
        for word in ["", "not_found", "A B", "A\\nlevel=error", "ABC1", &long, "Ü"] {
            let body = format!(
                r#"{{"error":{{"status":"{word}","details":[{{}},{{"errorCode":"{word}"}}]}}}}"#
            );
            assert_eq!(complaint(body.as_bytes()), Complaint::default(), "{word}");
        }
        for body in ["[]", "{}", r#"{"error":"A"}"#, r#"{"error":{"status":1}}"#, "\u{0}", "{"] {
            assert_eq!(complaint(body.as_bytes()), Complaint::default(), "{body}");
        }
        let longest = "A".repeat(64);
        let body = format!(r#"{{"error":{{"status":"{longest}"}}}}"#);
        assert_eq!(complaint(body.as_bytes()).status, Some(longest));
    }
}

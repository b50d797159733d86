//! Wake report: how a wake ended, and its one log line.
//!
//! Owns what that line may contain: FCM's message name and two enum fields, all checked for
//! their form, and fixed texts. Logs a device token only as its fingerprint.

use std::fmt::Display;
use std::time::Duration;

use ring::digest::{SHA256, digest};

use super::duration::GoDuration;
use super::fcm::FcmError;
use crate::relay::push_wake::{DeviceToken, Wake};
use crate::relay::stats::WakeOutcome;

/// Why a call had no meaningful reply, without any of the server's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// The HTTP status, if there was a reply.
    pub(super) status: Option<u16>,
    pub(super) cause: &'static str,
}

/// How a wake ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WakeReport {
    /// FCM has accepted the message, with its name if the reply has one.
    Sent(Option<String>),
    /// The message was not sent; the text is for the log.
    Failed(WakeOutcome, String),
}

impl WakeReport {
    pub(super) fn failed(outcome: WakeOutcome, failure: Failure) -> Self {
        let Failure { status, cause } = failure;
        let words = match status {
            Some(status) => format!("{cause}, status {status}"),
            None => cause.into(),
        };
        Self::Failed(outcome, words)
    }

    /// FCM has refused the message and may have asked for a pause.
    pub(super) fn refused(
        outcome: WakeOutcome,
        status: u16,
        error: &FcmError,
        pause: Option<Duration>,
    ) -> Self {
        let mut words = format!("FCM answered status {status}");
        for word in [&error.status, &error.error_code].into_iter().flatten() {
            words.push(' ');
            words.push_str(word);
        }
        if let Some(pause) = pause {
            words.push_str(&format!("; wakes pause for {} s", pause.as_secs()));
        }
        Self::Failed(outcome, words)
    }

    /// No call was made, because `left` remains of a pause that FCM asked for.
    pub(super) fn paused(left: Duration) -> Self {
        let seconds = left.as_secs_f64().ceil();
        Self::dropped(format_args!("FCM asked for a pause; {seconds} s remain"))
    }

    /// No call was made.
    pub(super) fn dropped(why: impl Display) -> Self {
        Self::Failed(WakeOutcome::Dropped, why.to_string())
    }

    pub(super) fn outcome(&self) -> WakeOutcome {
        match self {
            Self::Sent(_) => WakeOutcome::Sent,
            Self::Failed(outcome, _) => *outcome,
        }
    }

    /// Logs the report, `took` after the wake was queued.
    pub(super) fn log(&self, wake: &Wake, took: Duration) {
        let (server_id, token_fp) = (&*wake.server_id, fingerprint(&wake.device));
        let (token_fp, duration) = (token_fp.as_str(), GoDuration(took));
        match self {
            Self::Sent(name) => log::info!(
                server_id, token_fp, duration:%, fcm_message_id = name.as_deref();
                "push_wake_sent"
            ),
            Self::Failed(outcome, why) => {
                let err = format!("{}: {why}", outcome.label());
                log::warn!(
                    server_id, token_fp, duration:%, err = err.as_str();
                    "push_wake_send_failed"
                );
            }
        }
    }
}

/// The first 8 hex digits of the token's SHA-256: enough to see whether two lines concern
/// the same device.
fn fingerprint(device: &DeviceToken) -> String {
    let hash = digest(&SHA256, device.reveal().as_bytes());
    hash.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_named_by_its_hash() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(fingerprint(&DeviceToken::new("abc")), "ba7816bf");
    }

    #[test]
    fn a_failure_is_told_in_a_few_words() {
        let words = |report| match report {
            WakeReport::Failed(_, words) => words,
            WakeReport::Sent(_) => panic!("it is sent"),
        };
        let outcome = WakeOutcome::SendFailed;
        let cause = "the token endpoint refused the request";
        assert_eq!(words(WakeReport::failed(outcome, Failure { status: None, cause })), cause);
        let failure = Failure { status: Some(400), cause };
        assert_eq!(
            words(WakeReport::failed(outcome, failure)),
            "the token endpoint refused the request, status 400"
        );
        let error = FcmError {
            status: Some("RESOURCE_EXHAUSTED".into()),
            error_code: Some("QUOTA_EXCEEDED".into()),
        };
        assert_eq!(
            words(WakeReport::refused(outcome, 429, &error, Some(Duration::from_secs(60)))),
            "FCM answered status 429 RESOURCE_EXHAUSTED QUOTA_EXCEEDED; wakes pause for 60 s"
        );
        assert_eq!(
            words(WakeReport::refused(outcome, 404, &FcmError::default(), None)),
            "FCM answered status 404"
        );
        assert_eq!(
            words(WakeReport::paused(Duration::from_millis(41_200))),
            "FCM asked for a pause; 42 s remain"
        );
    }
}

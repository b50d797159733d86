//! Health step: requests `/healthz` and checks the response.
//!
//! Owns the HTTP request and the fields of a relay's health. Does not know the other steps.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use serde::Deserialize;

use super::diagnosis::{self, Diagnosis};
use super::stream::Stream;

/// Maximum length of the response that is read.
const ANSWER_MAX: u64 = 64 * 1024;

/// The body of a relay's `/healthz` response.
#[derive(Debug, Deserialize)]
pub(super) struct Health {
    pub(super) status: String,
    pub(super) version: String,
    pub(super) connected_binaries: u64,
    pub(super) connected_phones: u64,
    pub(super) uptime_seconds: u64,
}

/// Sends the request and reads the response, within the stream's deadline.
pub(super) fn ask(
    stream: &mut Stream,
    authority: &str,
    agent: &str,
    timeout: Duration,
) -> Result<Health, Diagnosis> {
    // A response to HTTP/1.0 is not chunked (RFC 9112, 6.1) and ends with the connection,
    // also through proxies.
    let request =
        format!("GET /healthz HTTP/1.0\r\nHost: {authority}\r\nUser-Agent: {agent}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| stream.failure(&error, timeout))?;
    let mut answer = Vec::new();
    if let Err(error) = Read::take(&mut *stream, ANSWER_MAX).read_to_end(&mut answer) {
        // Many servers end TLS without a close_notify alert.
        if error.kind() != ErrorKind::UnexpectedEof {
            return Err(stream.failure(&error, timeout));
        }
    }
    understand(&answer)
}

fn understand(answer: &[u8]) -> Result<Health, Diagnosis> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut head = httparse::Response::new(&mut fields);
    let body = match head.parse(answer) {
        Ok(httparse::Status::Complete(end)) => &answer[end..],
        _ if answer.is_empty() => {
            return Err(diagnosis::cut_off("the connection was closed"));
        }
        _ => {
            return Err(Diagnosis::new("the response to /healthz is not HTTP")
                .advise("the server speaks another protocol: try https:// instead of http://"));
        }
    };
    let health: Option<Health> = serde_json::from_slice(body).ok();
    match (head.code.unwrap_or_default(), health) {
        (200, Some(health)) if health.status == "ok" => Ok(health),
        (503, Some(health)) => {
            Err(Diagnosis::new(format!("the relay reports the status {:?}", health.status)).advise(
                "it is shutting down and accepts no new connections: wait until it has restarted",
            ))
        }
        (200, _) => Err(Diagnosis::new("/healthz answers 200, but without a relay's fields")
            .advise(
                "another program answers in place of the relay: check what listens at that address",
            )),
        (status, _) => Err(diagnosis::unwell(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_told_apart() {
        const BODY: &str = "{\"status\":\"ok\",\"version\":\"1\",\"connected_binaries\":2,\
                            \"connected_phones\":3,\"uptime_seconds\":4,\"more\":[]}";
        let answer = |status: &str, body: &str| format!("HTTP/1.1 {status}\r\na: b\r\n\r\n{body}");
        let health = understand(answer("200 OK", BODY).as_bytes()).unwrap();
        assert_eq!((health.connected_binaries, health.connected_phones), (2, 3));
        for (answer, word) in [
            (answer("503 No", &BODY.replace("ok", "draining")), "draining"),
            (answer("503 No", ""), "503"),
            (answer("200 OK", "<html>"), "without a relay's fields"),
            (answer("404 Not Found", BODY), "404"),
            ("SSH-2.0-OpenSSH_9\r\n".into(), "not HTTP"),
            ("HTTP/1.1 200".into(), "not HTTP"),
            (String::new(), "closed"),
        ] {
            let trouble = understand(answer.as_bytes()).unwrap_err();
            assert!(trouble.found.contains(word), "{answer:?}: {trouble:?}");
        }
    }
}

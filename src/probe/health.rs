//! `/healthz`, asked.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use serde::Deserialize;

use super::diagnosis::{self, Diagnosis};
use super::stream::Stream;

/// The most of an answer that is read.
const ANSWER_MAX: u64 = 64 * 1024;

/// What a relay says of itself.
#[derive(Debug, Deserialize)]
pub(super) struct Health {
    pub(super) status: String,
    pub(super) version: String,
    pub(super) connected_binaries: u64,
    pub(super) connected_phones: u64,
    pub(super) uptime_seconds: u64,
}

/// Asks, with what is left of the stream's deadline.
pub(super) fn ask(
    stream: &mut Stream,
    authority: &str,
    agent: &str,
    timeout: Duration,
) -> Result<Health, Diagnosis> {
    // The answer to HTTP/1.0 is in no chunks and ends with the connection
    // (RFC 9112, 6.1), whatever stands in between.
    let request =
        format!("GET /healthz HTTP/1.0\r\nHost: {authority}\r\nUser-Agent: {agent}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|error| stream.failure(&error, timeout))?;
    let mut answer = Vec::new();
    if let Err(error) = Read::take(&mut *stream, ANSWER_MAX).read_to_end(&mut answer) {
        // Many a server ends TLS without saying so (close_notify).
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
            return Err(Diagnosis::new("the answer to /healthz is no HTTP")
                .advise("another protocol is spoken there: try https:// for http://"));
        }
    };
    let health: Option<Health> = serde_json::from_slice(body).ok();
    match (head.code.unwrap_or_default(), health) {
        (200, Some(health)) if health.status == "ok" => Ok(health),
        (503, Some(health)) => {
            Err(Diagnosis::new(format!("the relay says that it is {:?}", health.status))
                .advise("it is shutting down, and takes no new connections"))
        }
        (200, _) => Err(Diagnosis::new("/healthz answers 200, but not as a relay does")
            .advise("something else answers in the relay's place: see what listens there")),
        (status, _) => Err(diagnosis::unwell(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_all_kinds() {
        const BODY: &str = "{\"status\":\"ok\",\"version\":\"1\",\"connected_binaries\":2,\
                            \"connected_phones\":3,\"uptime_seconds\":4,\"more\":[]}";
        let answer = |status: &str, body: &str| format!("HTTP/1.1 {status}\r\na: b\r\n\r\n{body}");
        let health = understand(answer("200 OK", BODY).as_bytes()).unwrap();
        assert_eq!((health.connected_binaries, health.connected_phones), (2, 3));
        for (answer, word) in [
            (answer("503 No", &BODY.replace("ok", "draining")), "draining"),
            (answer("503 No", ""), "503"),
            (answer("200 OK", "<html>"), "not as a relay"),
            (answer("404 Not Found", BODY), "404"),
            ("SSH-2.0-OpenSSH_9\r\n".into(), "no HTTP"),
            ("HTTP/1.1 200".into(), "no HTTP"),
            (String::new(), "closed"),
        ] {
            let trouble = understand(answer.as_bytes()).unwrap_err();
            assert!(trouble.found.contains(word), "{answer:?}: {trouble:?}");
        }
    }
}

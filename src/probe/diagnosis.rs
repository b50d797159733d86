//! What is wrong and what to do about it, in plain words.
//!
//! Owns the tables from a symptom to its likely cause. Looks at nothing itself.

use std::time::Duration;

/// What was found instead of what should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Diagnosis {
    /// What was seen.
    pub(super) found: String,
    /// What is behind it, most likely, and what to do.
    pub(super) advice: Option<String>,
}

impl Diagnosis {
    pub(super) fn new(found: impl Into<String>) -> Self {
        Self { found: found.into(), advice: None }
    }

    pub(super) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// No answer came.
pub(super) fn silence(timeout: Duration) -> Diagnosis {
    Diagnosis::new(format!("no answer within {} s", timeout.as_secs_f64())).advise(
        "something accepts connections there but does not serve them: a relay that is stuck, \
         another protocol (TLS where plain is spoken, or the reverse; a PROXY header that is \
         waited for), or a proxy whose relay does not answer",
    )
}

/// The connection ended where an answer should have come.
pub(super) fn cut_off(how: &str) -> Diagnosis {
    Diagnosis::new(format!("{how} instead of an answer")).advise(
        "another protocol is spoken there (TLS where plain is, or the reverse), the relay \
         expects a PROXY header, or a firewall resets what it does not know",
    )
}

/// An upgrade was answered with another status than 101.
pub(super) fn refused_upgrade(status: u16, location: Option<&str>) -> Diagnosis {
    let trouble = Diagnosis::new(format!("the upgrade was answered {status}"));
    let redirected;
    let advice = match status {
        200..=299 | 426 => {
            "something in between does not pass WebSockets on (or is no relay): a proxy must hand \
             `Upgrade` and `Connection` to the relay, over HTTP/1.1; in nginx: proxy_http_version \
             1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade"
        }
        300..=399 => {
            redirected = format!(
                "it redirects to {:?}; clients do not follow: give them that address",
                location.unwrap_or("nowhere")
            );
            &redirected
        }
        400 => {
            "a header did not arrive: a proxy in between drops or doubles `x-pyrycode-server`, \
             `x-pyrycode-version`, `x-pyrycode-token` or `user-agent`, or the handshake's own; \
             see what it lets through"
        }
        401 | 403 | 407 => {
            "something in front of the relay wants a login or forbids this address; the relay \
             itself asks for neither (403: it may be that it takes this for a load balancer's own \
             connection, of a PROXY header without a client)"
        }
        404 => "what answers there has no /v1/server or /v1/client: send these paths to the relay",
        408 | 504 => {
            "a proxy waited in vain for the relay, or the request took more than the relay's 5 s"
        }
        421 => "the relay serves another name (--domain); dial that one",
        429 => {
            "the rate limit: too many upgrades from this address within a minute. Wait a minute, \
             or raise --rate-limit-per-minute and --rate-limit-burst; behind a proxy all clients \
             share its address unless the relay is told theirs (--proxy-protocol or \
             --trust-x-forwarded-for)"
        }
        502 => {
            "a proxy in between cannot reach the relay, or does not pass WebSockets: see that the \
             relay runs, that the proxy has its address and port, and speaks plain HTTP/1.1 to it"
        }
        503 => {
            "the relay is full (--max-connections, --max-connections-per-ip) or shutting down, or \
             a proxy has no relay that is well: see /healthz and /readyz"
        }
        _ => "this is no answer of a relay; see what listens there",
    };
    trouble.advise(advice)
}

/// `/healthz` was answered with another status than 200.
pub(super) fn unwell(status: u16) -> Diagnosis {
    let trouble = Diagnosis::new(format!("/healthz answers {status}"));
    match status {
        502..=504 => trouble.advise(
            "a proxy in between does not reach the relay: see that it runs, and that the proxy \
             has its address and port",
        ),
        300..=399 => trouble.advise("it redirects; dial the address that it redirects to"),
        404 => trouble.advise("what answers there is no relay, or a proxy keeps this path back"),
        _ => trouble,
    }
}

/// A close frame that should not have come, by its code.
pub(super) fn close_code(code: u16) -> Option<&'static str> {
    Some(match code {
        1001 => "the relay, or a proxy, is shutting down",
        1009 => "a limit on messages in between: the relay takes 256 KiB",
        1011 => "the relay gave up on this connection; its log has the cause",
        4404 => {
            "the relay does not know the binary: it went, or two relays stand behind one address \
             that does not keep a server-id together (hash on x-pyrycode-server)"
        }
        4409 => "another binary holds this server-id",
        4429 => "16 phones are on this server-id already",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_words_and_the_usual_ones_their_own() {
        for (status, word) in [
            (200, "does not pass WebSockets"),
            (426, "does not pass WebSockets"),
            (302, "\"https://elsewhere\\u{1b}\""),
            (400, "drops"),
            (403, "forbids"),
            (404, "/v1/server"),
            (421, "--domain"),
            (429, "rate limit"),
            (502, "cannot reach the relay"),
            (503, "full"),
            (599, "no answer of a relay"),
        ] {
            let trouble = refused_upgrade(status, Some("https://elsewhere\u{1b}"));
            let advice = trouble.advice.unwrap();
            assert!(advice.contains(word), "{status}: {advice}");
            assert!(trouble.found.contains(&status.to_string()));
        }
    }
}

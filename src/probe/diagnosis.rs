//! Diagnosis: a fault that a step found, with advice.
//!
//! Owns the tables that map a symptom to its likely cause and the next step. Performs no
//! I/O.

use std::time::Duration;

/// A fault, and how to remove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Diagnosis {
    /// The observed fault.
    pub(super) found: String,
    /// The likely cause and the next step.
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

/// No response arrived.
pub(super) fn silence(timeout: Duration) -> Diagnosis {
    Diagnosis::new(format!("no response within {} s", timeout.as_secs_f64())).advise(
        "the address accepts connections but does not respond: try https:// instead of http://, \
         or the reverse; if the relay waits for a PROXY header (--proxy-protocol), probe with \
         --proxy-protocol; check that the relay is not stuck, and that a proxy reaches it",
    )
}

/// The connection ended before a response.
pub(super) fn cut_off(how: &str) -> Diagnosis {
    Diagnosis::new(format!("{how} before a response")).advise(
        "try https:// instead of http://, or the reverse; if the relay expects a PROXY header \
         (--proxy-protocol), probe with --proxy-protocol, from an address in its \
         --trusted-proxies; check whether a firewall resets the connection",
    )
}

/// The response to an upgrade had another status than 101.
pub(super) fn refused_upgrade(status: u16, location: Option<&str>) -> Diagnosis {
    let trouble = Diagnosis::new(format!("the upgrade was answered {status}"));
    let redirected;
    let advice = match status {
        200..=299 | 426 => {
            "a proxy on the path does not pass WebSockets on, or the server is not a relay: \
             configure the proxy to pass `Upgrade` and `Connection` on, over HTTP/1.1; in nginx: \
             proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header \
             Connection upgrade"
        }
        300..=399 => {
            redirected = format!(
                "the server redirects to {:?}, which clients do not follow: configure them with \
                 the final address",
                location.unwrap_or("(no Location)")
            );
            &redirected
        }
        400 => {
            "a header did not arrive intact: a proxy on the path drops or doubles \
             `x-pyrycode-server`, `x-pyrycode-version`, `x-pyrycode-token`, `user-agent` or a \
             header of the WebSocket handshake; configure it to pass them on unchanged"
        }
        401 | 403 | 407 => {
            "a proxy in front of the relay requires a login or forbids this address: exempt the \
             relay's paths; the relay itself sends only a 403, to a connection whose PROXY header \
             names no client (a load balancer's own health check)"
        }
        404 => "the server has no /v1/server or /v1/client: route these paths to the relay",
        408 | 504 => {
            "the relay did not respond to a proxy in time, or the request took longer than the \
             relay's limit of 5 s: check that the relay runs, and the speed of the network"
        }
        421 => {
            "the relay serves another name (--domain): write its name in the URL, and the \
             address to connect to with --connect"
        }
        429 => {
            "the rate limit refused an upgrade from this address: wait a minute, or raise \
             --rate-limit-per-minute and --rate-limit-burst; behind a proxy all clients share its \
             address unless it forwards theirs (--proxy-protocol or --trust-x-forwarded-for)"
        }
        502 => {
            "a proxy on the path cannot reach the relay, or does not pass WebSockets on: check \
             that the relay runs, and that the proxy has its address and port and speaks plain \
             HTTP/1.1 to it"
        }
        503 => {
            "the relay is full (--max-connections, --max-connections-per-ip) or shutting down, or \
             a proxy has no healthy relay: check /healthz and /readyz"
        }
        _ => "a relay does not send this status: check what listens at that address",
    };
    trouble.advise(advice)
}

/// The response to `/healthz` had another status than 200.
pub(super) fn unwell(status: u16) -> Diagnosis {
    let trouble = Diagnosis::new(format!("/healthz answers {status}"));
    match status {
        502..=504 => trouble.advise(
            "a proxy on the path cannot reach the relay: check that the relay runs, and that the \
             proxy has its address and port",
        ),
        300..=399 => {
            trouble.advise("the server redirects: connect to the address in its Location header")
        }
        421 => trouble.advise(
            "the relay serves another name (--domain): write its name in the URL, and the \
             address to connect to with --connect",
        ),
        403 => trouble.advise(
            "a proxy in front of the relay requires a login or forbids this address: exempt \
             /healthz",
        ),
        404 => trouble.advise(
            "the server is not a relay, or a proxy does not pass /healthz on: check its routes",
        ),
        _ => trouble,
    }
}

/// Advice for an unexpected close frame, by its code.
pub(super) fn close_code(code: u16) -> Option<&'static str> {
    Some(match code {
        1001 => "the relay or a proxy is shutting down: retry later",
        1009 => {
            "a proxy on the path limits messages to less than the relay's 256 KiB: raise its limit"
        }
        1011 => "the relay closed this connection because of an error: see its log",
        4404 => {
            "the relay has no such binary: the binary closed, or two relays share one address and \
             the load balancer splits a server-id between them (hash on x-pyrycode-server)"
        }
        4409 => "another binary holds this server-id: run the probe again",
        4429 => "this server-id already has 16 phones: run the probe again",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_advice_and_common_ones_specific_advice() {
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
            (599, "does not send this status"),
        ] {
            let trouble = refused_upgrade(status, Some("https://elsewhere\u{1b}"));
            let advice = trouble.advice.unwrap();
            assert!(advice.contains(word), "{status}: {advice}");
            assert!(trouble.found.contains(&status.to_string()));
        }
    }
}

//! Watch step: an idle connection on which pings must arrive and which must stay open.
//!
//! Owns the interpretation of silences. The relay pings every 30 s, so a healthy
//! connection has no longer silence; an idle timeout on the path above that cannot be
//! observed, and has no effect.

use std::time::Duration;

use super::clock;
use super::diagnosis::Diagnosis;
use super::peer::{Heard, Peer};
use super::report::{Finding, ProbeReport, millis};

/// The name of the step.
pub(super) const NAME: &str = "watch";

/// Maximum silence: the ping interval of 30 s, plus the latency of the path.
const PING_WITHIN: Duration = Duration::from_secs(31);
/// Interval of the progress display.
const TICK: Duration = Duration::from_secs(1);

/// Watches a connection that carries nothing but pings, for `time`.
pub(super) fn watch(
    report: &mut ProbeReport<'_>,
    peer: &mut Peer,
    time: Duration,
    timeout: Duration,
) -> Result<((), Finding), Diagnosis> {
    let began = clock::now();
    let (mut last, mut longest, mut pings) = (began, Duration::ZERO, 0);
    loop {
        let now = clock::now();
        let (passed, silence) = (now - began, now - last);
        longest = longest.max(silence);
        if silence >= PING_WITHIN {
            return Err(unheard(peer, timeout)?);
        }
        if passed >= time {
            break;
        }
        let shown = format!("{} of {} s, {pings} pings", passed.as_secs(), time.as_secs());
        report.progress(NAME, &shown);
        let wait = TICK.min(time - passed).min(PING_WITHIN - silence);
        match peer.hear(now + wait)? {
            Heard::Nothing => {}
            Heard::Ping | Heard::Pong => {
                let now = clock::now();
                longest = longest.max(now - last);
                last = now;
                pings += 1;
            }
            Heard::Text(_) => {
                return Err(Diagnosis::new("a message arrived at a binary that has no phone"));
            }
            heard @ (Heard::Close(..) | Heard::End(_)) => {
                return Err(cut(&heard, clock::now() - last, timeout));
            }
        }
    }
    let found = format!(
        "stayed open for {} s; {pings} pings; the longest silence was {:.1} s",
        time.as_secs(),
        longest.as_secs_f64()
    );
    Ok(((), Finding::new(found).with("pings", pings).with("longest_silence_ms", millis(longest))))
}

fn cut(heard: &Heard, silence: Duration, timeout: Duration) -> Diagnosis {
    let Diagnosis { found, advice } = heard.trouble(timeout);
    let seconds = silence.as_secs_f64();
    let trouble = Diagnosis::new(format!("closed after {seconds:.1} s of silence: {found}"));
    // The code of the relay's own close frame has more precise advice.
    trouble.advise(advice.unwrap_or_else(|| {
        format!(
            "the idle timeout of the path seems to be {seconds:.0} s, under 35 s; the relay pings \
             every 30 s, so a proxy, load balancer or NAT must allow 35 s of silence: raise its \
             timeout, preferably to 75 s (nginx proxy_read_timeout and proxy_send_timeout, HAProxy \
             timeout client, server and tunnel)"
        )
    }))
}

/// No ping arrived: tells a half-open connection from a relay that does not ping.
fn unheard(peer: &mut Peer, timeout: Duration) -> Result<Diagnosis, Diagnosis> {
    let trouble = |found: &str, advice: &str| Ok(Diagnosis::new(found).advise(advice));
    peer.ping()?;
    match peer.hear(clock::now() + timeout)? {
        Heard::Ping | Heard::Pong => trouble(
            "no ping within 31 s, though the connection is open",
            "the relay pings every 30 s, so another program answers, or a proxy ends the WebSocket \
             and does not pass pings on: check what listens at that address, and the proxy",
        ),
        Heard::Nothing => trouble(
            "half-open connection: no ping within 31 s, and no pong to the probe's ping",
            "a NAT, firewall or load balancer on the path drops connections after less than 31 s \
             of silence, but must allow 35 s: raise its idle timeout",
        ),
        heard => Ok(cut(&heard, PING_WITHIN, timeout)),
    }
}

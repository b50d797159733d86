//! An idle connection, watched: whether pings come, and whether the path cuts it.
//!
//! Owns what the silences mean. The relay pings every 30 s, so no silence on a
//! well connection is longer, and a cut-off above that cannot be seen: it does
//! not matter either.

use std::time::Duration;

use super::clock;
use super::diagnosis::Diagnosis;
use super::peer::{Heard, Peer};
use super::report::{Finding, ProbeReport, millis};

/// The name of the step.
pub(super) const NAME: &str = "watch";

/// A ping comes within this: the interval of 30 s, and the way.
const PING_WITHIN: Duration = Duration::from_secs(31);
/// How often to show that it goes on.
const TICK: Duration = Duration::from_secs(1);

/// Watches a peer to which nothing is sent but pings, for `time`.
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
                return Err(Diagnosis::new("a message to a binary that has no phone"));
            }
            heard @ (Heard::Close(..) | Heard::End(_)) => {
                return Err(cut(&heard, clock::now() - last, timeout));
            }
        }
    }
    let found = format!(
        "not cut in {} s; {pings} pings; the longest silence was {:.1} s",
        time.as_secs(),
        longest.as_secs_f64()
    );
    Ok(((), Finding::new(found).with("pings", pings).with("longest_silence_ms", millis(longest))))
}

fn cut(heard: &Heard, silence: Duration, timeout: Duration) -> Diagnosis {
    let Diagnosis { found, advice } = heard.trouble(timeout);
    let seconds = silence.as_secs_f64();
    let trouble = Diagnosis::new(format!("cut after {seconds:.1} s of silence: {found}"));
    // A close frame with a code of the relay's says why itself.
    trouble.advise(advice.unwrap_or_else(|| {
        format!(
            "warning: the path's idle cut-off seems to be {seconds:.0} s, under 35 s; the relay \
             pings every 30 s, so a proxy, load balancer or NAT must let 35 s of silence pass: \
             raise its timeout, best to 75 s (nginx proxy_read_timeout and proxy_send_timeout, \
             HAProxy timeout client, server and tunnel)"
        )
    }))
}

/// No ping came: is the path dead, or the relay?
fn unheard(peer: &mut Peer, timeout: Duration) -> Result<Diagnosis, Diagnosis> {
    let trouble = |found: &str, advice: &str| Ok(Diagnosis::new(found).advise(advice));
    peer.ping()?;
    match peer.hear(clock::now() + timeout)? {
        Heard::Ping | Heard::Pong => trouble(
            "no ping within 31 s, though the connection is open",
            "the relay pings every 30 s, so what answers there is another program, or a proxy \
             answers WebSockets in its place and keeps its pings",
        ),
        Heard::Nothing => trouble(
            "cut without a word: no ping within 31 s, and none of ours is answered",
            "warning: something in between (NAT, firewall, load balancer) forgets connections \
             after less than 31 s of silence, under the 35 s that they need; raise its idle timeout",
        ),
        heard => Ok(cut(&heard, PING_WITHIN, timeout)),
    }
}

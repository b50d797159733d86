//! `pyrycode-relay probe URL`: tests a relay and the network path to it.
//!
//! Owns the steps, their order, and the expected result of each. Acts as a binary and a
//! phone from outside and knows nothing of the relay's code: it expects only the wire
//! contract, so it can probe a relay of any version.
//!
//! 1. Every wait is bounded by the plan's timeout or its watch time.
//! 2. A failed step ends the probe if later steps depend on it.
//! 3. It opens at most four WebSockets, because the relay limits the rate of upgrades.

mod address;
mod clock;
mod diagnosis;
mod health;
mod peer;
mod percentiles;
mod report;
mod stream;
mod target;
mod tls;
mod watch;

use std::borrow::Cow;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::address::{Opening, Proxied, Unanswered};
use self::diagnosis::Diagnosis;
use self::health::Health;
use self::peer::{Heard, Peer, Role};
use self::percentiles::Figures;
use self::report::{Finding, ProbeReport, millis};
use self::stream::{Stream, Timed};
use self::tls::{Session, Trust};

pub use self::report::{Form, Style};
pub use self::target::{Target, Via};

/// Size of the large message in bytes: well under the relay's limit of 256 KiB, and
/// larger than the usual buffers of proxies.
const LARGE: usize = 200 * 1024;
/// How long the phone must receive nothing after its binary has closed. The relay keeps
/// the phone for 30 s; the probe does not wait that long.
const QUIET: Duration = Duration::from_millis(500);
/// The close code for a phone without a binary.
const NO_BINARY: u16 = 4404;

const AGENT: &str = concat!("pyrycode-relay-probe/", env!("CARGO_PKG_VERSION"));

/// What to test, and how thoroughly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The relay to test.
    pub target: Target,
    /// The address to connect to in place of the target's; `None` means the target's. Host header
    /// and server name stay those of the target.
    pub via: Option<Via>,
    /// Begin every connection with a PROXY header, as a load balancer does.
    pub sends_proxy_header: bool,
    /// PEM file of the only roots to trust; `None` means the bundled web roots.
    pub ca: Option<PathBuf>,
    /// Ask `/healthz` only.
    pub health_only: bool,
    /// Frames each way, 1 or more.
    pub round_trips: u32,
    /// How long to watch an idle connection; `None` skips the step.
    pub watch: Option<Duration>,
    /// How long to wait for each response.
    pub timeout: Duration,
    /// The output format.
    pub form: Form,
}

impl Plan {
    fn opening(&self) -> Opening {
        // A check of the health is what a load balancer does on its own behalf.
        let command = if self.health_only { Proxied::Local } else { Proxied::Client };
        Opening { timeout: self.timeout, proxied: self.sends_proxy_header.then_some(command) }
    }
}

/// Runs the probe and reports to `out`; returns whether no step failed.
pub fn run(plan: &Plan, out: &mut dyn Write, style: Style) -> bool {
    let mut report = ProbeReport::new(out, plan.form, style);
    // The report holds the failed step.
    let _ = examine(plan, &mut report);
    report.end(&plan.target.to_string())
}

/// A tested path to the relay, for further connections.
struct Way<'a> {
    plan: &'a Plan,
    address: SocketAddr,
    trust: Option<Trust>,
    /// The other addresses of the name; with a fault if they were dialled before and failed.
    others: Vec<(SocketAddr, Option<Unanswered>)>,
}

fn examine(plan: &Plan, report: &mut ProbeReport<'_>) -> Option<()> {
    let (mut way, mut stream) = find_way(plan, report)?;
    let health = report.step("health", |_| {
        let health = way.health(&mut stream)?;
        let found = format!(
            "version {}, {} binaries, {} phones, up {} s",
            health.version.escape_debug(),
            health.connected_binaries,
            health.connected_phones,
            health.uptime_seconds
        );
        Ok(((), Finding::new(found).with("version", health.version)))
    });
    drop(stream);
    if plan.health_only {
        return health;
    }
    for (address, fault) in std::mem::take(&mut way.others) {
        report.step("address", |_| Ok(((), examine_other(&way, address, fault))));
    }

    let server_id = server_id();
    let claimed = || Finding::new(format!("upgraded, {server_id} claimed"));
    let mut binary =
        report.step("binary", |_| Ok((way.upgrade(Role::Binary, &server_id)?, claimed())))?;
    let mut phone = report
        .step("phone", |_| Ok((way.upgrade(Role::Phone, &server_id)?, Finding::new("upgraded"))))?;
    let conn_id = report.step("headers", |_| headers(&mut binary, &mut phone))?;
    report.step("phone to binary", |report| {
        let times = (0..plan.round_trips).map(|number| {
            report.progress("phone to binary", &format!("{number} of {}", plan.round_trips));
            up(&mut phone, &mut binary, &small(number))
        });
        summed_up(times.collect::<Result<_, _>>()?)
    })?;
    report.step("binary to phone", |report| {
        let times = (0..plan.round_trips).map(|number| {
            report.progress("binary to phone", &format!("{number} of {}", plan.round_trips));
            down(&mut binary, &mut phone, &conn_id, &small(number))
        });
        summed_up(times.collect::<Result<_, _>>()?)
    })?;
    report.step("large messages", |_| large(&mut binary, &mut phone, &conn_id));
    report.step("unknown id", |_| unknown_id(&way));
    report.step("leaving", |_| leaving(&mut binary, &mut phone));
    drop((binary, phone));
    if let Some(time) = plan.watch {
        report.step(watch::NAME, |report| {
            let mut idle = way.upgrade(Role::Binary, &self::server_id())?;
            let seen = watch::watch(report, &mut idle, time, plan.timeout)?;
            let _ = idle.leave();
            Ok(seen)
        });
    }
    Some(())
}

fn find_way<'a>(plan: &'a Plan, report: &mut ProbeReport<'_>) -> Option<(Way<'a>, Stream)> {
    let (target, timeout) = (&plan.target, plan.timeout);
    let (host, port) = plan
        .via
        .as_ref()
        .map_or((&target.host, target.port), |via| (&via.host, via.port.unwrap_or(target.port)));
    let addresses = report.step("resolve", |_| {
        let addresses = stream::resolve(host, port, timeout)?;
        let shown: Vec<_> = addresses.iter().map(|it| it.ip().to_string()).collect();
        let finding = Finding::new(shown.join(", "));
        Ok((addresses, finding))
    })?;
    let (socket, address, others) = report.step("connect", |_| {
        let mut others = Vec::new();
        for (index, &address) in addresses.iter().enumerate() {
            match plan.opening().dial(address) {
                Ok(socket) => {
                    others.extend(addresses[index + 1..].iter().map(|&it| (it, None)));
                    let finding = Finding::new(address.to_string());
                    let finding = finding.with("address", address.to_string());
                    return Ok(((socket, address, others), finding));
                }
                Err(fault) => others.push((address, Some(fault))),
            }
        }
        let mut faults = others.into_iter().rev().filter_map(|(_, fault)| fault);
        // One without a route tells nothing about the relay.
        let last = faults.find(|it| it.has_route);
        Err(last
            .or_else(|| faults.next())
            .map_or_else(|| Diagnosis::new("no address to connect to"), |fault| fault.diagnosis))
    })?;
    if !target.is_tls {
        return Some((Way { plan, address, trust: None, others }, Stream::Plain(socket)));
    }
    let (trust, stream) = report.step("tls", |_| {
        let trust = Trust::new(&target.host, plan.ca.as_deref())?;
        let session = trust.handshake(socket, timeout)?;
        let finding = described(&session, &trust);
        Ok(((trust, session.stream), finding))
    })?;
    Some((Way { plan, address, trust: Some(trust), others }, stream))
}

/// The finding of the TLS step.
fn described(session: &Session, trust: &Trust) -> Finding {
    let days = session.expires_in_days();
    let asked = trust.server_name();
    let name = asked.as_deref().map_or("no server name asked for".into(), |name| {
        format!("asked for the server name {name}")
    });
    let left = session.left().unwrap_or_else(|| "an unknown time".into());
    let finding = format!("{}, {name}, chain verified, expires in {left}", session.version);
    let finding = Finding::new(finding).with("server_name", asked).with("expires_in_days", days);
    match session.warning() {
        Some(warning) => finding.warn(warning),
        None => finding,
    }
}

/// Whether a relay answers at another address of the name. Clients choose any of them, so
/// one that does not answer needs attention although the relay is well.
fn examine_other(way: &Way<'_>, address: SocketAddr, fault: Option<Unanswered>) -> Finding {
    let asked = match fault {
        Some(fault) => Err(fault),
        None => way.plan.opening().dial(address).and_then(|socket| {
            let ask = || way.health(&mut way.secure(socket)?);
            ask().map_err(|diagnosis| Unanswered { diagnosis, has_route: true })
        }),
    };
    let finding = match asked {
        Ok(_) => Finding::new(format!("{address} answers, too")),
        Err(fault) => fault.warning(address),
    };
    finding.with("address", address.to_string())
}

impl Way<'_> {
    /// The handshake, where the URL asks for TLS.
    fn secure(&self, socket: Timed) -> Result<Stream, Diagnosis> {
        Ok(match &self.trust {
            None => Stream::Plain(socket),
            Some(trust) => trust.handshake(socket, self.plan.timeout)?.stream,
        })
    }

    fn open(&self) -> Result<Stream, Diagnosis> {
        let socket = self.plan.opening().dial(self.address).map_err(|fault| fault.diagnosis)?;
        self.secure(socket)
    }

    fn health(&self, stream: &mut Stream) -> Result<Health, Diagnosis> {
        let Plan { target, timeout, .. } = self.plan;
        stream.set_deadline(clock::now() + *timeout);
        health::ask(stream, &target.authority(), AGENT, *timeout)
    }

    fn upgrade(&self, role: Role, server_id: &str) -> Result<Peer, Diagnosis> {
        let mut stream = self.open()?;
        stream.set_deadline(clock::now() + self.plan.timeout);
        Peer::upgrade(stream, &self.plan.target, AGENT, role, server_id, self.plan.timeout)
    }
}

/// The envelope that the binary exchanges with the relay.
#[derive(Deserialize, Serialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    conn_id: Cow<'a, str>,
    #[serde(borrow)]
    frame: &'a RawValue,
}

/// Sends a frame from the phone and returns the conn_id under which the binary receives it.
fn headers(binary: &mut Peer, phone: &mut Peer) -> Result<(String, Finding), Diagnosis> {
    phone.say(small(0))?;
    let text = binary.hear_text()?;
    let conn_id = envelope(&text)?.conn_id.into_owned();
    let finding = match &phone.request_id {
        Some(id) if *id == conn_id => {
            Finding::new("every header arrived; x-request-id is the conn_id")
        }
        Some(_) => Finding::new("the headers that the relay needs arrived").warn(
            "a proxy on the path replaces x-request-id in the response, and its value is not in \
             the relay's log: configure the proxy to pass the header on",
        ),
        None => Finding::new("the headers that the relay needs arrived").warn(
            "a proxy on the path drops x-request-id from the response, so a client cannot find its \
             conn_id in the relay's log: configure the proxy to pass the header on",
        ),
    };
    Ok((conn_id.clone(), finding.with("conn_id", conn_id)))
}

fn up(phone: &mut Peer, binary: &mut Peer, frame: &str) -> Result<Duration, Diagnosis> {
    let began = clock::now();
    phone.say(frame.to_owned())?;
    let text = binary.hear_text()?;
    let took = began.elapsed();
    if envelope(&text)?.frame.get() == frame { Ok(took) } else { Err(changed()) }
}

fn down(
    binary: &mut Peer,
    phone: &mut Peer,
    conn_id: &str,
    frame: &str,
) -> Result<Duration, Diagnosis> {
    let envelope = format!("{{\"conn_id\":{conn_id:?},\"frame\":{frame}}}");
    let began = clock::now();
    binary.say(envelope)?;
    let text = phone.hear_text()?;
    let took = began.elapsed();
    if text == frame { Ok(took) } else { Err(changed()) }
}

fn envelope(text: &str) -> Result<Envelope<'_>, Diagnosis> {
    serde_json::from_str(text).map_err(|error| {
        Diagnosis::new(format!("the binary received something other than an envelope: {error}"))
            .advise(
                "another program than a relay answers: check the address, and the proxy's routes",
            )
    })
}

fn changed() -> Diagnosis {
    Diagnosis::new("the frame that arrived is not the one that was sent").advise(
        "a proxy on the path rewrites messages or mixes up connections: probe the relay without \
                 the proxy, to be sure, then check its configuration",
    )
}

/// The finding for the round of small frames in one direction.
fn summed_up(times: Vec<Duration>) -> Result<((), Finding), Diagnosis> {
    let Some(Figures { count, median, p99, max }) = Figures::of(times) else {
        return Err(Diagnosis::new("no frame was sent"));
    };
    let [median, p99, max] = [median, p99, max].map(millis);
    let found = format!("{count} frames: median {median:.2} ms, p99 {p99:.2} ms, max {max:.2} ms");
    let finding = Finding::new(found)
        .with("frames", count)
        .with("median_ms", median)
        .with("p99_ms", p99)
        .with("max_ms", max);
    Ok(((), finding))
}

fn large(binary: &mut Peer, phone: &mut Peer, conn_id: &str) -> Result<((), Finding), Diagnosis> {
    let frame = format!("\"{}\"", "x".repeat(LARGE - 2));
    let up = millis(up(phone, binary, &frame)?);
    let down = millis(down(binary, phone, conn_id, &frame)?);
    let found =
        format!("{} KiB: {up:.1} ms to the binary, {down:.1} ms to the phone", LARGE / 1024);
    Ok(((), Finding::new(found).with("to_binary_ms", up).with("to_phone_ms", down)))
}

fn unknown_id(way: &Way<'_>) -> Result<((), Finding), Diagnosis> {
    let mut phone = way.upgrade(Role::Phone, &server_id())?;
    let (code, reason) = phone.hear_close()?;
    expect(code, &reason)?;
    Ok(((), Finding::new(format!("{NO_BINARY} {reason}"))))
}

/// The binary closes: its phone must stay open, and be closed with 4404 once it sends.
fn leaving(binary: &mut Peer, phone: &mut Peer) -> Result<((), Finding), Diagnosis> {
    if let Some(code @ 1001..) = binary.leave()? {
        return Err(Diagnosis::new(format!("the relay answered the binary's close with {code}")));
    }
    let until = clock::now() + QUIET;
    loop {
        match phone.hear(until)? {
            Heard::Nothing => break,
            Heard::Ping | Heard::Pong => {}
            heard => {
                let Diagnosis { found, .. } = heard.trouble(QUIET);
                let found = format!("after the binary's close the phone was disturbed: {found}");
                return Err(Diagnosis::new(found).advise(
                    "the relay keeps phones for 30 s after their binary has closed: check whether \
                     a proxy closes them, or another program answers",
                ));
            }
        }
    }
    phone.say(small(0))?;
    let (code, reason) = phone.hear_close()?;
    expect(code, &reason)?;
    Ok((
        (),
        Finding::new(format!("the phone stayed open, then was closed with {NO_BINARY} {reason}")),
    ))
}

fn expect(code: Option<u16>, reason: &str) -> Result<(), Diagnosis> {
    if code == Some(NO_BINARY) {
        return Ok(());
    }
    let code = code.map_or("no code".into(), |code| code.to_string());
    Err(Diagnosis::new(format!("closed with {code} {reason}, expected {NO_BINARY}")).advise(
        "a proxy on the path closes in place of the relay, or another program answers: probe \
                 the relay without the proxy",
    ))
}

/// A small frame, distinct for each number.
fn small(number: u32) -> String {
    format!("{{\"probe\":{number}}}")
}

/// A random server-id.
fn server_id() -> String {
    let mut bytes = [0; 8];
    #[expect(clippy::disallowed_methods, reason = "a program of its own, outside the core")]
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    format!("probe-{:016x}", u64::from_ne_bytes(bytes))
}

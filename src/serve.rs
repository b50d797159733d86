//! Serve: binds or takes over what the configuration names, and runs the relay.
//!
//! Owns the order of the start, and what a hand-over needs of the process beside the loop.

use std::fmt::Display;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use pyrycode_relay::cli;
use pyrycode_relay::config::Config;
use pyrycode_relay::relay::Relay;
use pyrycode_relay::server::admin::hold::AdminHold;
use pyrycode_relay::server::admin::http::AdminListener;
use pyrycode_relay::server::fitting::Warning;
use pyrycode_relay::server::handover::Beside;
use pyrycode_relay::server::handover::manifest::{AdminRecord, Manifest};
use pyrycode_relay::server::handover::pack::{self, Unpacked};
use pyrycode_relay::server::handover::program::{Flags, Program};
use pyrycode_relay::server::handover::rehearse::Ready;
use pyrycode_relay::server::net::listener::Listener;
use pyrycode_relay::server::os::signals;
use pyrycode_relay::server::os::systemd::{self, NotifyConfig};
use pyrycode_relay::server::{Arrived, Handover, Restored, Server, Taken, log as sink};
use pyrycode_relay::state::{decode, encode, v1};
use pyrycode_relay::terminal::{FAILED, complain, print};
use pyrycode_relay::time::Instant;
use rustix::process::set_parent_process_death_signal;

use crate::{Prepared, refuse};

/// Serves until a signal ends the relay.
pub(crate) fn start(prepared: Prepared) -> ExitCode {
    serve(prepared, None)
}

/// Goes on where an earlier program of this process has stopped. What cannot be taken over is
/// lost; a restart would lose it, too.
pub(crate) fn adopt(prepared: Prepared) -> ExitCode {
    let unpacked = pack::take_stdin().and_then(|socket| pack::unpack(socket.as_fd()));
    serve(prepared, Some(unpacked))
}

/// Takes a relay over for a try and tells whether that works. The relay serves on: nothing is
/// read from its connections or written to them.
pub(crate) fn rehearse(prepared: Prepared) -> ExitCode {
    match try_out(prepared) {
        Ok(ready) => print(&ready.line()),
        Err(why) => {
            complain(why);
            ExitCode::from(FAILED)
        }
    }
}

fn try_out(prepared: Prepared) -> Result<Ready, String> {
    // If the relay ends, nothing waits for an answer.
    let _ = set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let unpacked = pack::take_stdin().and_then(|socket| pack::unpack(socket.as_fd()));
    let Unpacked { manifest, listening, state, kept: _ } = unpacked.map_err(text)?;
    let (bytes, sockets) = state.map_err(text)?;
    let received = decode::<v1::State>(&bytes).map_err(text)?;
    // In this program's format, whatever it was written in.
    let arrival = encode(&received.program, &received.state, bytes.len());
    let (listeners, _) = split(&manifest, listening);
    let arrived = Arrived { state: received.state, listeners, sockets };
    let Prepared { config, connections, .. } = prepared;
    let restored = Server::restore(&config, connections, arrived, [0; 32], None, Duration::ZERO);
    let Restored { mut server, mut lost } = restored.map_err(text)?;
    lost.extend(server.register_all());
    server.audit();
    let again = server.save().ok_or("effects are left over")?;
    if encode(&received.program, &again.state, bytes.len()) != arrival {
        return Err("the state is another one when it is saved again".into());
    }
    let version = env!("CARGO_PKG_VERSION").into();
    Ok(Ready { version, format: received.format, dropped: lost.len() as u64 })
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The listening sockets of the relay, and that of the metrics.
fn split(
    manifest: &Manifest,
    mut sockets: Vec<OwnedFd>,
) -> (Vec<(v1::Listener, OwnedFd)>, Option<OwnedFd>) {
    let admin = sockets.split_off(manifest.listeners.len().min(sockets.len())).pop();
    (manifest.listeners.iter().copied().zip(sockets).collect(), admin)
}

fn serve(prepared: Prepared, unpacked: Option<Result<Unpacked, pack::Fault>>) -> ExitCode {
    // Before any thread starts. They are handled by this thread, once the loop runs.
    if let Err(error) = signals::block() {
        return fail("signals", error);
    }
    let variables = |name: &str| std::env::var_os(name);
    let notify = match NotifyConfig::read(&variables, std::process::id()) {
        Ok(notify) => notify,
        Err(malformed) => return refuse(malformed),
    };
    let of_another = systemd::sockets_of_another(&variables, std::process::id());
    // Before any thread starts: the call removes the variables from the environment.
    let inherited = match systemd::inherited(&variables) {
        Ok(sockets) => sockets,
        Err(error) => {
            return fail("LISTEN_FDS", format_args!("{error}; TCP sockets only (ListenStream=)"));
        }
    };
    let lost = unpacked.as_ref().and_then(|it| it.as_ref().ok());
    let lost = lost.map_or(0, |it| it.manifest.record.log_lines_dropped);
    let sink = match sink::install(&prepared.config, lost) {
        Ok(sink) => sink,
        Err(error) => return fail("cannot start logging", error),
    };
    prepared.warnings.iter().for_each(Warning::log);
    if let Some(why) = of_another {
        log::warn!(err:% = why; "sockets_not_inherited");
    }
    let outcome = run(prepared, inherited, unpacked, &notify, &sink);
    if let Err(error) = &outcome {
        log::error!(err:% = error; "failed");
    }
    sink.flush_within(sink::FLUSH_TIMEOUT);
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn fail(what: &str, why: impl Display) -> ExitCode {
    complain(format_args!("{what}: {why}"));
    ExitCode::from(FAILED)
}

fn run(
    prepared: Prepared,
    inherited: Vec<TcpListener>,
    unpacked: Option<Result<Unpacked, pack::Fault>>,
    notify: &NotifyConfig,
    sink: &sink::Sink,
) -> io::Result<()> {
    let Prepared { config, descriptors, connections, push, source, warnings: _ } = prepared;
    let on_hangup = signals::Hangup::of_this_process(source.is_some());
    let signals = signals::Signals::install(on_hangup)?;
    let mut seed = [0; 32];
    #[expect(clippy::disallowed_methods, reason = "the one place where randomness enters")]
    getrandom::fill(&mut seed)?;
    let unpacked = unpacked.and_then(|it| it.inspect_err(log_lost).ok());
    let (server, admin, taken) = match unpacked {
        Some(unpacked) => take_over(&config, connections, unpacked, seed)?,
        None => {
            let listens: Vec<_> = config.serving.listens().collect();
            let listeners = Listener::open(&listens, inherited)?;
            let bind = |address| AdminListener::bind(address, &config.metrics_allow);
            let admin = config.metrics_listen.map(bind).transpose()?;
            (begin(&config, connections, listeners, seed)?, admin, None)
        }
    };
    let is_taken = taken.is_some();
    let server = server.with_signals(signals)?;
    let bound = server.local_addrs()?;
    let metrics_listen = admin.as_ref().map(AdminListener::local_addr).transpose()?;
    let beside =
        OfThisProcess { admin: admin.as_ref().map(AdminListener::to_hold), sink: sink.clone() };
    let setup = Handover { program: own_program(), beside: Box::new(beside) };
    // The relay serves even if systemd's socket cannot be reached.
    let notifier = notify.connect().unwrap_or_else(|error| {
        log::warn!(err:% = error; "notify_failed");
        None
    });
    let mut server =
        server.with_push(push)?.with_notifier(notifier).with_handover(setup).with_taken(taken);
    if let Some(source) = source {
        server = server.with_tls(source)?;
    }
    if let Some(admin) = admin {
        admin.record(&server.handle(), sink)?;
        admin.serve(&server.handle(), sink)?;
    }
    if !is_taken {
        log_listening(&config, &bound, metrics_listen, connections, descriptors);
    }
    server.run()?;
    log::info!("stopped");
    Ok(())
}

/// A relay without connections.
fn begin(
    config: &Config,
    connections: usize,
    listeners: Vec<Listener>,
    seed: [u8; 32],
) -> io::Result<Server<Relay>> {
    let relay = Relay::new(config, connections, seed, Instant::START);
    Server::new(relay, listeners, None, config.timeouts.shutdown)
}

type TakenOver = (Server<Relay>, Option<AdminListener>, Option<Taken>);

/// The relay that an earlier program of this process was. If its state cannot be read or does
/// not fit, its listening sockets are what is left.
fn take_over(
    config: &Config,
    connections: usize,
    unpacked: Unpacked,
    seed: [u8; 32],
) -> io::Result<TakenOver> {
    let Unpacked { manifest, listening, state, kept } = unpacked;
    let (listeners, admin) = split(&manifest, listening);
    let admin = admin.zip(manifest.admin).map(|(socket, record)| {
        let started = Duration::from_nanos(record.started_ns);
        let uptime = Duration::from_micros(record.uptime_us);
        AdminListener::taken_over(socket.into(), &config.metrics_allow, (started, uptime))
    });
    let handed_over = manifest.descriptors as u64 + manifest.record.dropped;
    let spare = listeners.iter().map(|(kind, socket)| Ok((*kind, socket.try_clone()?)));
    let spare = spare.collect::<io::Result<Vec<_>>>()?;
    let restored = state.map_err(text).and_then(|(bytes, sockets)| {
        let state = decode::<v1::State>(&bytes).map_err(text)?.state;
        let arrived = Arrived { state, listeners, sockets };
        let shutdown = config.timeouts.shutdown;
        Server::restore(config, connections, arrived, seed, None, shutdown).map_err(text)
    });
    let (server, dropped) = match restored {
        Ok(Restored { mut server, lost }) => {
            server.disconnect(&lost);
            (server, lost.len() as u64)
        }
        Err(why) => {
            log_lost(&why);
            let listeners = spare.into_iter().map(|(kind, socket)| Listener::restore(kind, socket));
            let listeners = listeners.collect::<io::Result<_>>()?;
            (begin(config, connections, listeners, seed)?, handed_over)
        }
    };
    let taken = Taken {
        from: manifest.version,
        record: manifest.record,
        connections: handed_over.saturating_sub(dropped),
        dropped,
        epoll: kept,
    };
    Ok((server, admin, Some(taken)))
}

fn log_listening(
    config: &Config,
    bound: &[std::net::SocketAddr],
    metrics_listen: Option<std::net::SocketAddr>,
    connections: usize,
    descriptors: usize,
) {
    let metrics_listen = metrics_listen.map(|address| address.to_string());
    for listen in bound {
        log::info!(
            listen:% = listen, metrics_listen, version = env!("CARGO_PKG_VERSION"),
            connections, descriptors, buffer_memory = config.limits.buffer_memory;
            "listening"
        );
    }
}

fn log_lost(why: &impl Display) {
    log::error!(err:% = why; "handover_state_lost");
}

/// The program that this process was started from, with its command line.
fn own_program() -> Option<Program> {
    let path = std::env::current_exe();
    let path = path.inspect_err(|error| log::debug!(err:% = error; "program_unknown")).ok()?;
    let flags = Flags { rehearse: cli::REHEARSE, adopt: cli::ADOPT };
    #[expect(clippy::disallowed_methods, reason = "argv is handed on to the next program")]
    let argv = std::env::args_os();
    Some(Program::new(&path, argv, std::env::vars_os(), flags))
}

/// What takes part in a hand-over beside the loop.
#[derive(Debug)]
struct OfThisProcess {
    admin: Option<AdminHold>,
    sink: sink::Sink,
}

impl Beside for OfThisProcess {
    fn hold(&mut self) {
        if let Some(admin) = &mut self.admin {
            admin.hold();
        }
    }

    fn has_come_to_rest(&mut self) -> bool {
        self.admin.as_mut().is_none_or(AdminHold::has_come_to_rest)
    }

    fn release(&mut self) {
        if let Some(admin) = &mut self.admin {
            admin.release();
        }
    }

    fn admin(&self) -> Option<(AdminRecord, BorrowedFd<'_>)> {
        let admin = self.admin.as_ref()?;
        let (started, uptime) = admin.times();
        let record = AdminRecord {
            started_ns: started.as_nanos() as u64,
            uptime_us: uptime.as_micros() as u64,
        };
        Some((record, admin.descriptor()))
    }

    fn flush(&mut self) -> u64 {
        self.sink.finish()
    }
}

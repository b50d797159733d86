//! Serve: binds or takes over what the configuration names, and runs the relay.
//!
//! Owns the order of the start, and what a hand-over needs of the process beside the loop.

use std::fmt::Display;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

use pyrycode_relay::cli;
use pyrycode_relay::config::{Config, ListenerProtocol};
use pyrycode_relay::relay::Relay;
use pyrycode_relay::server::admin::hold::AdminHold;
use pyrycode_relay::server::admin::http::AdminListener;
use pyrycode_relay::server::fitting::Warning;
use pyrycode_relay::server::handover::Beside;
use pyrycode_relay::server::handover::manifest::{AdminRecord, Manifest, Protocol};
use pyrycode_relay::server::handover::pack::{self, Unpacked};
use pyrycode_relay::server::handover::program::{Flags, Program};
use pyrycode_relay::server::handover::rehearse::Ready;
use pyrycode_relay::server::net::listener::Listener;
use pyrycode_relay::server::os::signals;
use pyrycode_relay::server::os::systemd::{self, NotifyConfig};
use pyrycode_relay::server::{Handover, Server, Taken, log as sink};
use pyrycode_relay::state::FORMAT;
use pyrycode_relay::terminal::{FAILED, complain, print};
use pyrycode_relay::time::Instant;

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

fn try_out(_prepared: Prepared) -> Result<Ready, String> {
    // The relay has ended: nothing waits for an answer.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let socket = pack::take_stdin().map_err(|fault| fault.to_string())?;
    let Unpacked { manifest, listening, state } =
        pack::unpack(socket.as_fd()).map_err(|fault| fault.to_string())?;
    let (_state, _descriptors) = state.map_err(|fault| fault.to_string())?;
    take_listeners(&manifest, listening).map_err(|error| error.to_string())?;
    let version = env!("CARGO_PKG_VERSION").into();
    Ok(Ready { version, format: FORMAT, dropped: 0 })
}

/// The listening sockets that an earlier program used.
struct Listening {
    relay: Vec<Listener>,
    admin: Option<(TcpListener, AdminRecord)>,
}

fn take_listeners(
    manifest: &Manifest,
    sockets: Vec<std::os::fd::OwnedFd>,
) -> io::Result<Listening> {
    let mut sockets = sockets.into_iter().map(TcpListener::from);
    let mut relay = Vec::new();
    for (record, socket) in manifest.listeners.iter().zip(&mut sockets) {
        let speaks = match record.protocol {
            Protocol::Plain => ListenerProtocol::Plain,
            Protocol::Tls => ListenerProtocol::Tls,
            Protocol::Challenges => ListenerProtocol::Challenges,
        };
        relay.push(Listener::taken_over(socket, speaks, record.is_proxied)?);
    }
    Ok(Listening { relay, admin: sockets.next().zip(manifest.admin) })
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
    let taken = unpacked.and_then(|it| it.map_err(|fault| log_lost(&fault)).ok());
    let (listening, taken) = match taken {
        Some(Unpacked { manifest, listening, state }) => {
            let listening = take_listeners(&manifest, listening)?;
            (Some(listening), Some((manifest, state)))
        }
        None => (None, None),
    };
    let (listeners, admin) = match listening {
        Some(Listening { relay, admin }) => {
            let admin = admin.map(|(socket, AdminRecord { started_us, uptime_us })| {
                let times = (Duration::from_micros(started_us), Duration::from_micros(uptime_us));
                AdminListener::taken_over(socket, &config.metrics_allow, times)
            });
            (relay, admin)
        }
        None => {
            let listens: Vec<_> = config.serving.listens().collect();
            let listeners = Listener::open(&listens, inherited)?;
            let bind = |address| AdminListener::bind(address, &config.metrics_allow);
            (listeners, config.metrics_listen.map(bind).transpose()?)
        }
    };
    let bound = listeners.iter().map(Listener::local_addr).collect::<io::Result<Vec<_>>>()?;
    let metrics_listen = admin.as_ref().map(AdminListener::local_addr).transpose()?;
    let mut seed = [0; 32];
    #[expect(clippy::disallowed_methods, reason = "the one place where randomness enters")]
    getrandom::fill(&mut seed)?;
    let relay = Relay::new(&config, connections, seed, Instant::START);
    let server = Server::new(relay, listeners, Some(signals), config.timeouts.shutdown)?;
    let taken = taken.map(|(manifest, state)| {
        let connections = manifest.descriptors as u64;
        let dropped = if state.is_err() { connections } else { 0 };
        if let Err(fault) = &state {
            log_lost(fault);
        }
        Taken { from: manifest.version, record: manifest.record, connections, dropped }
    });
    let is_taken = taken.is_some();
    let beside =
        OfThisProcess { admin: admin.as_ref().map(AdminListener::to_hold), sink: sink.clone() };
    let setup = Handover { program: own_program(), beside: Box::new(beside), taken };
    // The relay serves even if systemd's socket cannot be reached.
    let notifier = notify.connect().unwrap_or_else(|error| {
        log::warn!(err:% = error; "notify_failed");
        None
    });
    let mut server = server.with_push(push)?.with_notifier(notifier).with_handover(setup);
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

fn log_lost(fault: &pack::Fault) {
    log::error!(err:% = fault; "handover_state_lost");
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

    fn is_at_rest(&self) -> bool {
        self.admin.as_ref().is_none_or(AdminHold::is_at_rest)
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
            started_us: started.as_micros() as u64,
            uptime_us: uptime.as_micros() as u64,
        };
        Some((record, admin.descriptor()))
    }

    fn flush(&mut self) -> u64 {
        self.sink.hand_over()
    }
}

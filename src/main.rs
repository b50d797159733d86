//! Main: parses the command line, prepares, binds, runs, and returns the exit code.
//! Decides nothing else.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;

use pyrycode_relay::cli::{self, Command, Environment};
use pyrycode_relay::config::Config;
use pyrycode_relay::probe::{self, Plan, Style};
use pyrycode_relay::relay::Relay;
use pyrycode_relay::server::admin::http::AdminListener;
use pyrycode_relay::server::certificates::source::Source;
use pyrycode_relay::server::fitting::{Fitted, Warning, backlog_warning};
use pyrycode_relay::server::os::systemd::{self, NotifyConfig};
use pyrycode_relay::server::push::Push;
use pyrycode_relay::server::{
    Server, log as sink,
    net::listener::Listener,
    os::{backlog, descriptors, memory_limit, privileges, signals},
};
use pyrycode_relay::terminal::{FAILED, complain, print};
use pyrycode_relay::time::Instant;

/// The exit code for a refused configuration.
const REFUSED: u8 = 2;

fn main() -> ExitCode {
    #[expect(clippy::disallowed_methods, reason = "argv is read here")]
    let arguments = std::env::args_os().skip(1);
    let environment = Environment {
        variables: &|name| std::env::var_os(name),
        uid: rustix::process::geteuid().as_raw(),
        capabilities: &|| privileges::capabilities().map_err(|error| error.to_string()),
    };
    match cli::parse(arguments, &environment) {
        Ok(Command::Probe(plan)) => examine(&plan),
        Ok(Command::ProbeHelp) => print(cli::PROBE_HELP),
        Ok(Command::Help) => print(cli::HELP),
        Ok(Command::Version) => print(concat!("pyrycode-relay ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::CheckConfig(config)) => match Prepared::new(config) {
            Ok(prepared) => prepared.report(),
            Err(unusable) => refuse(unusable),
        },
        Ok(Command::Serve(config)) => match Prepared::new(config) {
            Ok(prepared) => serve(prepared),
            Err(unusable) => refuse(unusable),
        },
        Err(refused) => refuse(refused),
    }
}

fn refuse(why: impl Display) -> ExitCode {
    complain(why);
    ExitCode::from(REFUSED)
}

fn examine(plan: &Plan) -> ExitCode {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_live =
        io::stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|it| it != "dumb");
    let style = Style { has_colour: is_live && !is_set("NO_COLOR"), is_live };
    let is_well = probe::run(plan, &mut io::stdout().lock(), style);
    if is_well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// A configuration that was checked against this machine, with its files and keys read.
struct Prepared {
    /// The configuration, with limits that the machine allows.
    config: Config,
    descriptors: usize,
    connections: usize,
    push: Option<Push>,
    source: Option<Source>,
    warnings: Vec<Warning>,
}

impl Prepared {
    fn new(mut config: Config) -> Result<Self, String> {
        let descriptors = descriptors::raise_limit();
        let Fitted { connections, buffer_memory, mut warnings } =
            Fitted::new(&config, descriptors, memory_limit::of(Path::new("/")))?;
        config.limits.connections = Some(connections);
        config.limits.buffer_memory = buffer_memory;
        let push = config.push_wake.as_ref().map(Push::new).transpose();
        let push = push.map_err(|unusable| unusable.to_string())?;
        let source = Source::new(&config.serving).map_err(|unusable| unusable.to_string())?;
        warnings.extend(backlog_warning(backlog::limit(Path::new("/"))));
        warnings.extend(source.iter().flat_map(Source::warnings).cloned());
        Ok(Self { config, descriptors, connections, push, source, warnings })
    }

    /// Prints the report of `--check-config`.
    fn report(&self) -> ExitCode {
        for warning in &self.warnings {
            complain(format_args!("warning: {warning}"));
        }
        print(&cli::describe(&self.config))
    }
}

fn serve(prepared: Prepared) -> ExitCode {
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
            complain(format_args!("LISTEN_FDS: {error}; TCP sockets only (ListenStream=)"));
            return ExitCode::from(FAILED);
        }
    };
    let sink = match sink::install(&prepared.config) {
        Ok(sink) => sink,
        Err(error) => {
            complain(format_args!("cannot start logging: {error}"));
            return ExitCode::from(FAILED);
        }
    };
    prepared.warnings.iter().for_each(Warning::log);
    if let Some(why) = of_another {
        log::warn!(err:% = why; "sockets_not_inherited");
    }
    let outcome = run(prepared, inherited, &notify, &sink);
    if let Err(error) = &outcome {
        log::error!(err:% = error; "failed");
    }
    sink.flush_within(sink::FLUSH_TIMEOUT);
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn run(
    prepared: Prepared,
    inherited: Vec<TcpListener>,
    notify: &NotifyConfig,
    sink: &sink::Sink,
) -> io::Result<()> {
    let Prepared { config, descriptors, connections, push, source, warnings: _ } = prepared;
    let on_hangup = signals::Hangup::of_this_process(source.is_some());
    let signals = signals::Signals::install(on_hangup)?;
    let listens: Vec<_> = config.serving.listens().collect();
    let listeners = Listener::open(&listens, inherited)?;
    let bound = listeners.iter().map(Listener::local_addr).collect::<io::Result<Vec<_>>>()?;
    let admin = config.metrics_listen;
    let admin =
        admin.map(|address| AdminListener::bind(address, &config.metrics_allow)).transpose()?;
    let metrics_listen = admin.as_ref().map(AdminListener::local_addr).transpose()?;
    let mut seed = [0; 32];
    #[expect(clippy::disallowed_methods, reason = "the one place where randomness enters")]
    getrandom::fill(&mut seed)?;
    let relay = Relay::new(&config, connections, seed, Instant::START);
    let server = Server::new(relay, listeners, Some(signals), config.timeouts.shutdown)?;
    // The relay serves even if systemd's socket cannot be reached.
    let notifier = notify.connect().unwrap_or_else(|error| {
        log::warn!(err:% = error; "notify_failed");
        None
    });
    let mut server = server.with_push(push)?.with_notifier(notifier);
    if let Some(source) = source {
        server = server.with_tls(source)?;
    }
    if let Some(admin) = admin {
        admin.record(&server.handle(), sink)?;
        admin.serve(&server.handle(), sink)?;
    }
    let metrics_listen = metrics_listen.map(|address| address.to_string());
    for listen in bound {
        log::info!(
            listen:% = listen, metrics_listen, version = env!("CARGO_PKG_VERSION"),
            connections, descriptors, buffer_memory = config.limits.buffer_memory;
            "listening"
        );
    }
    server.run()?;
    log::info!("stopped");
    Ok(())
}

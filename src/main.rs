//! The program: parse, configure, bind, run, exit code. Decides nothing else.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use pyrycode_relay::cli::{self, Command, Environment};
use pyrycode_relay::config::{Config, Listen, Speaks};
use pyrycode_relay::relay::Relay;
use pyrycode_relay::server::tls::source::Source;
use pyrycode_relay::server::{Server, descriptors, listener::Listener, log as sink, signals};
use pyrycode_relay::time::Instant;

/// A listener failed.
const FAILED: u8 = 1;
/// The configuration is refused.
const REFUSED: u8 = 2;

fn main() -> ExitCode {
    #[expect(clippy::disallowed_methods, reason = "argv is read here")]
    let arguments = std::env::args_os().skip(1);
    let environment = Environment {
        variables: &|name| std::env::var_os(name),
        uid: rustix::process::geteuid().as_raw(),
    };
    match cli::parse(arguments, &environment) {
        Ok(Command::Help) => print!("{}", cli::HELP),
        Ok(Command::Version) => println!("pyrycode-relay {}", env!("CARGO_PKG_VERSION")),
        Ok(Command::CheckConfig(config)) => match Source::new(&config.serving) {
            Ok(_) => print!("{}", cli::describe(&config)),
            Err(unusable) => return refuse(unusable),
        },
        Ok(Command::Serve(config)) => match Source::new(&config.serving) {
            Ok(source) => return serve(&config, source),
            Err(unusable) => return refuse(unusable),
        },
        Err(refused) => return refuse(refused),
    }
    ExitCode::SUCCESS
}

fn refuse(why: impl Display) -> ExitCode {
    eprintln!("pyrycode-relay: {why}");
    ExitCode::from(REFUSED)
}

fn serve(config: &Config, source: Option<Source>) -> ExitCode {
    let sink = match sink::install(config) {
        Ok(sink) => sink,
        Err(error) => {
            eprintln!("pyrycode-relay: cannot start logging: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let outcome = run(config, source);
    if let Err(error) = &outcome {
        log::error!(err:% = error; "failed");
    }
    sink.flush_within(sink::FLUSH_TIMEOUT);
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn run(config: &Config, source: Option<Source>) -> io::Result<()> {
    let descriptors = descriptors::raise_limit();
    let capacity = descriptors::capacity(descriptors, config.limits.connections);
    let signals = signals::Signals::install()?;
    let bind = |(listen, speaks): (Listen, Speaks)| {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", listen.address));
        let listener = Listener::bind(listen.address).map_err(named)?;
        Ok(listener.speaking(speaks).proxied(listen.proxy_protocol))
    };
    let listeners = config.serving.listens().map(bind).collect::<io::Result<Vec<_>>>()?;
    let bound = listeners.iter().map(Listener::local_addr).collect::<io::Result<Vec<_>>>()?;
    let mut seed = [0; 32];
    #[expect(clippy::disallowed_methods, reason = "the one place where randomness enters")]
    getrandom::fill(&mut seed)?;
    let relay = Relay::new(config, capacity, seed, Instant::START);
    let mut server = Server::new(relay, listeners, Some(signals), config.timeouts.shutdown)?;
    if let Some(source) = source {
        server = server.with_tls(source)?;
    }
    for listen in bound {
        log::info!(
            listen:% = listen, version = env!("CARGO_PKG_VERSION"), connections = capacity,
            descriptors, buffer_memory = config.limits.buffer_memory;
            "listening"
        );
    }
    server.run()?;
    log::info!("stopped");
    Ok(())
}

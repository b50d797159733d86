//! Main: parses the command line, prepares what it asks for, and returns the exit code.
//! Decides nothing else.

mod serve;

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use pyrycode_relay::cli::{self, Command, Environment};
use pyrycode_relay::config::Config;
use pyrycode_relay::probe::{self, Plan, Style};
use pyrycode_relay::server::certificates::source::Source;
use pyrycode_relay::server::fitting::{Fitted, Warning, backlog_warning};
use pyrycode_relay::server::os::{backlog, descriptors, memory_limit, privileges};
use pyrycode_relay::server::push::Push;
use pyrycode_relay::state::formats_read;
use pyrycode_relay::terminal::{FAILED, complain, print};
use pyrycode_relay::upgrade::{self, Failed};

/// The exit code for a refused configuration.
const REFUSED: u8 = 2;
/// The exit code for a relay that cannot be upgraded without a restart.
const TOO_OLD: u8 = 3;

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
        Ok(Command::Upgrade(request)) => match upgrade::run(request) {
            Ok(told) => print(&told),
            Err(failed) => {
                complain(&failed);
                ExitCode::from(if matches!(failed, Failed::TooOld(_)) { TOO_OLD } else { FAILED })
            }
        },
        Ok(Command::UpgradeHelp) => print(cli::UPGRADE_HELP),
        Ok(Command::CheckConfig(config)) => prepared(config, |prepared| prepared.report()),
        Ok(Command::Serve(config)) => prepared(config, serve::start),
        Ok(Command::Rehearse(config)) => prepared(config, serve::rehearse),
        Ok(Command::Adopt(config)) => prepared(config, serve::adopt),
        Err(refused) => refuse(refused),
    }
}

/// Goes on with the configuration, once it is checked.
fn prepared(config: Config, go_on: impl FnOnce(Prepared) -> ExitCode) -> ExitCode {
    match Prepared::new(config) {
        Ok(prepared) => go_on(prepared),
        Err(unusable) => refuse(unusable),
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
        print(&format!("{}handover-format {}\n", cli::describe(&self.config), formats_read()))
    }
}

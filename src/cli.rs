//! Command line and environment, parsed into a [`Config`].
//!
//! Owns the names and formats of flags and variables and the text of every error.
//! Pure: argv, the environment, the user id and the capabilities are arguments. Knows
//! nothing of the machine: whether an address can be bound or the limit on open files
//! suffices is checked by the server.
//!
//! 1. A configuration is accepted whole or refused whole.
//! 2. An error has at most three lines and names the flag or variable to change.
//! 3. No text repeats the value of a variable, or of a flag that may hold a secret.

mod account;
mod environment;
mod flag;
mod probe;
mod serving;
#[cfg(test)]
mod tests;
mod upgrade;

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display};
use std::time::Duration;

use ipnet::IpNet;
use lexopt::Arg;

pub use self::environment::Environment;
use self::flag::{Flag, is_loopback};
pub use self::probe::PROBE_HELP;
pub use self::upgrade::UPGRADE_HELP;
use crate::config::{
    BUFFER_MEMORY_MIN, Config, DRAIN_SECONDS_MAX, FCM_ENDPOINT, LogFormat, PushWake,
};
use crate::probe::Plan;
use crate::upgrade::Request;

/// What `--help` prints.
pub const HELP: &str = include_str!("cli/help.txt");

/// The flag of a child that rehearses a hand-over, in front of all others. The relay itself
/// gives it.
pub const REHEARSE: &str = "--handover=rehearse";
/// The flag of the program that takes over, likewise.
pub const ADOPT: &str = "--handover=adopt";

/// The action that the command line selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run the relay.
    Serve(Config),
    /// Rehearse a hand-over: stdin holds the state of a relay that runs.
    Rehearse(Config),
    /// Take over from the relay that this process was before: stdin holds its state.
    Adopt(Config),
    /// Have a relay that runs upgraded.
    Upgrade(Request),
    /// Print [`UPGRADE_HELP`] and exit.
    UpgradeHelp,
    /// Print [`describe`] of this configuration and exit.
    CheckConfig(Config),
    /// Examine a relay.
    Probe(Plan),
    /// Print [`PROBE_HELP`] and exit.
    ProbeHelp,
    /// Print [`HELP`] and exit.
    Help,
    /// Print the version and exit.
    Version,
}

/// Why the program does not start: one to three lines for the operator, without
/// a trailing newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(String);

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Parses `args`, which begin after the program's name, and the environment.
///
/// `--help` and `--version` end parsing at once; later arguments are not checked. If a
/// flag is given twice, the last value applies, as in Go's `flag` package.
///
/// # Errors
///
/// [`Refused`] for the first argument or variable that is unknown, malformed, out of
/// range, or forbidden by `PYRYCODE_RELAY_PRODUCTION` or on Fly.io.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment<'_>,
) -> Result<Command, Refused> {
    let mut args = args.into_iter().peekable();
    if args.next_if(|first| first == "probe").is_some() {
        return probe::parse(args, environment);
    }
    if args.next_if(|first| first == "upgrade").is_some() {
        return upgrade::parse(args);
    }
    let serve = match args.next_if(|first| first == REHEARSE || first == ADOPT) {
        None => Command::Serve,
        Some(flag) if flag == REHEARSE => Command::Rehearse,
        Some(_) => Command::Adopt,
    };
    let mut parser = lexopt::Parser::from_args(args.map(with_two_dashes));
    let mut config = Config::default();
    let mut log_level = None;
    let mut check_only = false;
    let mut serving = serving::Flags::default();
    let (mut fcm_endpoint, mut fcm_ca) = (FCM_ENDPOINT.to_owned(), None);

    while let Some(arg) = parser.next().map_err(|error| Refused(error.to_string()))? {
        let name = match arg {
            Arg::Long(name) => name.to_owned(),
            Arg::Short(letter) => return Err(unknown_flag(&format!("-{letter}"))),
            Arg::Value(stray) => return Err(stray_argument(&stray)),
        };
        let mut flag = Flag { name, parser: &mut parser };
        if serving.take(&mut flag)? {
            continue;
        }
        let limits = &mut config.limits;
        match flag.name.as_str() {
            "metrics-listen" => config.metrics_listen = flag.metrics_address()?,
            "metrics-allow" => config.metrics_allow = flag.networks()?,
            "trust-x-forwarded-for" => config.forwarded.trust_x_forwarded_for = flag.is_on()?,
            "trusted-proxies" => config.forwarded.trusted_proxies = Some(flag.networks()?),
            "max-connections" => limits.connections = Some(flag.number(1..=u32::MAX as usize)?),
            "max-connections-per-ip" => limits.connections_per_ip = flag.number(0..=u32::MAX)?,
            "rate-limit-per-minute" => limits.rate_per_minute = flag.number(0..=u32::MAX)?,
            "rate-limit-burst" => limits.rate_burst = flag.number(0..=u32::MAX)?,
            "buffer-memory" => {
                limits.buffer_memory = flag.number(BUFFER_MEMORY_MIN..=usize::MAX)?;
                limits.is_buffer_memory_given = true;
            }
            "drain-seconds" => {
                config.drain = Duration::from_secs(flag.number(0..=DRAIN_SECONDS_MAX)?);
            }
            "fcm-endpoint" => fcm_endpoint = flag.https_url()?.trim_end_matches('/').into(),
            "fcm-ca" => fcm_ca = Some(flag.path()?),
            "log-format" => config.log_format = flag.log_format()?,
            "log-level" => log_level = Some(flag.log_level()?),
            "check-config" => check_only = flag.is_on()?,
            "h" | "help" => {
                if flag.is_on()? {
                    return Ok(Command::Help);
                }
            }
            "V" | "version" => {
                if flag.is_on()? {
                    return Ok(Command::Version);
                }
            }
            _ => return Err(unknown_flag(&format!("--{}", flag.name))),
        }
    }

    if config.limits.rate_burst == 0 && config.limits.rate_per_minute > 0 {
        return Err(Refused(
            "--rate-limit-burst: 0 would refuse every upgrade; set it to 1 or more,\n\
             or turn the rate limit off with --rate-limit-per-minute 0"
                .into(),
        ));
    }
    if let Some(address) = config.metrics_listen
        && !is_loopback(address)
        && config.metrics_allow.is_empty()
    {
        return Err(Refused(format!(
            "--metrics-listen: {address} is reachable from other machines; list the networks\n\
             that may connect with --metrics-allow 10.0.0.0/8,…, or listen on 127.0.0.1:9090\n\
             or [::1]:9090, or turn metrics off with --metrics-listen="
        )));
    }
    config.serving = serving.into_serving(environment)?;
    config.push_wake = environment.service_account()?.map(|account| PushWake {
        account,
        endpoint: fcm_endpoint,
        ca: fcm_ca,
    });
    environment.read_into(&mut config)?;
    // The flag takes precedence over the environment variable.
    config.log_level = log_level.unwrap_or(config.log_level);
    Ok(if check_only { Command::CheckConfig(config) } else { serve(config) })
}

/// Rewrites `-name` to `--name`, which Go's `flag` package treats alike; lexopt would
/// read `-name` as four short flags. No flag takes a value that begins with a dash and a
/// letter, so values need not be told apart from flags.
fn with_two_dashes(arg: OsString) -> OsString {
    match arg.as_encoded_bytes() {
        [b'-', letter, ..] if letter.is_ascii_alphabetic() => {
            let mut long = OsString::from("-");
            long.push(arg);
            long
        }
        _ => arg,
    }
}

fn unknown_flag(flag: &str) -> Refused {
    Refused(format!("unknown flag {}; --help lists the flags", flag.escape_debug()))
}

fn stray_argument(argument: &OsStr) -> Refused {
    // `NAME=value` is an environment variable in the wrong place; its value may be a
    // secret and is not repeated.
    let text = argument.to_string_lossy();
    let name = text.split_once('=').map_or(text.as_ref(), |(name, _)| name);
    Refused(format!(
        "unexpected argument {name:?}; write a value directly after its flag,\n\
         and a boolean as --name or --name=false"
    ))
}

/// The output of `--check-config`: one `name value` pair per line, with the names of the
/// flags; every line ends with a newline.
pub fn describe(config: &Config) -> String {
    let Config {
        serving,
        metrics_listen,
        metrics_allow,
        limits,
        drain,
        forwarded,
        push_wake,
        log_format,
        log_level,
        timeouts: _,
    } = config;
    let proxy_protocol = serving.listens().any(|(listen, _)| listen.proxy_protocol);
    let list =
        |networks: &[IpNet]| networks.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",");
    let metrics_allow = match &metrics_allow[..] {
        [] => "this machine".into(),
        networks => format!("this machine,{}", list(networks)),
    };
    let metrics_listen = metrics_listen.map_or("off".into(), |address| address.to_string());
    let connections = limits
        .connections
        .map_or("what the limit on open files leaves".into(), |limit| limit.to_string());
    let mut proxies = match (&forwarded.trusted_proxies, proxy_protocol) {
        (Some(networks), _) => list(networks),
        (None, true) if !forwarded.trust_x_forwarded_for => "anyone".into(),
        (None, true) => "anyone, for X-Forwarded-For loopback and private ranges".into(),
        (None, false) => "loopback and private ranges".into(),
    };
    if !forwarded.trust_x_forwarded_for && !proxy_protocol {
        proxies.push_str(" (unused without --proxy-protocol or --trust-x-forwarded-for)");
    }
    let (fcm_endpoint, fcm_ca) = match push_wake {
        None => ("off (PYRYCODE_RELAY_FCM_CREDENTIALS is not set)".into(), "off".into()),
        Some(PushWake { endpoint, ca, account: _ }) => {
            let ca = ca.as_ref().map_or("bundled".into(), |file| file.display().to_string());
            (endpoint.clone(), ca)
        }
    };
    let log_format = match log_format {
        LogFormat::Logfmt => "logfmt",
        LogFormat::Json => "json",
    };

    let others = [
        ("metrics-listen", metrics_listen),
        ("metrics-allow", metrics_allow),
        ("trust-x-forwarded-for", forwarded.trust_x_forwarded_for.to_string()),
        ("trusted-proxies", proxies),
        ("max-connections", connections),
        ("max-connections-per-ip", number_or_off(limits.connections_per_ip)),
        ("rate-limit-per-minute", number_or_off(limits.rate_per_minute)),
        ("rate-limit-burst", limits.rate_burst.to_string()),
        ("buffer-memory", limits.buffer_memory.to_string()),
        ("drain-seconds", drain.as_secs().to_string()),
        ("fcm-endpoint", fcm_endpoint),
        ("fcm-ca", fcm_ca),
        ("log-format", log_format.into()),
        ("log-level", log_level.to_string().to_lowercase()),
    ];
    serving::describe(serving)
        .iter()
        .chain(&others)
        .map(|(name, value)| format!("{name} {value}\n"))
        .collect()
}

fn number_or_off(number: u32) -> String {
    if number == 0 { "off".into() } else { number.to_string() }
}

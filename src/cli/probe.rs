//! Command line of `pyrycode-relay probe`.
//!
//! Owns its flags, their defaults and their errors. Examines nothing.

use std::ffi::OsString;
use std::time::Duration;

use lexopt::Arg;

use super::flag::Flag;
use super::{Command, Environment, Refused, stray_argument, unknown_flag, with_two_dashes};
use crate::probe::{Form, Plan, Target, Via};

/// The output of `probe --help`.
pub const PROBE_HELP: &str = include_str!("probe_help.txt");

/// Default number of frames each way: of 100, the 99th percentile is the second largest.
const ROUND_TRIPS: u32 = 100;
/// Default timeout for each response, in seconds.
const TIMEOUT: u64 = 10;

/// The variable with the default URL: the health check of a container image is a fixed
/// command, while the relay's port is configurable.
const URL: &str = "PYRYCODE_RELAY_PROBE_URL";

/// Parses `args`, which begin after the word `probe`.
pub(super) fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: &Environment<'_>,
) -> Result<Command, Refused> {
    let mut parser = lexopt::Parser::from_args(args.into_iter().map(with_two_dashes));
    let mut target = None;
    let (mut ca, mut via, mut watch, mut round_trips) = (None, None, None, ROUND_TRIPS);
    let mut sends_proxy_header = false;
    let (mut health_only, mut is_json, mut timeout) = (false, false, TIMEOUT);
    while let Some(arg) = parser.next().map_err(|error| Refused(error.to_string()))? {
        let name = match arg {
            Arg::Long(name) => name.to_owned(),
            Arg::Short(letter) => return Err(unknown_probe_flag(&format!("-{letter}"))),
            Arg::Value(url) if target.is_none() => {
                target = Some(Target::parse(&url.to_string_lossy()).map_err(Refused)?);
                continue;
            }
            Arg::Value(stray) => return Err(stray_argument(&stray)),
        };
        let mut flag = Flag { name, parser: &mut parser };
        match flag.name.as_str() {
            "ca" => ca = Some(flag.path()?),
            "connect" => {
                let value = flag.value()?;
                via = Some(Via::parse(&value).map_err(|why| flag.refuse(why))?);
            }
            "health" => health_only = flag.is_on()?,
            "json" => is_json = flag.is_on()?,
            "proxy-protocol" => sends_proxy_header = flag.is_on()?,
            "round-trips" => round_trips = flag.number(1..=100_000)?,
            "timeout" => timeout = flag.number(1..=600)?,
            "watch" => watch = Some(Duration::from_secs(flag.number(1..=86_400)?)),
            "h" | "help" => {
                if flag.is_on()? {
                    return Ok(Command::ProbeHelp);
                }
            }
            _ => return Err(unknown_probe_flag(&format!("--{}", flag.name))),
        }
    }
    let target = match target {
        Some(target) => target,
        None => default_target(environment)?,
    };
    if ca.is_some() && !target.is_tls {
        return Err(Refused("--ca: needs TLS; write the URL with https:// or wss://".into()));
    }
    if health_only && watch.is_some() {
        return Err(Refused(
            "--health: excludes --watch, since it asks /healthz only; remove one".into(),
        ));
    }
    let form = match (is_json, health_only) {
        (true, _) => Form::Json,
        (false, true) => Form::Failures,
        (false, false) => Form::Lines,
    };
    let timeout = Duration::from_secs(timeout);
    Ok(Command::Probe(Plan {
        target,
        via,
        sends_proxy_header,
        ca,
        health_only,
        round_trips,
        watch,
        timeout,
        form,
    }))
}

fn default_target(environment: &Environment<'_>) -> Result<Target, Refused> {
    let Some(url) = (environment.variables)(URL) else {
        return Err(Refused(format!(
            "probe: no URL given; write pyrycode-relay probe http://127.0.0.1:8080, or set {URL}"
        )));
    };
    let target = url.to_str().and_then(|url| Target::parse(url).ok());
    target.ok_or_else(|| {
        Refused(format!(
            "{URL}: must be the URL of a relay without a path,\n\
             such as http://127.0.0.1:9090, or not set"
        ))
    })
}

fn unknown_probe_flag(flag: &str) -> Refused {
    let Refused(why) = unknown_flag(flag);
    Refused(why.replace("--help", "pyrycode-relay probe --help"))
}

//! Command line of `pyrycode-relay upgrade`.
//!
//! Owns its flags, their defaults and their errors. Upgrades nothing.

use std::ffi::OsString;

use lexopt::Arg;

use super::flag::Flag;
use super::{Command, Refused, stray_argument, unknown_flag, with_two_dashes};
use crate::config::METRICS_LISTEN;
use crate::upgrade::Request;

/// The output of `upgrade --help`.
pub const UPGRADE_HELP: &str = include_str!("upgrade_help.txt");

/// Parses `args`, which begin after the word `upgrade`.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Refused> {
    let mut parser = lexopt::Parser::from_args(args.into_iter().map(with_two_dashes));
    let (mut metrics, mut pid) = (None, None);
    while let Some(arg) = parser.next().map_err(|error| Refused(error.to_string()))? {
        let name = match arg {
            Arg::Long(name) => name.to_owned(),
            Arg::Short(letter) => return Err(unknown_upgrade_flag(&format!("-{letter}"))),
            Arg::Value(stray) => return Err(stray_argument(&stray)),
        };
        let mut flag = Flag { name, parser: &mut parser };
        match flag.name.as_str() {
            "metrics-listen" => metrics = Some(flag.metrics_address()?),
            "pid" => pid = Some(flag.number(1..=i32::MAX)?),
            "h" | "help" => {
                if flag.is_on()? {
                    return Ok(Command::UpgradeHelp);
                }
            }
            _ => return Err(unknown_upgrade_flag(&format!("--{}", flag.name))),
        }
    }
    match (metrics, pid) {
        (None, Some(pid)) => Ok(Command::Upgrade(Request::Pid(pid))),
        (None, None) => Ok(Command::Upgrade(Request::Metrics(METRICS_LISTEN))),
        (Some(Some(address)), None) => Ok(Command::Upgrade(Request::Metrics(address))),
        (Some(None), None) => Err(Refused(
            "--metrics-listen: is empty; for a relay without a metrics listener give --pid PID"
                .into(),
        )),
        (Some(_), Some(_)) => {
            Err(Refused("--pid: excludes --metrics-listen, which tells the process".into()))
        }
    }
}

fn unknown_upgrade_flag(flag: &str) -> Refused {
    let Refused(why) = unknown_flag(flag);
    Refused(why.replace("--help", "pyrycode-relay upgrade --help"))
}

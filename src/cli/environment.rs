//! The environment: variables that are configuration, and the places in which
//! the relay refuses to run.
//!
//! No refusal repeats the value of a variable: one may hold a secret, or be
//! mistaken for the one that should.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use log::LevelFilter;

use super::flag::is_loopback;
use super::{Refused, account};
use crate::config::{Config, ServiceAccount, Serving};

/// What surrounds the process, as far as the configuration depends on it.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// Looks an environment variable up; `None` means not set.
    pub variables: &'a dyn Fn(&str) -> Option<OsString>,
    /// The effective user id; 0 is root.
    pub uid: u32,
    /// The names of the effective capabilities, as capabilities(7) has them, or why they
    /// cannot be told.
    pub capabilities: &'a dyn Fn() -> Result<Vec<String>, String>,
}

/// To bind ports below 1024, the one privilege that a relay can need.
const CAP_NET_BIND_SERVICE: &str = "CAP_NET_BIND_SERVICE";
/// So many capabilities are named in a refusal; a container engine's default is 14.
const CAPABILITIES_NAMED: usize = 3;

impl Environment<'_> {
    /// Adds what the environment says to `config`, then checks that the whole
    /// may run here.
    pub(super) fn read_into(&self, config: &mut Config) -> Result<(), Refused> {
        let is_production = self.is_on("PYRYCODE_RELAY_PRODUCTION")?;
        let is_single_instance = self.is_on("PYRYCODE_RELAY_SINGLE_INSTANCE")?;
        if let Some(level) = self.log_level()? {
            config.log_level = level;
        }

        if is_production {
            self.refuse_unfit_for_production(config)?;
        }
        // Fly.io sets it on every machine; empty is how one unsets it elsewhere.
        let is_on_fly = self.value("FLY_APP_NAME").is_some_and(|name| !name.is_empty());
        if is_on_fly && !is_single_instance {
            return Err(Refused(
                "FLY_APP_NAME is set: with two relays behind one address, one answers 4404 for a\n\
                 binary that the other one holds. Run exactly one machine (fly scale count 1),\n\
                 then say so with PYRYCODE_RELAY_SINGLE_INSTANCE=1"
                    .into(),
            ));
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Option<OsString> {
        (self.variables)(name)
    }

    fn is_on(&self, name: &str) -> Result<bool, Refused> {
        match self.value(name).as_deref().map(OsStr::to_str) {
            None | Some(Some("0")) => Ok(false),
            Some(Some("1")) => Ok(true),
            Some(_) => Err(Refused(format!("{name}: must be 1 (on) or 0 (off), or not set"))),
        }
    }

    /// Where systemd keeps the secrets of this service (`LoadCredential=`).
    pub(super) fn credentials_directory(&self) -> Option<PathBuf> {
        self.value("CREDENTIALS_DIRECTORY").filter(|it| !it.is_empty()).map(PathBuf::from)
    }

    fn log_level(&self) -> Result<Option<LevelFilter>, Refused> {
        const NAME: &str = "PYRYCODE_RELAY_LOG";
        let Some(value) = self.value(NAME) else { return Ok(None) };
        match value.to_str().map(str::parse) {
            Some(Ok(level)) => Ok(Some(level)),
            _ => Err(Refused(format!(
                "{NAME}: must be off, error, warn, info, debug or trace, or not set"
            ))),
        }
    }

    /// Whom to be to FCM; `None` turns push wake off.
    pub(super) fn service_account(&self) -> Result<Option<ServiceAccount>, Refused> {
        const NAME: &str = "PYRYCODE_RELAY_FCM_CREDENTIALS";
        let Some(value) = self.value(NAME) else { return Ok(None) };
        let account = match value.to_str() {
            Some("") => Err("is set but empty; unset it"),
            Some(json) => account::parse(json),
            None => Err("is not UTF-8"),
        };
        account.map(Some).map_err(|why| Refused(format!("{NAME}: {why}")))
    }

    fn refuse_unfit_for_production(&self, config: &Config) -> Result<(), Refused> {
        if let Serving::Plain(listen) = &config.serving
            && !is_loopback(listen.address)
        {
            return Err(Refused(format!(
                "PYRYCODE_RELAY_PRODUCTION=1: --insecure-listen {} would carry plain text beyond\n\
                 this machine; listen on 127.0.0.1:{} and put a TLS proxy in front",
                listen.address,
                listen.address.port()
            )));
        }
        if self.uid == 0 {
            return Err(Refused(
                "PYRYCODE_RELAY_PRODUCTION=1: refuses to run as root (uid 0);\n\
                 start it as a user of its own; a port below 1024 needs CAP_NET_BIND_SERVICE only"
                    .into(),
            ));
        }
        let found = (self.capabilities)().map_err(|why| {
            Refused(format!(
                "PYRYCODE_RELAY_PRODUCTION=1: cannot tell which capabilities this process has:\n\
                 {why}; allow it the system call capget"
            ))
        })?;
        let excess: Vec<&str> =
            found.iter().map(String::as_str).filter(|it| *it != CAP_NET_BIND_SERVICE).collect();
        if excess.is_empty() {
            return Ok(());
        }
        let mut named = excess[..excess.len().min(CAPABILITIES_NAMED)].join(", ");
        if excess.len() > CAPABILITIES_NAMED {
            named.push_str(&format!(" and {} more", excess.len() - CAPABILITIES_NAMED));
        }
        Err(Refused(format!(
            "PYRYCODE_RELAY_PRODUCTION=1: refuses to run with capabilities that it does not need:\n\
             {named}; keep {CAP_NET_BIND_SERVICE} at most\n\
             (systemd: AmbientCapabilities=, CapabilityBoundingSet=; docker run: --cap-drop ALL)"
        )))
    }
}

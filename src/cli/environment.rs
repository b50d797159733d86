//! Environment: the variables that configure the relay, and the surroundings in which
//! it refuses to start.
//!
//! No error repeats the value of a variable: it may hold a secret, or a secret may have
//! been put into the wrong variable.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use log::LevelFilter;

use super::flag::is_loopback;
use super::{Refused, account};
use crate::config::{Config, ServiceAccount, Serving};

/// The properties of the process that the configuration depends on.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// Looks up an environment variable; `None` means not set.
    pub variables: &'a dyn Fn(&str) -> Option<OsString>,
    /// The effective user id; 0 is root.
    pub uid: u32,
    /// The names of the effective capabilities as in capabilities(7), or the error of
    /// reading them.
    pub capabilities: &'a dyn Fn() -> Result<Vec<String>, String>,
}

/// The right to bind ports below 1024, the only privilege that the relay may need.
const CAP_NET_BIND_SERVICE: &str = "CAP_NET_BIND_SERVICE";
/// The maximum number of capabilities that an error names; a container engine grants 14
/// by default.
const CAPABILITIES_NAMED: usize = 3;

impl Environment<'_> {
    /// Applies the environment variables to `config`, then checks that the complete
    /// configuration may run in this environment.
    pub(super) fn read_into(&self, config: &mut Config) -> Result<(), Refused> {
        let is_production = self.is_on("PYRYCODE_RELAY_PRODUCTION")?;
        let is_single_instance = self.is_on("PYRYCODE_RELAY_SINGLE_INSTANCE")?;
        if let Some(level) = self.log_level()? {
            config.log_level = level;
        }

        if is_production {
            self.refuse_unfit_for_production(config)?;
        }
        // Fly.io sets it on every machine; an empty value counts as not set.
        let is_on_fly = self.value("FLY_APP_NAME").is_some_and(|name| !name.is_empty());
        if is_on_fly && !is_single_instance {
            return Err(Refused(
                "FLY_APP_NAME is set: of two relays behind one address, one closes a phone with\n\
                 4404 if its binary is on the other. Run exactly one machine (fly scale count 1),\n\
                 then confirm it with PYRYCODE_RELAY_SINGLE_INSTANCE=1"
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

    /// The directory of this service's systemd credentials (`LoadCredential=`).
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

    /// The service account for FCM; `None` turns push wake off.
    pub(super) fn service_account(&self) -> Result<Option<ServiceAccount>, Refused> {
        const NAME: &str = "PYRYCODE_RELAY_FCM_CREDENTIALS";
        let Some(value) = self.value(NAME) else { return Ok(None) };
        let account = match value.to_str() {
            Some("") => {
                Err("is set but empty; unset it, or set it to the contents of the key file".into())
            }
            Some(json) => account::parse(json),
            None => Err("is not UTF-8".into()),
        };
        account.map(Some).map_err(|why| Refused(format!("{NAME}: {why}")))
    }

    fn refuse_unfit_for_production(&self, config: &Config) -> Result<(), Refused> {
        if let Serving::Plain(listen) = &config.serving
            && !is_loopback(listen.address)
        {
            return Err(Refused(format!(
                "PYRYCODE_RELAY_PRODUCTION=1: --insecure-listen {} would accept unencrypted\n\
                 traffic from other machines; listen on 127.0.0.1:{} behind a TLS proxy,\n\
                 or serve TLS with --domain, or with --tls-cert and --tls-key",
                listen.address,
                listen.address.port()
            )));
        }
        if self.uid == 0 {
            return Err(Refused(
                "PYRYCODE_RELAY_PRODUCTION=1: refuses to run as root (uid 0);\n\
                 start it as a dedicated user; a port below 1024 needs CAP_NET_BIND_SERVICE only"
                    .into(),
            ));
        }
        let found = (self.capabilities)().map_err(|why| {
            Refused(format!(
                "PYRYCODE_RELAY_PRODUCTION=1: cannot read the capabilities of this process:\n\
                 {why}; allow the system call capget"
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
             {named}; drop all but {CAP_NET_BIND_SERVICE}\n\
             (systemd: AmbientCapabilities=, CapabilityBoundingSet=; docker run: --cap-drop ALL)"
        )))
    }
}

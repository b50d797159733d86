//! Fitting: the configuration, lowered to what this machine allows.
//!
//! Owns the limits that descriptors, memory and the kernel's backlog set, and the warnings for a limit that is
//! lower than the configured one. Must not ask the system: what it allows is handed in.

use std::fmt::{self, Display};

use crate::config::{
    BUFFER_MEMORY, BUFFER_MEMORY_MIN, Config, DESCRIPTORS_RESERVED, LISTEN_BACKLOG,
};

/// A relay needs room for one binary and one phone.
const CONNECTIONS_MIN: usize = 2;
/// The default of `--buffer-memory` is at most this share of the memory limit.
const MEMORY_SHARE: u64 = 4;
/// Memory for everything that no budget covers: the program, its threads and tables.
const MEMORY_BESIDES: u64 = 16 * 1024 * 1024;

/// A warning for the operator: the relay serves, but not as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The log line's event.
    pub event: &'static str,
    /// The fault and the next step.
    pub text: String,
}

impl Warning {
    /// A line in the log.
    pub fn log(&self) {
        log::warn!(err:% = self; "{}", self.event);
    }
}

impl Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The limits in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitted {
    /// WebSockets at a time.
    pub connections: usize,
    /// Bytes in all queues together.
    pub buffer_memory: usize,
    /// Limits that were lowered, and defaults that trust more than is safe.
    pub warnings: Vec<Warning>,
}

impl Fitted {
    /// Lowers `config` to a limit of `descriptors` and, if there is one, to a memory limit in
    /// bytes.
    ///
    /// # Errors
    /// If there is no room for a binary and a phone: two lines for the operator.
    pub fn new(
        config: &Config,
        descriptors: usize,
        memory_limit: Option<u64>,
    ) -> Result<Self, String> {
        let room = descriptors.saturating_sub(DESCRIPTORS_RESERVED);
        if room < CONNECTIONS_MIN {
            return Err(format!(
                "the limit on open files, {descriptors}, leaves room for {room} connections, and a \
                 binary with\na phone needs two; raise it to {} or more \
                 (LimitNOFILE= in the unit, ulimit -n)",
                DESCRIPTORS_RESERVED + CONNECTIONS_MIN
            ));
        }
        let mut warnings = Vec::new();
        let connections = config.limits.connections.unwrap_or(room);
        if connections > room {
            let text = format!(
                "--max-connections {connections}: the limit on open files, {descriptors}, leaves \
                 room for {room}; raise it to {} (LimitNOFILE= in the unit, ulimit -n)",
                connections.saturating_add(DESCRIPTORS_RESERVED)
            );
            warnings.push(Warning { event: "max_connections_lowered", text });
        }
        let (buffer_memory, is_given) =
            (config.limits.buffer_memory, config.limits.is_buffer_memory_given);
        let needed = (buffer_memory as u64).saturating_add(MEMORY_BESIDES);
        if let Some(limit) = memory_limit.filter(|limit| is_given && needed > *limit) {
            let text = format!(
                "--buffer-memory {buffer_memory}: with {MEMORY_BESIDES} bytes for everything else \
                 it is more than the control group's memory limit, {limit}; the kernel would kill \
                 the relay"
            );
            warnings.push(Warning { event: "buffer_memory_exceeds_limit", text });
        }
        let forwarded = &config.forwarded;
        if forwarded.trust_x_forwarded_for && forwarded.trusted_proxies.is_none() {
            let text = "--trust-x-forwarded-for without --trusted-proxies: a client on loopback \
                        or in a private network can forge its address; name the proxies with \
                        --trusted-proxies";
            warnings.push(Warning { event: "private_ranges_trusted", text: text.into() });
        }
        Ok(Self {
            connections: connections.min(room),
            buffer_memory: if is_given {
                buffer_memory
            } else {
                default_buffer_memory(memory_limit)
            },
            warnings,
        })
    }
}

/// The warning if the kernel caps the backlog of listeners below what the relay asks for.
#[must_use]
pub fn backlog_warning(limit: Option<u32>) -> Option<Warning> {
    let limit = limit.filter(|limit| *limit < LISTEN_BACKLOG)?;
    let text = format!(
        "net.core.somaxconn {limit}: the relay asks for room for {LISTEN_BACKLOG} connections that \
         wait to be accepted; clients that dial again all at once wait longer; raise it (sysctl -w \
         net.core.somaxconn={LISTEN_BACKLOG})"
    );
    Some(Warning { event: "listen_backlog_lowered", text })
}

fn default_buffer_memory(memory_limit: Option<u64>) -> usize {
    let share = memory_limit.map_or(u64::MAX, |limit| limit / MEMORY_SHARE);
    usize::try_from(share).unwrap_or(usize::MAX).clamp(BUFFER_MEMORY_MIN, BUFFER_MEMORY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::log::VALUE_MAX;

    const MIB: u64 = 1024 * 1024;

    fn config(connections: Option<usize>, buffer_memory: Option<u64>) -> Config {
        let mut config = Config::default();
        config.limits.connections = connections;
        if let Some(bytes) = buffer_memory {
            config.limits.buffer_memory = bytes as usize;
            config.limits.is_buffer_memory_given = true;
        }
        config
    }

    /// The one warning, if there is one: its event and its text.
    fn warning(fitted: &Fitted) -> Option<(&'static str, &str)> {
        assert!(fitted.warnings.len() <= 1, "{fitted:?}");
        fitted.warnings.first().map(|it| {
            assert!(it.text.len() <= VALUE_MAX && !it.text.contains('\n'), "{it}");
            (it.event, it.text.as_str())
        })
    }

    #[test]
    fn a_backlog_that_the_kernel_lowers_is_warned_of() {
        for enough in [None, Some(4_096), Some(65_535)] {
            assert_eq!(backlog_warning(enough), None);
        }
        let warning = backlog_warning(Some(128)).expect("a warning");
        assert_eq!(warning.event, "listen_backlog_lowered");
        assert!(warning.text.contains("128") && warning.text.contains("4096"), "{warning}");
        assert!(warning.text.len() <= VALUE_MAX, "{warning}");
    }

    #[test]
    fn connections_are_what_descriptors_leave_and_fewer_than_asked_for_is_warned_of() {
        for (descriptors, asked, expected) in [
            (1_024, None, 960),
            (1_024, Some(20), 20),
            (1_024, Some(960), 960),
            (usize::MAX, None, usize::MAX - DESCRIPTORS_RESERVED),
            (66, None, 2),
            (66, Some(1), 1),
        ] {
            let fitted = Fitted::new(&config(asked, None), descriptors, None).unwrap();
            assert_eq!(fitted.connections, expected, "{descriptors} {asked:?}");
            assert_eq!(warning(&fitted), None);
        }
        for asked in [961, 5_000, usize::MAX] {
            let fitted = Fitted::new(&config(Some(asked), None), 1_024, None).unwrap();
            assert_eq!(fitted.connections, 960);
            let (event, text) = warning(&fitted).expect("a warning");
            assert_eq!(event, "max_connections_lowered");
            assert!(text.starts_with(&format!("--max-connections {asked}: ")), "{text}");
            let way_out = asked.saturating_add(64);
            assert!(text.contains("1024, leaves room for 960; raise it to "), "{text}");
            assert!(text.contains(&format!("{way_out} (LimitNOFILE= ")), "{text}");
        }
        for descriptors in [0, 12, 64, 65] {
            for asked in [None, Some(1), Some(5_000)] {
                let refused = Fitted::new(&config(asked, None), descriptors, None).unwrap_err();
                assert!(refused.contains(&format!("open files, {descriptors}, ")), "{refused}");
                assert!(refused.contains("raise it to 66 or more (LimitNOFILE="), "{refused}");
                assert!(refused.lines().all(|line| line.len() <= 110), "{refused}");
            }
        }
    }

    #[test]
    fn the_default_budget_is_a_quarter_of_the_memory_limit_at_most() {
        for (limit, expected) in [
            (None, 64 * MIB),
            (Some(1024 * MIB), 64 * MIB),
            (Some(256 * MIB), 64 * MIB),
            (Some(255 * MIB), 255 * MIB / 4),
            (Some(64 * MIB), 16 * MIB),
            (Some(MIB), MIB),
        ] {
            let fitted = Fitted::new(&config(None, None), 1_024, limit).unwrap();
            assert_eq!(fitted.buffer_memory as u64, expected, "{limit:?}");
            assert_eq!(warning(&fitted), None);
        }
    }

    #[test]
    fn a_budget_that_was_given_is_kept_and_one_that_does_not_fit_is_warned_of() {
        for (given, limit, is_warned) in [
            (48 * MIB, Some(64 * MIB), false),
            (48 * MIB + 1, Some(64 * MIB), true),
            (64 * MIB, Some(64 * MIB), true),
            (1024 * MIB, None, false),
            (u64::MAX, Some(64 * MIB), true),
        ] {
            let fitted = Fitted::new(&config(None, Some(given)), 1_024, limit).unwrap();
            assert_eq!(fitted.buffer_memory as u64, given);
            assert_eq!(warning(&fitted).is_some(), is_warned, "{given}");
            if let Some((event, text)) = warning(&fitted) {
                assert_eq!(event, "buffer_memory_exceeds_limit");
                assert!(text.starts_with(&format!("--buffer-memory {given}: ")), "{text}");
                assert!(text.contains("memory limit, 67108864;"), "{text}");
            }
        }
    }

    #[test]
    fn forwarded_for_without_named_proxies_is_warned_of() {
        let mut config = config(None, None);
        config.forwarded.trust_x_forwarded_for = true;
        let fitted = Fitted::new(&config, 1_024, None).unwrap();
        assert_eq!(warning(&fitted).unwrap().0, "private_ranges_trusted");
        config.forwarded.trusted_proxies = Some(vec!["127.0.0.1/32".parse().unwrap()]);
        assert!(Fitted::new(&config, 1_024, None).unwrap().warnings.is_empty());
    }
}

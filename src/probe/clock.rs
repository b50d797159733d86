//! The probe's clocks.

use std::time::{Duration, Instant, SystemTime};

/// Monotonic, to measure and wait by.
#[expect(clippy::disallowed_methods, reason = "a program of its own, outside the core")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Wall time since 1970, for certificates.
#[expect(clippy::disallowed_methods, reason = "a program of its own, outside the core")]
pub(super) fn wall_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

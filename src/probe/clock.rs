//! The probe's clocks: monotonic time and wall time.

use std::time::{Duration, Instant, SystemTime};

/// Monotonic time, for measurements and deadlines.
#[expect(clippy::disallowed_methods, reason = "a program of its own, outside the core")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Wall time since 1970, for the expiry of certificates.
#[expect(clippy::disallowed_methods, reason = "a program of its own, outside the core")]
pub(super) fn wall_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

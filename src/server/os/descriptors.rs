//! How many descriptors the process may have, and how many connections that is.
//!
//! Owns the soft limit of `RLIMIT_NOFILE`. Knows nothing of sockets.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::DESCRIPTORS_RESERVED;

/// Raises the soft limit of `RLIMIT_NOFILE` to the hard limit; the descriptors
/// the process may now have. It may be very large (some container engines set
/// 2³⁰), so nothing should be allocated for it in advance.
///
/// Where the kernel refuses (macOS: an infinite hard limit is more than a
/// process may ask for), the limit stays as it was.
#[must_use]
pub fn raise_limit() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// How many WebSockets may live at once: what `descriptors` leave after
/// [`DESCRIPTORS_RESERVED`], no more than were `requested`, and at least one.
#[must_use]
pub fn capacity(descriptors: usize, requested: Option<usize>) -> usize {
    let left = descriptors.saturating_sub(DESCRIPTORS_RESERVED);
    requested.map_or(left, |requested| requested.min(left)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_what_the_reserve_leaves_capped_by_the_request() {
        for (descriptors, requested, expected) in [
            (1_024, None, 1_024 - DESCRIPTORS_RESERVED),
            (1_024, Some(20), 20),
            (1_024, Some(1_024), 1_024 - DESCRIPTORS_RESERVED),
            (1_024, Some(usize::MAX), 1_024 - DESCRIPTORS_RESERVED),
            (usize::MAX, None, usize::MAX - DESCRIPTORS_RESERVED),
            (DESCRIPTORS_RESERVED + 1, None, 1),
            (DESCRIPTORS_RESERVED, None, 1),
            (0, None, 1),
            (0, Some(20), 1),
            (1_024, Some(0), 1),
        ] {
            assert_eq!(capacity(descriptors, requested), expected, "{descriptors} {requested:?}");
        }
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_limit() {
        let Rlimit { maximum: Some(hard), .. } = getrlimit(Resource::Nofile) else {
            // An infinite hard limit exists only where the kernel refuses it.
            return;
        };
        let lower = Rlimit { current: Some(hard - 1), maximum: Some(hard) };
        setrlimit(Resource::Nofile, lower).unwrap();

        assert_eq!(raise_limit() as u64, hard);
        assert_eq!(getrlimit(Resource::Nofile).current, Some(hard));
    }
}

//! Descriptors: the limit on open files.
//!
//! Owns the soft limit of `RLIMIT_NOFILE`. Must not know sockets.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of `RLIMIT_NOFILE` to the hard limit and returns the number of
/// descriptors that the process may now have. It may be very large (some container engines
/// set 2³⁰), so nothing may be allocated for it in advance.
///
/// Where the kernel refuses (macOS, if the hard limit is infinite), the limit stays as it
/// was.
#[must_use]
pub fn raise_limit() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

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

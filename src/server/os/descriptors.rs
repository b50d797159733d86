//! Descriptors: the limit on open files, and errors that mean exhaustion.
//!
//! Owns the soft limit of `RLIMIT_NOFILE`. Must not know sockets.

use std::io;

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

/// Whether an error is EMFILE, ENFILE, ENOBUFS or ENOMEM, for which an immediate retry would
/// spin.
pub(in crate::server) fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
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

    #[test]
    fn only_exhaustion_pauses() {
        // errno numbers of Linux: EINTR, EAGAIN, ENOMEM, EPERM, ENFILE, EMFILE, EPROTO,
        // ENETDOWN, ECONNABORTED, ENOBUFS, EHOSTUNREACH.
        for (errno, exhausted) in [
            (4, false),
            (11, false),
            (12, true),
            (1, false),
            (23, true),
            (24, true),
            (71, false),
            (100, false),
            (103, false),
            (105, true),
            (113, false),
        ] {
            assert_eq!(is_exhaustion(&io::Error::from_raw_os_error(errno)), exhausted, "{errno}");
        }
    }
}

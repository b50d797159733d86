//! EINTR: retries system calls that a signal interrupted (signal(7)).
//!
//! A blocking read with a timeout is interrupted even without a handler, when the process is
//! stopped and continued.

use std::io::{self, ErrorKind};

/// Repeats a call until no signal interrupts it.
pub(in crate::server) fn retry_eintr(
    mut call: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

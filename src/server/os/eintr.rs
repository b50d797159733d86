//! Calls that a signal cuts short (signal(7)), called again.
//!
//! A blocking read with a timeout is one of them even without a handler, when the process
//! was stopped and goes on.

use std::io::{self, ErrorKind};

/// Calls until no signal has come between.
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

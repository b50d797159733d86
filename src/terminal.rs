//! Terminal: output to stdout and stderr besides the log.
//!
//! Owns the exit code for a stream that cannot be written. `println!` and its kin panic on
//! such a stream, which ends the program by SIGABRT, so `src/` must not use them
//! (tests/architecture.rs).

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// A listener failed, a probe found something wrong, or stdout could not be written.
pub const FAILED: u8 = 1;

/// Prints `text` to stdout and returns the exit code of a program whose only task that was.
///
/// EPIPE is not a failure: the reader has closed the pipe because it has read enough.
#[must_use]
pub fn print(text: &str) -> ExitCode {
    match written(&mut io::stdout().lock(), text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("cannot write to stdout: {error}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Prints an error to stderr. The exit code reports the error too, so a stderr that cannot
/// be written is ignored.
pub fn complain(what: impl Display) {
    // One write: stderr is unbuffered, and other programs may write to the same terminal.
    let _ = io::stderr().write_all(format!("pyrycode-relay: {what}\n").as_bytes());
}

fn written(stream: &mut impl Write, text: &str) -> io::Result<()> {
    match stream.write_all(text.as_bytes()).and_then(|()| stream.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails with this error at the first write.
    struct Full(io::ErrorKind);

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_no_failure_and_a_full_disk_is() {
        assert!(written(&mut Full(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(written(&mut Full(io::ErrorKind::StorageFull), "x").is_err());
        let mut stream = Vec::new();
        written(&mut stream, "x").unwrap();
        assert_eq!(stream, b"x");
    }
}

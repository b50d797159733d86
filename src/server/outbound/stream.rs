//! Stream: a TCP connection for ureq, and the connector that opens it.
//!
//! Owns the buffers, and the time limit of each read and write. `dial.rs` selects the
//! address.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use super::dial::dial;
use super::places::Places;
use crate::server::os::clock::monotonic;

/// The time limit for connecting; a call's own deadline is usually earlier.
const CONNECT_MAX: Duration = Duration::from_secs(60);

/// Opens connections; a concurrent attempt takes a place.
pub(super) struct Dialer(pub(super) Places);

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dialer(..)")
    }
}

impl Connector for Dialer {
    type Out = Stream;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Stream>, Error> {
        let deadline = monotonic() + (*details.timeout.after).min(CONNECT_MAX);
        let stream = match dial(&details.addrs, deadline, &self.0) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(Error::Timeout(details.timeout.reason));
            }
            stream => stream?,
        };
        let (input, output) =
            (details.config.input_buffer_size(), details.config.output_buffer_size());
        Ok(Some(Stream { stream, buffers: LazyBuffers::new(input, output) }))
    }
}

/// The connection.
pub(super) struct Stream {
    stream: TcpStream,
    buffers: LazyBuffers,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream(..)")
    }
}

/// The rest of a timeout that started at `began`.
fn left(timeout: &NextTimeout, began: Instant) -> Result<Duration, Error> {
    match timeout.after.saturating_sub(monotonic() - began) {
        Duration::ZERO => Err(Error::Timeout(timeout.reason)),
        left => Ok(left),
    }
}

/// `Ok` if the call should be retried, after a signal interrupted it (signal(7)); otherwise
/// the error.
fn again(error: io::Error, timeout: &NextTimeout) -> Result<(), Error> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Err(Error::Timeout(timeout.reason)),
        _ => Err(error.into()),
    }
}

impl Transport for Stream {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let (timeout, began) = (timeout.for_write(), monotonic());
        let mut output: &[u8] = &self.buffers.output()[..amount];
        while !output.is_empty() {
            self.stream.set_write_timeout(Some(left(&timeout, began)?))?;
            match (&self.stream).write(output) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(count) => output = &output[count..],
                Err(error) => again(error, &timeout)?,
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let (timeout, began) = (timeout.for_read(), monotonic());
        loop {
            self.stream.set_read_timeout(Some(left(&timeout, began)?))?;
            match (&self.stream).read(self.buffers.input_append_buf()) {
                Ok(count) => {
                    self.buffers.input_appended(count);
                    return Ok(count > 0);
                }
                Err(error) => again(error, &timeout)?,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        // On an idle connection any input, bytes or an end, makes it unusable.
        let is_silent = |stream: &TcpStream| {
            stream.set_nonblocking(true)?;
            let is_silent =
                stream.peek(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
            stream.set_nonblocking(false).map(|()| is_silent)
        };
        is_silent(&self.stream).unwrap_or(false)
    }
}

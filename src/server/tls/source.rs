//! Where the certificate comes from.
//!
//! Owns what is checked before anything is served, and starts the thread that keeps the
//! certificate fresh. Must not know sockets.

use std::fmt::{self, Display};
use std::io;

use super::Certified;
use super::certificate::{Certificate, Handshakes, read_pair};
use super::watch::{Stamps, Watch};
use crate::config::{PairFiles, Serving};
use crate::server::mailbox::Post;

/// Why TLS cannot be had as configured: one to three lines for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable(String);

impl Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// Where the certificate comes from.
#[derive(Debug)]
pub struct Source {
    handshakes: Handshakes,
    certificate: Certificate,
    files: PairFiles,
    /// What they looked like before they were read.
    seen: Stamps,
}

impl Source {
    /// Checks what can be checked before anything is served; `None`: there is no TLS.
    ///
    /// # Errors
    /// What is wrong with the operator's files, and what to do about it.
    pub fn new(serving: &Serving) -> Result<Option<Self>, Unusable> {
        match serving {
            Serving::Plain(_) => Ok(None),
            Serving::Own { pair, .. } => Self::own(pair).map(Some),
            Serving::Automatic { .. } => todo!(),
        }
    }

    fn own(pair: &PairFiles) -> Result<Self, Unusable> {
        let seen = Stamps::of(pair);
        let certificate = read_pair(pair).map_err(|bad| Unusable(bad.to_string()))?;
        Ok(Self { handshakes: handshakes(None)?, certificate, files: pair.clone(), seen })
    }

    /// What to serve at once.
    pub(in crate::server) fn first(&self) -> Certified {
        Certified::new(&self.handshakes, &self.certificate)
    }

    /// Starts the thread that posts what to serve later.
    pub(in crate::server) fn start(self, post: Post) -> io::Result<Watch> {
        Watch::start(self.files, self.seen, self.handshakes, post)
    }
}

fn handshakes(domain: Option<&str>) -> Result<Handshakes, Unusable> {
    Handshakes::new(domain).map_err(|error| Unusable(format!("no session tickets: {error}")))
}

//! Names looked up for calls that are made beside the loop.
//!
//! Owns how many threads that may take. Knows none of the services that are called.

use std::fmt;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// The most names of one kind of service that are looked up at a time.
pub(in crate::server) const LOOKUPS_MAX: usize = 32;
/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;
/// How much getaddrinfo(3) uses is for the machine's configuration to say.
const STACK: usize = 512 * 1024;

/// Looks names up on threads of their own, for getaddrinfo(3) knows no deadline.
/// ureq's resolver does the same, but ends the process when there is no thread, and
/// starts ever more while a name server is silent.
#[derive(Default)]
pub(in crate::server) struct Lookup {
    /// One for each thread that is looking, ours to count.
    threads: Arc<()>,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookup(..)")
    }
}

impl Resolver for Lookup {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let authority = uri.scheme().zip(uri.authority());
        let host = authority
            .and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority))
            .ok_or(Error::HostNotFound)?;
        // One count is our own. If there are so many, most have outlived their calls.
        if Arc::strong_count(&self.threads) > LOOKUPS_MAX {
            return Err(Error::Timeout(timeout.reason));
        }
        let ticket = Arc::clone(&self.threads);
        let (found, wait) = mpsc::sync_channel(1);
        thread::Builder::new().name("resolve".into()).stack_size(STACK).spawn(move || {
            // The caller may have given up.
            let _ = found.send(host.to_socket_addrs());
            drop(ticket);
        })?;
        let found =
            wait.recv_timeout(*timeout.after).map_err(|_| Error::Timeout(timeout.reason))?;
        let mut addresses = self.empty();
        found?.take(ADDRESSES_MAX).for_each(|address| addresses.push(address));
        if addresses.is_empty() { Err(Error::HostNotFound) } else { Ok(addresses) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ureq::Timeout;

    use super::*;

    fn lookup(threads: &Arc<()>) -> Result<ResolvedSocketAddrs, Error> {
        let lookup = Lookup { threads: Arc::clone(threads) };
        let timeout = NextTimeout {
            after: Duration::from_secs(10).into(),
            reason: Timeout::Global,
            ..NextTimeout::default()
        };
        lookup.resolve(&Uri::from_static("https://127.0.0.1:8443/x"), &Config::default(), timeout)
    }

    #[test]
    fn a_silent_name_server_holds_so_many_threads_and_no_more() {
        let threads = Arc::default();
        let found = lookup(&threads).expect("it needs no name server");
        assert_eq!(found[..], ["127.0.0.1:8443".parse().unwrap()]);
        let held: Vec<Arc<()>> = (0..LOOKUPS_MAX).map(|_| Arc::clone(&threads)).collect();
        assert!(matches!(lookup(&threads), Err(Error::Timeout(_))));
        drop(held);
    }
}

//! DNS: name lookups for calls beside the event loop.
//!
//! Owns the number of lookup threads, and which of a host's addresses are tried. Must not
//! know the services that are called.

use std::fmt;
use std::net::ToSocketAddrs;
use std::sync::mpsc;
use std::thread;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::dial::interleave;
use super::places::Places;
use crate::server::os::clock::monotonic;

/// The maximum of concurrent lookups of one agent; further calls wait, within their time.
pub(in crate::server) const LOOKUPS_MAX: usize = 16;
/// The maximum of addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;
/// The stack size of a lookup thread: the machine's configuration (nsswitch.conf(5)) decides
/// how much getaddrinfo(3) uses.
const STACK: usize = 512 * 1024;

/// Looks names up on separate threads, because getaddrinfo(3) has no deadline. ureq's
/// resolver does the same, but panics, which ends the process, if a thread cannot be
/// started, and starts threads without limit while a name server is silent.
pub(in crate::server) struct DnsResolver {
    /// One place per lookup thread, which may outlive its call.
    places: Places,
}

impl DnsResolver {
    pub(super) fn new(places: Places) -> Self {
        Self { places }
    }
}

impl fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DnsResolver(..)")
    }
}

impl Resolver for DnsResolver {
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
        let (began, late) = (monotonic(), || Error::Timeout(timeout.reason));
        let place = self.places.take_within(*timeout.after).ok_or_else(late)?;
        let (found, wait) = mpsc::sync_channel(1);
        thread::Builder::new().name("resolve".into()).stack_size(STACK).spawn(move || {
            // The receiver may have timed out.
            let _ = found.send(host.to_socket_addrs());
            drop(place);
        })?;
        let left = timeout.after.saturating_sub(monotonic() - began);
        let found = wait.recv_timeout(left).map_err(|_| late())?;
        let mut addresses = self.empty();
        interleave(found?).into_iter().take(ADDRESSES_MAX).for_each(|it| addresses.push(it));
        if addresses.is_empty() { Err(Error::HostNotFound) } else { Ok(addresses) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ureq::Timeout;

    use super::*;

    fn lookup(places: &Places, within: Duration) -> Result<ResolvedSocketAddrs, Error> {
        let lookup = DnsResolver::new(places.clone());
        let timeout =
            NextTimeout { after: within.into(), reason: Timeout::Global, ..NextTimeout::default() };
        lookup.resolve(&Uri::from_static("https://127.0.0.1:8443/x"), &Config::default(), timeout)
    }

    #[test]
    fn a_silent_name_server_holds_so_many_threads_and_no_more() {
        let soon = Duration::from_secs(10);
        let places = Places::new(LOOKUPS_MAX);
        let held: Vec<_> = (1..LOOKUPS_MAX).map(|_| places.take()).collect();
        let found = lookup(&places, soon).expect("it needs no name server");
        assert_eq!(found[..], ["127.0.0.1:8443".parse().unwrap()]);
        let last = places.take_within(soon);
        let failed = lookup(&places, Duration::from_millis(10));
        assert!(matches!(failed, Err(Error::Timeout(Timeout::Global))));
        // A call that waits has its turn when a lookup has ended.
        thread::scope(|scope| {
            let waiting = scope.spawn(|| lookup(&places, soon).is_ok());
            drop(last);
            assert!(waiting.join().unwrap());
        });
        drop(held);
    }
}

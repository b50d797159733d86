//! The relay in virtual time.
//!
//! The real [`pyrycode_relay::relay::Relay`] through its public API, with peers, links and a
//! clock that this directory simulates ([`world`]). Each file covers one section of the
//! contract, as transcripts of actions and of what each peer receives. Two files use random
//! actions and scale.

mod below;
mod border;
mod chaos;
mod claims;
mod closes;
mod cost;
mod crowd;
mod envelopes;
mod fairness;
mod faults;
mod gates;
mod handover;
mod heartbeat;
mod limits;
mod link;
mod messages;
mod notices;
mod oracle;
mod peer;
mod phones;
mod proxied;
#[path = "../support/proxy.rs"]
mod proxy;
mod redial;
mod refusals;
mod replay;
#[path = "../support/request.rs"]
mod requests;
mod shell;
mod shut_down;
mod slow_peers;
#[path = "../support/survive.rs"]
mod survive;
mod takeover;
mod tls;
mod wakes;
#[path = "../support/wire.rs"]
mod wire;
mod world;

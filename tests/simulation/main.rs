//! The relay in virtual time.
//!
//! The real [`pyrycode_relay::relay::Relay`] through its public API, with peers,
//! links and a clock that this directory makes up ([`world`]). What is promised
//! in one section of the contract is told in one file, as transcripts: who does
//! what, what everybody hears. Two files do it at random and at scale.

mod below;
mod border;
mod chaos;
mod claims;
mod closes;
mod crowd;
mod envelopes;
mod faults;
mod gates;
mod heartbeat;
mod limits;
mod link;
mod messages;
mod notices;
mod oracle;
mod peer;
mod phones;
mod proxied;
mod redial;
mod refusals;
mod replay;
#[path = "../support/request.rs"]
mod requests;
mod shell;
mod shut_down;
mod slow_peers;
mod takeover;
mod wakes;
#[path = "../support/wire.rs"]
mod wire;
mod world;

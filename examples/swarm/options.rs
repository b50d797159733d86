//! Options of the command line.

use std::error::Error;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};

use crate::stream::Tls;

pub const HELP: &str = "\
Usage: swarm [FLAG]... [ADDRESS]

Holds connections to the relay at ADDRESS (host:port; by default 127.0.0.1:8080),
which must not limit the rate of upgrades:

    pyrycode-relay --rate-limit-per-minute 0

  --binaries N     server-ids to claim (default 1000)
  --phones N       phones of each binary, at most 16 (default 4)
  --seconds N      how long to stay once all are in (default 65: two pings each)
  --messages N     frames that phones send in a second, all together; each is
                   returned by the binary (default 0)
  --bytes N        bytes of such a frame, at most 262080 (default 256)
  --frames SHAPE   string: a JSON string (default); object: as the clients send
                   them, {\"v\":2,\"type\":\"noise_msg\",\"data\":\"<base64>\"}
  --client-pings SECONDS
                   phones ping this often as well (20 as OkHttp, 30 as others), and
                   binaries each 30 s; 0 turns it off (default)
  --in-flight N    instead of --messages: each phone sends N frames, and one more for
                   each that returns, as fast as the relay forwards (default 0)
  --tls            dial through TLS; by default each handshake is a full one
  --ca FILE        with --tls: PEM file with the authorities to trust
  --server-name N  with --tls: the name to ask for (default localhost)
  --tls12          with --tls: TLS 1.2 instead of 1.3
  --resume         with --tls: handshakes resume earlier sessions, where they can
  --churn N        phones that hang up and dial again in a second (default 0)
  --half-open N    phones that fall silent with their connection open; stay for
                   70 seconds to see the relay end them (default 0)
  --source IP      address to dial from; the kernel has ports for some 28,000
                   connections from one address to one relay
  --name TEXT      what server-ids begin with (default swarm); give each of
                   several swarms its own
  --pid N          the relay's process, on this machine: what it uses is measured,
                   and how big a machine it needs is said
";

/// What a phone's frame looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A JSON string.
    String,
    /// An object with one long string in it.
    Object,
}

/// The longest frame: the envelope around it is part of the message that a binary sends.
const BYTES_MAX: usize = 256 * 1024 - 64;

#[derive(Debug)]
pub struct Options {
    pub relay: SocketAddr,
    pub binaries: usize,
    /// Of each binary.
    pub phones: usize,
    pub hold: Duration,
    /// A second.
    pub messages: usize,
    pub bytes: usize,
    pub shape: Shape,
    /// Of each phone, as fast as they return; zero: frames are paced.
    pub in_flight: usize,
    pub tls: Option<Tls>,
    /// From one ping of a phone to its next; zero: clients do not ping.
    pub client_pings: Duration,
    /// A second.
    pub churn: usize,
    pub half_open: usize,
    pub source: Option<IpAddr>,
    pub name: String,
    pub pid: Option<u32>,
}

impl Options {
    /// `None`: help was asked for.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, Box<dyn Error>> {
        let mut relay = "127.0.0.1:8080".to_owned();
        let mut options = Self {
            relay: SocketAddr::from(([127, 0, 0, 1], 8080)),
            binaries: 1000,
            phones: 4,
            hold: Duration::from_secs(65),
            messages: 0,
            bytes: 256,
            shape: Shape::String,
            in_flight: 0,
            tls: None,
            client_pings: Duration::ZERO,
            churn: 0,
            half_open: 0,
            source: None,
            name: "swarm".into(),
            pid: None,
        };
        let (mut is_tls, mut is_12, mut resumes, mut ca) = (false, false, false, None::<PathBuf>);
        let mut server_name = "localhost".to_owned();
        let mut parser = Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("binaries") => options.binaries = parser.value()?.parse()?,
                Arg::Long("phones") => options.phones = parser.value()?.parse()?,
                Arg::Long("seconds") => {
                    options.hold = Duration::from_secs(parser.value()?.parse()?);
                }
                Arg::Long("messages") => options.messages = parser.value()?.parse()?,
                Arg::Long("bytes") => options.bytes = parser.value()?.parse()?,
                Arg::Long("frames") => {
                    options.shape = match parser.value()?.string()?.as_str() {
                        "string" => Shape::String,
                        "object" => Shape::Object,
                        other => return Err(format!("--frames: {other}: string or object").into()),
                    }
                }
                Arg::Long("in-flight") => options.in_flight = parser.value()?.parse()?,
                Arg::Long("tls") => is_tls = true,
                Arg::Long("tls12") => is_12 = true,
                Arg::Long("resume") => resumes = true,
                Arg::Long("ca") => ca = Some(parser.value()?.into()),
                Arg::Long("server-name") => server_name = parser.value()?.string()?,
                Arg::Long("client-pings") => {
                    options.client_pings = Duration::from_secs(parser.value()?.parse()?);
                }
                Arg::Long("churn") => options.churn = parser.value()?.parse()?,
                Arg::Long("half-open") => options.half_open = parser.value()?.parse()?,
                Arg::Long("source") => options.source = Some(parser.value()?.parse()?),
                Arg::Long("name") => options.name = parser.value()?.string()?,
                Arg::Long("pid") => options.pid = Some(parser.value()?.parse()?),
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                Arg::Value(address) => relay = address.string()?,
                _ => return Err(arg.unexpected().into()),
            }
        }
        let address = relay.strip_prefix("ws://").unwrap_or(&relay).trim_end_matches('/');
        let found = address.to_socket_addrs().map_err(|error| format!("{relay}: {error}"))?;
        options.relay = found.into_iter().next().ok_or_else(|| format!("{relay}: no address"))?;
        options.tls = match (is_tls, ca) {
            (true, Some(ca)) => Some(Tls::new(&ca, &server_name, is_12, resumes)?),
            (true, None) => return Err("--tls: --ca says which authorities to trust".into()),
            (false, None) if !is_12 && !resumes => None,
            _ => return Err("--ca, --tls12 and --resume need --tls".into()),
        };
        if options.in_flight > 0 && options.messages > 0 {
            return Err("--in-flight: not together with --messages".into());
        }
        if options.bytes > BYTES_MAX {
            return Err(format!("--bytes: at most {BYTES_MAX}").into());
        }
        if options.phones > 16 {
            return Err("--phones: a server-id has room for 16".into());
        }
        let phones = options.binaries * options.phones;
        if phones
            < options.half_open
                + usize::from(options.churn + options.messages + options.in_flight > 0)
        {
            return Err(format!("--phones: {phones} are too few for what they are to do").into());
        }
        Ok(Some(options))
    }
}

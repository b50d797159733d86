//! Shadow: a record of each message sent, and of its delivery.

use std::collections::HashMap;

use super::Chaos;
use super::kinds::Kind;
use crate::peer::{Peer, Seen, Sending};
use crate::world::{PeerId, secs};

/// The record of one peer.
pub(super) struct Shadow {
    pub(super) kind: Kind,
    pub(super) server_id: usize,
    pub(super) is_binary: bool,
    /// A phone's frames, in order.
    pub(super) sent: Vec<String>,
    /// A binary's frames by phone, in order.
    pub(super) sent_to: HashMap<PeerId, Vec<String>>,
    /// A phone: how many of its frames its binary has, and which binary that is.
    pub(super) delivered: usize,
    delivered_to: Option<PeerId>,
    /// A phone: how many frames it has, and from which binary.
    pub(super) received: usize,
    received_from: Option<PeerId>,
    /// A phone: its binary was told that it has ended.
    is_told_of: bool,
    /// It ended the connection without a close frame.
    pub(super) left: bool,
    has_closed: bool,
}

impl Shadow {
    pub(super) fn new(kind: Kind, server_id: usize, is_binary: bool) -> Self {
        Self {
            kind,
            server_id,
            is_binary,
            sent: Vec::new(),
            sent_to: HashMap::new(),
            delivered: 0,
            delivered_to: None,
            received: 0,
            received_from: None,
            is_told_of: false,
            left: false,
            has_closed: false,
        }
    }
}

impl Chaos {
    pub(super) fn listen(&mut self) {
        for index in 0..self.shadows.len() {
            let peer = PeerId(index);
            for seen in self.world.heard(peer) {
                let is_over = self.shadows[index].has_closed;
                let is_end = matches!(seen, Seen::End | Seen::Cut);
                assert!(!is_over || is_end, "(4) {peer:?} saw {seen:?} after its close");
                match seen {
                    Seen::Text(text) if self.shadows[index].is_binary => {
                        self.on_envelope(peer, &text);
                    }
                    Seen::Text(text) => self.on_frame(peer, &text),
                    Seen::Close(..) => self.shadows[index].has_closed = true,
                    Seen::End | Seen::Cut => {
                        let actor = self.world.peer(peer);
                        let has_left = self.shadows[index].left || actor.is_broken;
                        let is_right = is_over || has_left || !actor.is_upgraded();
                        assert!(is_right, "(4) {peer:?} saw no close");
                    }
                    Seen::Answer(status) => {
                        let is_right = matches!(status, 101 | 400 | 408 | 503);
                        assert!(is_right, "(4) {peer:?} saw {status}");
                    }
                    Seen::Pong(_) => {}
                }
            }
        }
    }

    /// A binary has got an envelope: the next frame of a phone of its own, or the
    /// notice that there will be none.
    fn on_envelope(&mut self, binary: PeerId, envelope: &str) {
        let server_id = self.shadows[binary.0].server_id;
        let rest = envelope.strip_prefix("{\"conn_id\":\"").expect("(1) an envelope");
        let (conn_id, rest) = rest.split_once("\",\"").expect("(1) an envelope");
        let rest = rest.strip_suffix('}').expect("(1) an envelope");
        let id = self.world.relay.find(conn_id).expect("(1) a conn_id");
        let is_phone = |peer: &Peer| peer.id == id;
        let phone = self.world.find(id).or_else(|| self.world.peers.iter().position(is_phone));
        let phone = PeerId(phone.expect("(1) the conn_id of a phone"));
        let actor = self.world.peer(phone);
        // It may have sent more than its request before it could be told its name.
        assert!(!actor.is_upgraded() || actor.conn_id() == conn_id, "(1) {phone:?} is {conn_id}");
        let shadow = &mut self.shadows[phone.0];
        assert!(!shadow.is_binary && shadow.server_id == server_id, "(1) {phone:?} to {binary:?}");
        assert_eq!(*shadow.delivered_to.get_or_insert(binary), binary, "(1) of {phone:?}");
        assert!(!shadow.is_told_of, "(12) {phone:?} speaks after its end");
        let Some(frame) = rest.strip_prefix("frame\":") else {
            assert!(rest.starts_with("close_code\":"), "(12) {envelope}");
            assert!(!self.world.relay.has_place(id), "(12) {phone:?} has not ended");
            shadow.is_told_of = true;
            return;
        };
        assert_eq!(
            Some(frame),
            shadow.sent.get(shadow.delivered).map(String::as_str),
            "(1) {phone:?} to {binary:?}"
        );
        shadow.delivered += 1;
    }

    /// A phone has got a frame: the next one from a binary of its own.
    fn on_frame(&mut self, phone: PeerId, frame: &str) {
        let Shadow { server_id, received, received_from, .. } = self.shadows[phone.0];
        let sender = received_from.unwrap_or_else(|| {
            let is_sender = |binary: &PeerId| {
                let frames = self.shadows[binary.0].sent_to.get(&phone);
                frames.is_some_and(|frames| frames[0] == frame)
            };
            let mut peers = (0..self.shadows.len()).map(PeerId);
            peers.find(is_sender).expect("(1) a phone's first frame")
        });
        assert_eq!(self.shadows[sender.0].server_id, server_id, "(1) {sender:?} to {phone:?}");
        let sent = &self.shadows[sender.0].sent_to[&phone];
        assert_eq!(Some(frame), sent.get(received).map(String::as_str), "(1) to {phone:?}");
        let shadow = &mut self.shadows[phone.0];
        shadow.received += 1;
        shadow.received_from = Some(sender);
    }

    /// The chaos is over: every live peer reads, and nothing is missing.
    pub(super) fn calm_down(&mut self) {
        self.world.heal();
        for index in 0..self.shadows.len() {
            if self.world.peer(PeerId(index)).habits.answers_pings {
                self.world.read_on(PeerId(index));
            }
        }
        // Room for what was paused, and the end of the vanished.
        self.world.pass(secs(200));
        self.listen();
        if let Some(oracle) = &self.world.oracle {
            oracle.no_notice_is_missing();
        }
        let is_open = |chaos: &Self, peer: PeerId| {
            let peer = chaos.world.peer(peer);
            !peer.has_ended() && peer.sending == Sending::Open && peer.is_upgraded()
        };
        let mut complete = 0;
        for index in 0..self.shadows.len() {
            let phone = PeerId(index);
            let shadow = &self.shadows[index];
            if shadow.is_binary || !is_open(self, phone) {
                continue;
            }
            // It is open, so its binary is, and has been all its life.
            assert_eq!(shadow.delivered, shadow.sent.len(), "(1) {phone:?} lost frames");
            let binary = (0..self.shadows.len())
                .map(PeerId)
                .find(|binary| {
                    let other = &self.shadows[binary.0];
                    other.is_binary && other.server_id == shadow.server_id && is_open(self, *binary)
                })
                .expect("(5) a phone outlives its binary's grace");
            let sent = self.shadows[binary.0].sent_to.get(&phone).map_or(0, Vec::len);
            assert_eq!(shadow.received, sent, "(1) {binary:?} to {phone:?} lost frames");
            complete += 1;
        }
        assert_eq!(self.world.relay.live().1, complete, "(5) every phone was looked at");
    }
}

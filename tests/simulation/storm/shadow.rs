//! What the shadow knows, and what it makes of what peers see.

use std::collections::HashMap;

use super::Storm;
use crate::peer::{Seen, Sending};
use crate::wire;
use crate::world::{PeerId, secs};

/// What the shadow knows of one peer.
pub(super) struct Shadow {
    pub(super) server_id: usize,
    pub(super) is_binary: bool,
    /// A phone's frames, in order.
    pub(super) sent: Vec<String>,
    /// A binary's frames by phone, in order.
    pub(super) sent_to: HashMap<PeerId, Vec<String>>,
    /// A phone: how many of its frames its binary has, and which binary that is.
    pub(super) delivered: usize,
    pub(super) delivered_to: Option<PeerId>,
    /// A phone: how many frames it has, and from which binary.
    pub(super) received: usize,
    pub(super) received_from: Option<PeerId>,
    /// It did something that the relay may hold against it.
    pub(super) was_bad: bool,
    /// It ended the connection without a close frame.
    pub(super) left: bool,
    pub(super) has_closed: bool,
}

impl Storm {
    pub(super) fn listen(&mut self) {
        for index in 0..self.shadows.len() {
            let peer = PeerId(index);
            for seen in self.world.heard(peer) {
                assert!(
                    !self.shadows[index].has_closed || seen == Seen::End,
                    "{peer:?} saw {seen:?} after its close"
                );
                match seen {
                    Seen::Text(text) if self.shadows[index].is_binary => {
                        self.on_envelope(peer, &text);
                    }
                    Seen::Text(text) => self.on_frame(peer, &text),
                    Seen::Close(code, reason) => self.on_close(peer, code, &reason),
                    Seen::End | Seen::Cut => {
                        let shadow = &self.shadows[index];
                        let is_upgraded = self.world.peer(peer).answer.contains(" 101 ");
                        assert!(shadow.has_closed || shadow.left || !is_upgraded, "{peer:?}");
                    }
                    Seen::Answer(status) => assert!(matches!(status, 101 | 503), "{status}"),
                    Seen::Pong(_) => {}
                }
            }
        }
    }

    /// A binary has got an envelope: the next frame of a phone of its own.
    fn on_envelope(&mut self, binary: PeerId, envelope: &str) {
        let server_id = self.shadows[binary.0].server_id;
        let frame_at = envelope.find(",\"frame\":").expect("an envelope") + ",\"frame\":".len();
        let frame = &envelope[frame_at..envelope.len() - 1];
        let phone = (0..self.shadows.len())
            .map(PeerId)
            .find(|phone| {
                let answer = &self.world.peer(*phone).answer;
                wire::field(answer, "x-request-id").is_some_and(|id| envelope.contains(id))
            })
            .expect("the conn_id of a phone that has its 101");
        assert_eq!(envelope, self.world.envelope(phone, frame));
        let shadow = &mut self.shadows[phone.0];
        assert!(!shadow.is_binary && shadow.server_id == server_id, "{phone:?} to {binary:?}");
        assert_eq!(*shadow.delivered_to.get_or_insert(binary), binary, "of {phone:?}");
        assert_eq!(frame, shadow.sent[shadow.delivered], "{phone:?} to {binary:?}");
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
            (0..self.shadows.len()).map(PeerId).find(is_sender).expect("somebody's first frame")
        });
        assert_eq!(self.shadows[sender.0].server_id, server_id, "{sender:?} to {phone:?}");
        assert_eq!(frame, self.shadows[sender.0].sent_to[&phone][received], "to {phone:?}");
        let shadow = &mut self.shadows[phone.0];
        shadow.received += 1;
        shadow.received_from = Some(sender);
    }

    fn on_close(&mut self, peer: PeerId, code: u16, reason: &str) {
        let shadow = &mut self.shadows[peer.0];
        shadow.has_closed = true;
        if !shadow.was_bad {
            let is_fair = match (code, reason) {
                (4404 | 4409 | 4429, _) | (1000 | 4321, "") => true,
                (1011, "relay out of buffer memory") => true,
                // The heartbeat's, where it stands for a takeover, never.
                _ => false,
            };
            assert!(is_fair, "{peer:?} was honest and is told {code} {reason}");
        }
    }

    /// The storm is over: whoever lives reads, and nothing is missing.
    pub(super) fn calm_down(&mut self) {
        self.world.splits = None;
        for index in 0..self.shadows.len() {
            if self.world.peer(PeerId(index)).habits.answers_pings {
                self.world.read_on(PeerId(index));
            }
        }
        // Room for what was paused, and the end of the vanished.
        self.world.pass(secs(200));
        self.listen();
        let is_open = |storm: &Self, peer: PeerId| {
            let peer = storm.world.peer(peer);
            !peer.has_ended() && peer.sending == Sending::Open && peer.answer.contains(" 101 ")
        };
        let mut complete = 0;
        for index in 0..self.shadows.len() {
            let phone = PeerId(index);
            let shadow = &self.shadows[index];
            if shadow.is_binary || !is_open(self, phone) {
                continue;
            }
            // It is open, so its binary is, and has been all its life.
            assert_eq!(shadow.delivered, shadow.sent.len(), "{phone:?} lost frames");
            let binary = (0..self.shadows.len())
                .map(PeerId)
                .find(|binary| {
                    let other = &self.shadows[binary.0];
                    other.is_binary && other.server_id == shadow.server_id && is_open(self, *binary)
                })
                .expect("a phone outlives its binary's grace");
            let sent = self.shadows[binary.0].sent_to.get(&phone).map_or(0, Vec::len);
            assert_eq!(shadow.received, sent, "{binary:?} to {phone:?} lost frames");
            complete += 1;
        }
        assert!(self.world.relay.live().1 == complete, "every phone was looked at");
    }
}

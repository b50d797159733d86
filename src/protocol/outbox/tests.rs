//! Outbox: whole frames in order, however many bytes the kernel accepts at a time.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::piece::CHUNK;
use super::*;

const NOW: Instant = Instant::START;

/// Frames read from the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Vec<u8>),
}

fn text(payload: impl AsRef<[u8]>) -> Seen {
    Seen::Text(payload.as_ref().to_vec())
}

fn ping(payload: impl AsRef<[u8]>) -> Seen {
    Seen::Ping(payload.as_ref().to_vec())
}

fn pong(payload: impl AsRef<[u8]>) -> Seen {
    Seen::Pong(payload.as_ref().to_vec())
}

fn close(payload: impl AsRef<[u8]>) -> Seen {
    Seen::Close(payload.as_ref().to_vec())
}

/// Reads unmasked, unfragmented frames to the last byte, as a peer would.
#[track_caller]
fn read(mut wire: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    while !wire.is_empty() {
        let (len, header) = match wire[1] {
            len @ 0..=125 => (u64::from(len), 2),
            126 => (u64::from(u16::from_be_bytes([wire[2], wire[3]])), 4),
            127 => (u64::from_be_bytes(wire[2..10].try_into().expect("eight bytes")), 10),
            _ => panic!("masked, or not at a frame boundary: {:x?}", &wire[..wire.len().min(20)]),
        };
        let end = header + len as usize;
        assert!(end <= wire.len(), "the wire ends inside a frame");
        let payload = wire[header..end].to_vec();
        seen.push(match wire[0] {
            0x81 => Seen::Text(payload),
            0x82 => Seen::Binary(payload),
            0x88 => Seen::Close(payload),
            0x89 => Seen::Ping(payload),
            0x8a => Seen::Pong(payload),
            first => panic!("no frame of ours begins with {first:x}"),
        });
        wire = &wire[end..];
    }
    seen
}

/// An outbox and the wire it writes to.
struct Line {
    outbox: Outbox,
    spare: SpareChunks,
    wire: Vec<u8>,
}

impl Line {
    fn new() -> Self {
        Self { outbox: Outbox::new(NOW), spare: SpareChunks::new(4 * CHUNK), wire: Vec::new() }
    }

    fn with(messages: &[Vec<u8>]) -> Self {
        let mut line = Self::new();
        messages.iter().for_each(|message| line.push(&[message]));
        line
    }

    /// Queues a text message made of `parts`.
    fn push(&mut self, parts: &[&[u8]]) {
        self.outbox.push_message(Opcode::Text, parts, &mut self.spare);
    }

    /// The socket accepts `count` bytes, and what is in further chunks in further writes.
    fn write(&mut self, mut count: usize) {
        loop {
            let queued = self.outbox.queued().collect::<Vec<_>>().concat();
            assert_eq!(queued.len(), self.outbox.len(), "what waits is queued");
            let slices = self.outbox.slices().concat();
            assert!(queued.starts_with(&slices), "the slices come first");
            assert_eq!(slices.is_empty(), queued.is_empty(), "something is written next");
            let taken = count.min(slices.len());
            self.wire.extend(&slices[..taken]);
            self.outbox.on_written(taken, NOW, &mut self.spare);
            self.assert_holds_what_it_says();
            count -= taken;
            if count == 0 {
                return;
            }
        }
    }

    fn assert_holds_what_it_says(&self) {
        let (held, len) = (self.outbox.queue.held(), self.outbox.queue.len());
        assert_eq!(held, self.outbox.queue.capacity_of_pieces());
        assert!(held <= 2 * len.min(CHUNK) + len + 4 * 1024, "{held} bytes of memory for {len}");
    }

    fn write_all(&mut self) {
        while !self.outbox.is_empty() {
            self.write(self.outbox.len());
        }
    }
}

/// Every sequence of up to three messages whose lengths need different headers.
fn queues() -> Vec<Vec<Vec<u8>>> {
    let kinds = [b"".to_vec(), b"a".to_vec(), vec![b'm'; 125], vec![b'n'; 126]];
    let mut queues = vec![vec![]];
    for first in &kinds {
        queues.push(vec![first.clone()]);
        for second in &kinds {
            queues.push(vec![first.clone(), second.clone()]);
            queues.push(vec![first.clone(), second.clone(), b"third".to_vec()]);
        }
    }
    queues.push(vec![vec![b'l'; 65_536], b"after".to_vec()]);
    queues
}

fn frame_len(payload: &[u8]) -> usize {
    payload.len()
        + [2, 4, 10][usize::from(payload.len() > 125) + usize::from(payload.len() > 65_535)]
}

/// Calls `check` with every queue, every number of its bytes written before something else is
/// pushed, and the number of messages that those bytes began.
fn for_every_split(mut check: impl FnMut(Line, &[Vec<u8>], usize, &str)) {
    for queue in queues() {
        let total: usize = queue.iter().map(|message| frame_len(message)).sum();
        // Of a long message every byte of its header and some of its payload.
        let step = |at: usize| if at < 20 || at + 20 > total { 1 } else { 1 + total / 100 };
        let mut at = 0;
        while at <= total {
            let mut line = Line::with(&queue);
            line.write(at);
            let mut end = 0;
            let begun = queue.iter().take_while(|message| {
                let start = end;
                end += frame_len(message);
                start < at
            });
            let begun = begun.count();
            let lengths: Vec<_> = queue.iter().map(Vec::len).collect();
            check(line, &queue, begun, &format!("messages of {lengths:?}, {at} bytes written"));
            at += step(at);
        }
    }
}

fn texts(messages: &[Vec<u8>]) -> Vec<Seen> {
    messages.iter().map(text).collect()
}

#[test]
fn messages_keep_their_order_however_they_are_written() {
    for_every_split(|mut line, queue, _, context| {
        line.write_all();
        assert_eq!(read(&line.wire), texts(queue), "{context}");
    });
}

#[test]
fn control_frames_overtake_at_the_next_frame_boundary_and_never_inside_a_frame() {
    for_every_split(|mut line, queue, begun, context| {
        line.outbox.push_ping(b"beat");
        line.outbox.push_pong(b"answer");
        line.write_all();
        let control = vec![ping(b"beat"), pong(b"answer")];
        let expected = [texts(&queue[..begun]), control, texts(&queue[begun..])].concat();
        assert_eq!(read(&line.wire), expected, "{context}");
    });
}

#[test]
fn a_control_frame_that_was_cut_is_finished_before_anything_else() {
    for cut in 0..=6 {
        let mut line = Line::with(&[b"queued".to_vec()]);
        line.outbox.push_ping(b"beat");
        line.write(cut);
        line.push(&[b"later"]);
        line.outbox.push_ping(b"next");
        line.write_all();
        let expected = vec![ping(b"beat"), ping(b"next"), text(b"queued"), text(b"later")];
        assert_eq!(read(&line.wire), expected, "cut after {cut} bytes");
    }
}

#[test]
fn a_close_that_overtakes_drops_only_what_was_not_begun() {
    for_every_split(|mut line, queue, begun, context| {
        line.outbox.push_ping(b"beat");
        line.outbox.push_close(b"\x03\xf3why", false);
        let expected =
            [texts(&queue[..begun]), vec![ping(b"beat"), close(b"\x03\xf3why")]].concat();
        line.write_all();
        assert_eq!(read(&line.wire), expected, "{context}");
    });
}

#[test]
fn a_close_behind_the_backlog_comes_last() {
    for_every_split(|mut line, queue, begun, context| {
        line.outbox.push_ping(b"beat");
        line.outbox.push_close(b"\x03\xe9", true);
        let control = vec![ping(b"beat")];
        let last = vec![close(b"\x03\xe9")];
        let expected = [texts(&queue[..begun]), control, texts(&queue[begun..]), last].concat();
        line.write_all();
        assert_eq!(read(&line.wire), expected, "{context}");
    });
}

#[test]
fn unbegun_messages_are_distinguished_from_the_begun_one() {
    for_every_split(|line, queue, begun, context| {
        assert_eq!(line.outbox.has_unbegun(), begun < queue.len(), "{context}");
    });
}

#[test]
fn a_close_that_waits_can_be_replaced_by_one_that_overtakes() {
    for_every_split(|mut line, queue, begun, context| {
        line.outbox.push_close(b"\x03\xe9", true);
        assert!(line.outbox.has_unbegun(), "{context}: the close is not begun");
        line.outbox.push_close(b"\x03\xf3", false);
        assert!(!line.outbox.has_unbegun(), "{context}");
        line.write_all();
        let expected = [texts(&queue[..begun]), vec![close(b"\x03\xf3")]].concat();
        assert_eq!(read(&line.wire), expected, "{context}");
    });
}

#[test]
fn a_message_is_its_parts_in_order() {
    let mut line = Line::new();
    line.push(&[b"{\"frame\":", b"", b"1", b"}"]);
    line.push(&[]);
    line.outbox.push_message(Opcode::Binary, &[b"\xff", b"\x00"], &mut line.spare);
    line.write_all();
    let expected = [text(b"{\"frame\":1}"), text(b""), Seen::Binary(b"\xff\x00".to_vec())];
    assert_eq!(read(&line.wire), expected);
}

#[test]
fn an_http_answer_goes_first_and_frames_follow() {
    const ANSWER: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
    for cut in 0..=ANSWER.len() {
        for after_backlog in [false, true] {
            let mut line = Line::new();
            line.outbox.push_answer(&ANSWER[..9]);
            line.outbox.push_answer(&ANSWER[9..]);
            line.write(cut);
            line.push(&[b"hello"]);
            line.outbox.push_ping(b"beat");
            line.outbox.push_close(b"\x03\xe8", after_backlog);
            line.write_all();
            let frames = line.wire.strip_prefix(ANSWER).expect("the answer, whole");
            let expected = if after_backlog {
                vec![ping(b"beat"), text(b"hello"), close(b"\x03\xe8")]
            } else {
                vec![ping(b"beat"), close(b"\x03\xe8")]
            };
            assert_eq!(read(frames), expected, "cut after {cut} bytes");
        }
    }
}

#[test]
fn progress_is_when_bytes_last_drained() {
    let at = |seconds| NOW + Duration::from_secs(seconds);
    let (mut outbox, spare) = (Outbox::new(at(1)), &mut SpareChunks::new(0));
    outbox.push_message(Opcode::Text, &[b"message"], spare);
    assert_eq!(outbox.progress(), at(1));
    outbox.push_ping(b"more does not count");
    outbox.on_written(0, at(5), spare);
    assert_eq!(outbox.progress(), at(1), "nothing drained");
    outbox.on_written(1, at(7), spare);
    assert_eq!(outbox.progress(), at(7));
    outbox.on_written(0, at(8), spare);
    assert_eq!(outbox.progress(), at(7));
    outbox.restart(at(9));
    assert_eq!(outbox.progress(), at(9));
}

#[test]
fn a_short_remainder_frees_the_capacity_of_a_long_queue() {
    for taken in [0, 1] {
        let mut line = Line::with(&[vec![b'x'; 100_000]]);
        while line.outbox.control.len() < CONTROL_MAX {
            line.outbox.push_pong(b"answer");
        }
        line.write(line.outbox.len());
        line.push(&[&[b'x'; CHUNK - 100]]);
        line.push(&[b"hello"]);
        line.outbox.push_ping(b"beat");
        line.write(line.outbox.len() - 13);
        line.outbox.push_ping(b"beat");
        line.write(taken);
        assert!(line.outbox.capacity() < 40, "{taken}: {:?}", line.outbox);
    }
}

/// However many bytes go out at a time, at most two chunks are held beyond those that wait,
/// and the chunks that are not in use are the spare ones.
#[test]
fn a_large_backlog_gives_its_memory_back_as_it_drains() {
    let mut line = Line::with(&vec![vec![b'x'; 10_000]; 400]);
    let whole = line.outbox.queue.held();
    assert!(whole < line.outbox.len() + 2 * CHUNK, "{whole} bytes of memory");
    while !line.outbox.is_empty() {
        line.write(line.outbox.len().min(7_001));
        let (held, len) = (line.outbox.held(), line.outbox.len());
        assert!(held <= len + 2 * CHUNK, "{held} bytes of memory for {len}");
    }
    line.outbox.push_close(b"", false);
    assert!(line.outbox.held() < 10);
}

#[test]
fn a_close_that_overtakes_frees_what_it_drops() {
    let mut line = Line::with(&vec![vec![b'x'; 10_000]; 400]);
    line.write(25_000);
    line.outbox.push_close(b"", false);
    assert!(line.outbox.queue.held() <= 2 * 5_100, "{}", line.outbox.queue.held());
    line.assert_holds_what_it_says();
}

#[test]
fn a_short_message_takes_a_short_chunk() {
    for len in [0, 1, 125, 126, 1_000, 8_000, 16_000, 16_380] {
        let line = Line::with(&[vec![b'x'; len]]);
        assert!(
            line.outbox.held() <= frame_len(&vec![0; len]).max(8).next_multiple_of(CHUNK / 2)
                || line.outbox.held() == frame_len(&vec![0; len]),
            "{len}: {}",
            line.outbox.held()
        );
        assert_eq!(line.outbox.slices().iter().filter(|slice| !slice.is_empty()).count(), 1);
    }
    // The second doubles the first chunk, rather than taking a whole one.
    let line = Line::with(&[vec![b'x'; 1_000], vec![b'x'; 10]]);
    assert!(line.outbox.held() <= 2 * 1_004, "{}", line.outbox.held());
}

/// No header is in two chunks, wherever the first chunk ends.
#[test]
fn messages_of_any_length_meet_the_end_of_a_chunk() {
    for first in CHUNK - 20..CHUNK {
        for second in [0, 126, 70_000] {
            let queue = [vec![b'x'; first], vec![b'y'; second], b"third".to_vec()];
            for step in [CHUNK - 30, CHUNK, 60_000] {
                let mut line = Line::with(&queue);
                while !line.outbox.is_empty() {
                    line.write(step.min(line.outbox.len()));
                }
                assert_eq!(read(&line.wire), texts(&queue), "{first}, {second} in {step}s");
            }
        }
    }
}

// A peer that pings and does not read

#[test]
fn pongs_are_bounded_and_the_latest_is_kept() {
    let mut line = Line::with(&[b"message".to_vec()]);
    line.write(1);
    let payload = |n: u32| [&n.to_be_bytes()[..], &[0; 121]].concat();
    for n in 0..10_000 {
        line.outbox.push_pong(&payload(n));
        assert!(line.outbox.len() <= CONTROL_MAX + 256, "{} bytes wait", line.outbox.len());
    }
    line.write_all();
    let seen = read(&line.wire);
    assert_eq!(seen[0], text(b"message"));
    assert_eq!(seen.last(), Some(&pong(payload(9_999))), "the most recent ping is answered");
    let earlier: Vec<_> = (0..seen.len() as u32 - 2).map(|n| pong(payload(n))).collect();
    assert_eq!(seen[1..seen.len() - 1], earlier, "and the first ones, in order");
}

#[test]
fn the_latest_pong_is_sent_last() {
    for drained in 0..=200 {
        let mut line = Line::new();
        for n in 0..100_u32 {
            line.outbox.push_pong(&[&n.to_be_bytes()[..], &[0; 121]].concat());
        }
        line.write(drained);
        line.outbox.push_pong(b"latest");
        line.write_all();
        assert_eq!(read(&line.wire).last(), Some(&pong(b"latest")), "{drained} bytes drained");
    }
}

#[test]
fn the_peers_own_pings_do_not_crowd_out_ours() {
    // Without the ping a live peer could not answer and would count as dead.
    let mut line = Line::new();
    for _ in 0..1_000 {
        line.outbox.push_pong(&[0; 125]);
    }
    line.outbox.push_ping(b"beat");
    line.write_all();
    assert!(read(&line.wire).contains(&ping(b"beat")));
}

#[test]
fn pings_to_a_peer_that_never_reads_are_bounded() {
    let mut line = Line::new();
    for _ in 0..100_000 {
        line.outbox.push_ping(&[0; 8]);
    }
    assert!(line.outbox.len() <= 4 * CONTROL_MAX, "{} bytes wait", line.outbox.len());
}

#[test]
fn nothing_follows_the_close_not_even_a_late_pong() {
    for after_backlog in [false, true] {
        let mut line = Line::with(&[b"message".to_vec()]);
        for _ in 0..1_000 {
            line.outbox.push_pong(&[0; 125]);
        }
        line.outbox.push_close(b"\x03\xe8", after_backlog);
        line.write_all();
        let seen = read(&line.wire);
        assert_eq!(seen.last(), Some(&close(b"\x03\xe8")));
        assert_eq!(seen.contains(&text(b"message")), after_backlog);
    }
}

// Random writes

#[test]
fn random_short_writes_send_whole_frames_and_lose_no_message() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut line = Line::new();
        let (mut messages, mut pings, mut pongs) = (Vec::new(), Vec::new(), Vec::new());
        let (largest, longest) =
            [(3, 130), (40, 300), (1_000, 5_000), (100_000, 70_000)][rng.random_range(0..4)];
        for step in 0..rng.random_range(0..150_u32) {
            match rng.random_range(0..10) {
                0..3 => {
                    let len = [5, 130, longest][rng.random_range(0..3)];
                    let mut message = vec![0; rng.random_range(0..len)];
                    rng.fill_bytes(&mut message);
                    let (one, two) = message.split_at(rng.random_range(0..=message.len()));
                    line.push(&[one, two]);
                    messages.push(message);
                }
                3 => {
                    line.outbox.push_ping(&step.to_be_bytes());
                    pings.push(ping(step.to_be_bytes()));
                }
                4 => {
                    line.outbox.push_pong(&step.to_be_bytes());
                    pongs.push(pong(step.to_be_bytes()));
                }
                _ => line.write(rng.random_range(0..=line.outbox.len().min(largest))),
            }
        }
        let after_backlog = rng.random_bool(0.5);
        let closes = rng.random_bool(0.7);
        let written = line.wire.len();
        if closes {
            line.outbox.push_close(b"\x03\xe8", after_backlog);
        }
        while !line.outbox.is_empty() {
            line.write(rng.random_range(1..=line.outbox.len().min(largest)));
        }

        let mut seen = read(&line.wire);
        if closes {
            assert_eq!(seen.pop(), Some(close(b"\x03\xe8")), "seed {seed}: the close comes last");
        }
        let of = |kind: fn(&Seen) -> bool| -> Vec<Seen> {
            seen.iter().filter(|seen| kind(seen)).cloned().collect()
        };
        assert_eq!(of(|seen| matches!(seen, Seen::Ping(_))), pings, "seed {seed}");
        assert_eq!(of(|seen| matches!(seen, Seen::Pong(_))), pongs, "seed {seed}");
        let delivered = of(|seen| matches!(seen, Seen::Text(_)));
        assert_eq!(delivered, texts(&messages)[..delivered.len()], "seed {seed}: a gapless prefix");
        if closes && !after_backlog {
            // No message was begun after the overtaking close: at most the rest of one
            // message and control frames follow.
            let control = 6 * (pings.len() + pongs.len()) + 4;
            let rest = line.wire.len() - written;
            let longest = messages.iter().map(|message| frame_len(message)).max().unwrap_or(0);
            assert!(rest <= longest + control, "seed {seed}: {rest} bytes after the close");
        } else {
            assert_eq!(delivered.len(), messages.len(), "seed {seed}: a message was lost");
        }
    }
}

#[test]
fn bytes_buffered_by_the_transport_count_until_they_drain() {
    let second = Duration::from_secs(1);
    let (mut outbox, spare) = (Outbox::new(NOW), &mut SpareChunks::new(0));
    outbox.push_message(Opcode::Text, &[b"hello"], spare);
    let len = outbox.len();
    outbox.keep_below(len + 22, NOW + second);
    outbox.on_written(len, NOW + second, spare);
    assert_eq!((outbox.len(), outbox.is_empty()), (len + 22, false));
    assert!(!outbox.has_unbegun() && outbox.slices().concat().is_empty());
    // An increase is no progress, a decrease is.
    outbox.keep_below(len + 23, NOW + second * 2);
    assert_eq!(outbox.progress(), NOW + second);
    outbox.keep_below(3, NOW + second * 3);
    assert_eq!((outbox.len(), outbox.progress()), (3, NOW + second * 3));
    outbox.keep_below(0, NOW + second * 4);
    assert!(outbox.is_empty());
}

// The ping of a probe

/// How many bytes are written before it is reported, in steps of one byte.
#[test]
fn the_last_byte_of_a_probe_is_reported_once() {
    let mut line = Line::with(&[vec![b'x'; 100]]);
    let spare = &mut SpareChunks::new(0);
    assert!(!line.outbox.on_written(7, NOW, spare));
    line.outbox.push_pong(b"pong");
    line.outbox.push_probe(b"12345678");
    line.outbox.push_ping(b"after it");
    // The rest of the begun frame and the pong go first.
    let end = 102 - 7 + 6 + 10;
    let reported: Vec<bool> =
        (0..line.outbox.len()).map(|_| line.outbox.on_written(1, NOW, spare)).collect();
    let expected: Vec<bool> = (1..=reported.len()).map(|count| count == end).collect();
    assert_eq!(reported, expected);
}

#[test]
fn a_probe_has_left_when_the_transport_has_sent_it() {
    let spare = &mut SpareChunks::new(0);
    for is_behind_more in [false, true] {
        let mut outbox = Outbox::new(NOW);
        outbox.push_probe(b"12345678");
        outbox.push_message(Opcode::Text, &[b"more"], spare);
        assert!(!outbox.keep_below(32, NOW));
        assert!(!outbox.on_written(10, NOW, spare));
        assert!(!outbox.keep_below(5, NOW));
        if is_behind_more {
            // The next record was accepted, so that of the ping has left.
            assert!(!outbox.keep_below(28, NOW));
            assert!(outbox.on_written(6, NOW, spare));
        }
        assert_eq!(outbox.keep_below(0, NOW), !is_behind_more);
        assert!(!outbox.keep_below(0, NOW), "once");
    }
}

#[test]
fn a_later_probe_takes_the_place_of_an_earlier_one() {
    let (mut outbox, spare) = (Outbox::new(NOW), &mut SpareChunks::new(0));
    outbox.push_probe(b"first");
    outbox.push_probe(b"second");
    assert!(!outbox.on_written(7, NOW, spare));
    assert!(outbox.on_written(8, NOW, spare));
}

//! Pack: a state and its descriptors as one socket, and back.
//!
//! Owns how they travel: the state in a memfd (memfd_create(2)), descriptors in flight by
//! SCM_RIGHTS (unix(7)). Must not know what they are for.
//!
//! The socket holds three messages. The first is the [`Manifest`] with the listening sockets.
//! The second has the memfd and the reading ends of further sockets, which hold all other
//! descriptors, in order. The third, which may be missing, has a descriptor of the program before
//! that takes long to close.
//!
//! 1. Nothing here waits: when a socket is full, a further one is used, and when it is empty,
//!    that was all, whether or not its writing end is closed: a process that another thread has
//!    just forked may have it. The manifest tells whether something is missing.
//! 2. Everything but the one socket is closed by execve(2).
//! 3. A state is used once: [`unpack`] empties the memfd, which holds keys.
//! 4. The listening sockets survive whatever is wrong with the rest.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use rustix::stdio::{dup2_stdin, stdin};

use super::manifest::Manifest;

/// The most descriptors that one message takes (`SCM_MAX_FD` of the kernel).
const PER_MESSAGE: usize = 253;
/// The longest manifest; the few kilobytes that it may have.
const MANIFEST_MAX: usize = 64 * 1024;
/// The content of messages that carry descriptors only: an empty one would mean the end.
const MARK: &[u8] = b"d";

/// What failed, and in which step.
#[derive(Debug)]
pub struct Fault {
    step: &'static str,
    why: String,
}

impl Fault {
    pub(in crate::server) fn new(step: &'static str, why: impl Display) -> Self {
        Self { step, why: why.to_string() }
    }

    /// For a call that may fail.
    fn of<E: Display>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |why| Self::new(step, why)
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.why)
    }
}

impl std::error::Error for Fault {}

/// Two connected sockets whose messages keep their bounds: the writing and the reading end.
fn pair() -> Result<(OwnedFd, OwnedFd), Fault> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(Fault::of("socketpair"))
}

/// Packs a state with its descriptors and returns the end of a socket to read them from.
/// `listening` are the descriptors that the manifest describes; `kept` is one that execve(2)
/// would take long to close.
///
/// # Errors
/// Those of the kernel, with the step that failed.
pub fn pack(
    manifest: &Manifest,
    state: &[u8],
    listening: &[BorrowedFd<'_>],
    descriptors: &[BorrowedFd<'_>],
    kept: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Fault> {
    let text = serde_json::to_vec(manifest).map_err(Fault::of("manifest"))?;
    let memory =
        memfd_create("relay-state", MemfdFlags::CLOEXEC).map_err(Fault::of("memfd_create"))?;
    let mut memory = File::from(memory);
    memory.write_all(state).map_err(Fault::of("memfd write"))?;
    let holds = load(descriptors, pair)?;
    let (writing, reading) = pair()?;
    let mut rest = vec![memory.as_fd()];
    rest.extend(holds.iter().map(AsFd::as_fd));
    let messages = [(&*text, listening), (MARK, &*rest)];
    let kept = kept.as_ref().map(|kept| (MARK, slice::from_ref(kept)));
    for (bytes, descriptors) in messages.into_iter().chain(kept) {
        send(&writing, bytes, descriptors).map_err(Fault::of("sendmsg"))?;
    }
    Ok(reading)
}

/// Sends descriptors into sockets made by `pair`, as many as it takes, and returns their
/// reading ends.
fn load(
    descriptors: &[BorrowedFd<'_>],
    mut pair: impl FnMut() -> Result<(OwnedFd, OwnedFd), Fault>,
) -> Result<Vec<OwnedFd>, Fault> {
    let mut holds = Vec::new();
    let mut batches = descriptors.chunks(PER_MESSAGE).peekable();
    while batches.peek().is_some() {
        let (writing, reading) = pair()?;
        let mut is_empty = true;
        while let Some(batch) = batches.peek() {
            match send(&writing, MARK, batch) {
                Ok(()) => is_empty = false,
                // Full: the next socket takes it.
                Err(Errno::AGAIN) if !is_empty => break,
                Err(error) => return Err(Fault::new("sendmsg", error)),
            }
            batches.next();
        }
        holds.push(reading);
    }
    Ok(holds)
}

fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !rights.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOBIG);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(socket, &[IoSlice::new(bytes)], &mut rights, flags)? {
        sent if sent == bytes.len() => Ok(()),
        _ => Err(Errno::MSGSIZE),
    }
}

/// Takes the socket that a program is started with as its stdin, which is `/dev/null` from
/// then on.
///
/// # Errors
/// If no descriptor is free.
pub fn take_stdin() -> Result<OwnedFd, Fault> {
    let socket = fcntl_dupfd_cloexec(stdin(), 3).map_err(Fault::of("stdin"))?;
    // Where there is no such device, an empty socket does no harm.
    if let Ok(nothing) = File::open("/dev/null") {
        let _ = dup2_stdin(&nothing);
    }
    Ok(socket)
}

/// What came out of a socket.
#[derive(Debug)]
pub struct Unpacked {
    /// The first message.
    pub manifest: Manifest,
    /// The listening sockets that it describes.
    pub listening: Vec<OwnedFd>,
    /// The state with its descriptors, or what is wrong with them.
    pub state: Result<(Vec<u8>, Vec<OwnedFd>), Fault>,
    /// What the program before had open and takes long to close.
    pub kept: Option<OwnedFd>,
}

/// Takes everything out of a socket that [`pack`] returned.
///
/// # Errors
/// If there is no manifest with its listening sockets, so that nothing can be saved.
pub fn unpack(socket: BorrowedFd<'_>) -> Result<Unpacked, Fault> {
    let mut buffer = vec![0; MANIFEST_MAX];
    let (count, listening) = receive(socket, &mut buffer)?;
    if count == 0 {
        return Err(Fault::new("manifest", "missing"));
    }
    let manifest: Manifest =
        serde_json::from_slice(&buffer[..count]).map_err(Fault::of("manifest"))?;
    if listening.len() != manifest.listening() {
        return Err(Fault::new("manifest", "a listening socket is missing"));
    }
    let state = take_state(socket, &manifest);
    let kept = receive(socket, &mut [0; MARK.len()]).ok().and_then(|(_, mut rest)| rest.pop());
    Ok(Unpacked { manifest, listening, state, kept })
}

fn take_state(
    socket: BorrowedFd<'_>,
    manifest: &Manifest,
) -> Result<(Vec<u8>, Vec<OwnedFd>), Fault> {
    let (_, descriptors) = receive(socket, &mut [0; MARK.len()])?;
    let mut descriptors = descriptors.into_iter();
    let memory = descriptors.next().ok_or_else(|| Fault::new("memfd", "missing"))?;
    let state = read_once(File::from(memory), manifest.state)?;
    let mut all = Vec::with_capacity(manifest.descriptors.min(1 << 20));
    for hold in descriptors {
        while let (1.., mut batch) = receive(hold.as_fd(), &mut [0; MARK.len()])? {
            all.append(&mut batch);
            if all.len() > manifest.descriptors {
                return Err(Fault::new("descriptors", "too many"));
            }
        }
    }
    if all.len() != manifest.descriptors {
        let why = format!("{} instead of {}", all.len(), manifest.descriptors);
        return Err(Fault::new("descriptors", why));
    }
    Ok((state, all))
}

/// Reads the memfd and empties it.
fn read_once(mut memory: File, len: u64) -> Result<Vec<u8>, Fault> {
    let held = memory.metadata().map_err(Fault::of("memfd size"))?.len();
    if held != len {
        return Err(Fault::new("memfd", format!("{held} bytes instead of {len}")));
    }
    let mut state = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    // Duplicates share the position, which the writer left at the end.
    std::io::Seek::rewind(&mut memory).map_err(Fault::of("memfd seek"))?;
    memory.read_to_end(&mut state).map_err(Fault::of("memfd read"))?;
    // If that fails, the keys are in it until it is closed, and nothing else is the matter.
    let _ = memory.set_len(0);
    if state.len() as u64 != len {
        return Err(Fault::new("memfd", format!("{} bytes instead of {len}", state.len())));
    }
    Ok(state)
}

/// The next message: its length, 0 if nothing is left, and its descriptors.
fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Fault> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PER_MESSAGE))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut rights, flags) {
        Err(Errno::AGAIN) => return Ok((0, Vec::new())),
        result => result.map_err(Fault::of("recvmsg"))?,
    };
    let mut descriptors = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        // No descriptor number was free (RLIMIT_NOFILE).
        return Err(Fault::new("recvmsg", "descriptors were lost"));
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(Fault::new("recvmsg", "a message is too long"));
    }
    Ok((message.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::fs::fstat;
    use rustix::io::{FdFlags, fcntl_getfd};
    use rustix::net::sockopt::set_socket_send_buffer_size;

    use super::super::manifest::Record;
    use super::*;
    use crate::state::v1::Listener;

    fn manifest(listeners: usize, descriptors: usize, state: &[u8]) -> Manifest {
        Manifest {
            version: "1".into(),
            format: 1,
            listeners: vec![Listener { speaks: 0, is_proxied: false }; listeners],
            admin: None,
            descriptors,
            state: state.len() as u64,
            record: Record::default(),
        }
    }

    fn inode(descriptor: impl AsFd) -> u64 {
        fstat(descriptor).unwrap().st_ino
    }

    fn borrow(streams: &[UnixStream]) -> Vec<BorrowedFd<'_>> {
        streams.iter().map(AsFd::as_fd).collect()
    }

    fn streams(pairs: usize) -> Vec<UnixStream> {
        (0..pairs)
            .flat_map(|_| {
                let (one, other) = UnixStream::pair().unwrap();
                [one, other]
            })
            .collect()
    }

    #[test]
    fn what_is_packed_is_unpacked_in_order_and_closed_on_exec() {
        for pairs in [0, 1, 127, 254, 300] {
            let (streams, state) = (streams(pairs), vec![7; 100_000 * pairs]);
            let listening = UnixStream::pair().unwrap();
            let manifest = manifest(2, streams.len(), &state);
            let listening = [listening.0.as_fd(), listening.1.as_fd()];
            let kept = streams.first().map(AsFd::as_fd);
            let socket = pack(&manifest, &state, &listening, &borrow(&streams), kept).unwrap();
            let unpacked = unpack(socket.as_fd()).unwrap();
            assert_eq!(unpacked.manifest, manifest);
            let inodes = |all: &[OwnedFd]| all.iter().map(inode).collect::<Vec<_>>();
            assert_eq!(inodes(&unpacked.listening), listening.map(inode));
            assert_eq!(unpacked.kept.as_ref().map(inode), kept.map(inode));
            let (found, descriptors) = unpacked.state.unwrap();
            assert_eq!(found, state);
            let sent: Vec<_> = streams.iter().map(inode).collect();
            assert_eq!(inodes(&descriptors), sent);
            for descriptor in [&socket].into_iter().chain(&unpacked.listening).chain(&descriptors) {
                assert_eq!(fcntl_getfd(descriptor).unwrap(), FdFlags::CLOEXEC);
            }
            assert!(unpack(socket.as_fd()).is_err(), "it is used once");
        }
    }

    #[test]
    fn a_full_socket_is_followed_by_another() {
        let streams = streams(10 * PER_MESSAGE / 2);
        // What a child has between fork and execve.
        let mut kept = Vec::new();
        let holds = load(&borrow(&streams), || {
            let (writing, reading) = pair()?;
            // The kernel raises it to its minimum, which takes a few messages.
            set_socket_send_buffer_size(&writing, 1).unwrap();
            kept.push(writing.try_clone().unwrap());
            Ok((writing, reading))
        })
        .unwrap();
        assert!(kept.len() > 1 && holds.len() == kept.len(), "{} sockets", kept.len());
        let mut found = Vec::new();
        for hold in &holds {
            while let (1.., batch) = receive(hold.as_fd(), &mut [0]).unwrap() {
                found.extend(batch.iter().map(inode));
            }
        }
        assert_eq!(found, streams.iter().map(inode).collect::<Vec<_>>());
    }

    #[test]
    fn one_socket_holds_twenty_thousand() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut count = 0;
        // Only the sending: nothing here needs as many numbers. Dropped, they are gone.
        let sent = load(&vec![one.as_fd(); 20_000], || {
            count += 1;
            pair()
        });
        match sent {
            Ok(holds) => assert_eq!((holds.len(), count), (1, 1)),
            // Without CAP_SYS_RESOURCE no more than RLIMIT_NOFILE may be in flight.
            Err(fault) => {
                assert_eq!(
                    fault.to_string(),
                    Fault::new("sendmsg", Errno::TOOMANYREFS).to_string()
                );
            }
        }
    }

    #[test]
    fn the_memory_is_empty_once_it_was_read() {
        let mut memory = File::from(memfd_create("relay-state", MemfdFlags::CLOEXEC).unwrap());
        memory.write_all(b"keys").unwrap();
        let copy = memory.try_clone().unwrap();
        assert_eq!(read_once(memory, 4).unwrap(), b"keys");
        assert_eq!(copy.metadata().unwrap().len(), 0);
        assert!(read_once(copy, 4).is_err());
    }

    #[test]
    fn listening_sockets_survive_what_is_wrong_with_the_state() {
        let streams = streams(2);
        let borrowed = borrow(&streams);
        let good = manifest(1, 3, b"state");
        for (wrong, why) in [
            (Manifest { state: 4, ..good.clone() }, "memfd: 5 bytes instead of 4"),
            (Manifest { descriptors: 2, ..good.clone() }, "descriptors: too many"),
            (Manifest { descriptors: 4, ..good.clone() }, "descriptors: 3 instead of 4"),
        ] {
            let socket = pack(&wrong, b"state", &borrowed[..1], &borrowed[1..], None).unwrap();
            let unpacked = unpack(socket.as_fd()).unwrap();
            assert_eq!(unpacked.listening.len(), 1);
            assert_eq!(unpacked.state.unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn what_is_no_pack_is_refused_at_once() {
        let (one, other) = UnixStream::pair().unwrap();
        let refused = |socket: BorrowedFd<'_>| unpack(socket).unwrap_err().to_string();
        assert_eq!(refused(one.as_fd()), "manifest: missing");
        drop(other);
        assert!(refused(one.as_fd()).starts_with("manifest: "), "the end");
        let file = File::open("/dev/null").unwrap();
        assert!(refused(file.as_fd()).starts_with("recvmsg: "), "no socket");
        let socket = pack(&manifest(2, 0, b""), b"", &[one.as_fd()], &[], None).unwrap();
        assert_eq!(refused(socket.as_fd()), "manifest: a listening socket is missing");
    }

    #[test]
    fn a_fault_names_its_step() {
        let gone = Fault::of("sendmsg")(Errno::TOOMANYREFS);
        assert!(gone.to_string().starts_with("sendmsg: "), "{gone}");
    }
}

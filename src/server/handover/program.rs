//! Program: the file that this process runs, its command line, and the execution of the next.
//!
//! Owns which file that is, whether it is still the same, and that nothing has changed when
//! execve(2) fails. Must not know what travels to the next program.
//!
//! 1. The file is the one that this process was started from, found again by its path: a
//!    package manager has put the next version there.
//! 2. std's own `exec` is not used: it hands a file of unknown format to `/bin/sh`, and if it
//!    fails, SIGPIPE has its default action again, so that the next write to a peer that is
//!    gone ends the process.
//! 3. Signals are blocked from before execve(2) until the next program has its handlers; those
//!    that arrive meanwhile stay pending.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::stdio::{dup2_stdin, stdin};

use crate::server::os::signals;

/// What Linux appends to the path of a file that was removed or replaced (proc(5)).
const DELETED: &[u8] = b" (deleted)";

/// The flags that make a program take part in a hand-over, put before all others.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// Of the child that rehearses.
    pub rehearse: &'static str,
    /// Of the program that takes over.
    pub adopt: &'static str,
}

/// The file, and how to run it.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    name: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    flags: Flags,
}

/// What tells one file from another, and from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Program {
    /// The program at `path` with the command line `argv`, in which neither of the flags is
    /// kept.
    #[must_use]
    pub fn new(
        path: &Path,
        argv: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: Flags,
    ) -> Self {
        let path = path.as_os_str().as_bytes();
        let path = path.strip_suffix(DELETED).unwrap_or(path);
        let mut argv = argv.into_iter();
        let name = argv.next().unwrap_or_default();
        let is_flag = |it: &OsString| [flags.rehearse, flags.adopt].iter().any(|flag| it == flag);
        let arguments = argv.enumerate().filter(|(at, it)| *at > 0 || !is_flag(it));
        Self {
            path: OsStr::from_bytes(path).into(),
            name,
            arguments: arguments.map(|(_, argument)| argument).collect(),
            environment: environment.into_iter().collect(),
            flags,
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file as it is now.
    ///
    /// # Errors
    /// If the file does not exist.
    pub fn identity(&self) -> io::Result<Identity> {
        let file = fs::metadata(&self.path)?;
        Ok(Identity {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        })
    }

    /// The command that rehearses.
    pub(super) fn rehearsal(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.arg0(&self.name).arg(self.flags.rehearse).args(&self.arguments);
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Replaces this process with the program, `socket` being its stdin. Returns only if that
    /// fails: then everything is as before.
    pub fn execute(&self, socket: &OwnedFd) -> io::Error {
        match self.try_execute(socket) {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    fn try_execute(&self, socket: &OwnedFd) -> io::Result<std::convert::Infallible> {
        let path = CString::new(self.path.as_os_str().as_bytes())?;
        let first = [self.name.as_os_str(), OsStr::new(self.flags.adopt)];
        let argv = first.into_iter().chain(self.arguments.iter().map(OsString::as_os_str));
        let argv = argv.map(|it| CString::new(it.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let environment = self
            .environment
            .iter()
            .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
        let environment = environment.collect::<Result<Vec<_>, _>>()?;
        // Above the three standard streams.
        let before = fcntl_dupfd_cloexec(stdin(), 3)?;
        let blocked = signals::Blocked::new()?;
        let failed = match dup2_stdin(socket) {
            Ok(()) => nix::unistd::execve(&path, &argv, &environment).map_err(io::Error::from),
            Err(error) => Err(error.into()),
        };
        dup2_stdin(&before)?;
        drop(blocked);
        failed
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;
    use std::process::Stdio;

    use super::*;

    const FLAGS: Flags = Flags { rehearse: "--rehearse", adopt: "--adopt" };

    fn program(path: &Path, argv: &[&str]) -> Program {
        Program::new(path, argv.iter().map(Into::into), [], FLAGS)
    }

    #[test]
    fn the_flag_is_not_repeated_and_deleted_is_no_part_of_a_path() {
        let found = program(Path::new("/a/b (deleted)"), &["name", "--adopt", "-x", "--adopt"]);
        assert_eq!(found.path(), Path::new("/a/b"));
        assert_eq!(
            (found.name.clone(), &found.arguments[..]),
            ("name".into(), &["-x".into(), "--adopt".into()][..])
        );
        let command = found.rehearsal();
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["--rehearse", "-x", "--adopt"]);
    }

    #[test]
    fn a_file_is_another_once_it_was_replaced_or_changed() {
        let directory = tempfile();
        let path = directory.join("program");
        fs::write(&path, "1").unwrap();
        let found = program(&path, &["p"]);
        let first = found.identity().unwrap();
        assert_eq!(found.identity().unwrap(), first);
        fs::write(directory.join("next"), "1").unwrap();
        fs::rename(directory.join("next"), &path).unwrap();
        assert_ne!(found.identity().unwrap(), first);
        fs::remove_dir_all(&directory).unwrap();
        assert!(found.identity().is_err());
    }

    fn tempfile() -> PathBuf {
        let mut name = [0; 8];
        #[expect(clippy::disallowed_methods, reason = "a name that no other test has")]
        getrandom::fill(&mut name).unwrap();
        let path = std::env::temp_dir().join(format!("relay-{:x}", u64::from_ne_bytes(name)));
        fs::create_dir(&path).unwrap();
        path
    }

    /// Not a test but the process in which the next one executes what cannot be executed.
    #[test]
    #[ignore = "run by another test in a process of its own"]
    fn child() {
        let directory = tempfile();
        let file = |name: &str, mode, text: &[u8]| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            path
        };
        let garbage = file("garbage", 0o755, b"\x7fELF, and no more");
        let closed = file("closed", 0o644, b"#!/bin/sh\n");
        let busy = file("busy", 0o755, &fs::read("/bin/true").unwrap());
        let _writer = File::options().append(true).open(&busy).unwrap();
        let mask = || {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let lines = status.lines().filter(|it| it.starts_with("Sig"));
            lines.map(String::from).collect::<Vec<_>>()
        };
        let (before, input) = (mask(), fs::read_link("/proc/self/fd/0").unwrap());
        let (socket, _) = UnixStream::pair().unwrap();
        let socket = OwnedFd::from(socket);
        for (path, errno) in [(directory.join("none"), 2), (garbage, 8), (closed, 13), (busy, 26)] {
            let error = program(&path, &["p"]).execute(&socket);
            assert_eq!(error.raw_os_error(), Some(errno), "{}: {error}", path.display());
            assert_eq!(mask(), before, "{}", path.display());
            assert_eq!(fs::read_link("/proc/self/fd/0").unwrap(), input);
            // SIGPIPE would end the process here.
            let (mut one, other) = UnixStream::pair().unwrap();
            drop(other);
            let error = one.write(b"x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        fs::remove_dir_all(&directory).unwrap();
        println!("\nunharmed");
        // And what can be executed is.
        let (mut socket, next) = UnixStream::pair().unwrap();
        socket.write_all(b"from stdin\n").unwrap();
        drop(socket);
        let flags = Flags { rehearse: "", adopt: "-" };
        let cat = Program::new(Path::new("/bin/cat"), ["cat".into()], [], flags);
        panic!("{}", cat.execute(&next.into()));
    }

    #[test]
    fn a_failed_execution_leaves_everything_as_it_was() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "server::handover::program::tests::child",
                "--ignored",
                "--nocapture",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut output = output;
        output.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(output.wait().unwrap().success(), "{said}");
        assert!(said.contains("\nunharmed\n") && said.ends_with("from stdin\n"), "{said}");
    }
}

//! Cache directory: owner, mode, and whether it can be written.
//!
//! Owns the rules for the directory and the files in it. Must not know the files by name,
//! nor certificates.
//!
//! 1. [`Directory::check`] never writes.
//! 2. The mode is changed only if the relay created the directory.
//! 3. A file that another user could have planted is not read: directory and files must
//!    belong to the relay's user or to root.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, StatVfs, accessat, statvfs};
use rustix::io::Errno;

/// The size of the trial file that is written before an order and removed: larger than
/// account, certificate and notes together, so that a full disk is noticed.
const TRIAL_BYTES: usize = 64 * 1024;

/// The cache directory.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

/// The result of [`Directory::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The directory can be used as it is, or does not exist and will be created.
    Well,
    /// Other users have access by this mode: usable only if the relay created the directory.
    TooOpen(u32),
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Checks the directory, if it exists.
    ///
    /// # Errors
    /// Describes what is wrong with it and the remedy.
    pub(super) fn check(&self) -> Result<Found, String> {
        let path = self.0.display();
        let found = match fs::metadata(&self.0) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Well),
            Err(error) => return Err(format!("{path}: {error}")),
        };
        if !found.is_dir() {
            return Err(format!("{path}: is not a directory"));
        }
        if !is_trusted(found.uid()) {
            return Err(format!(
                "{path}: belongs to user {}, which could plant a certificate in it;\n\
                 chown {} {path}, or give another --cert-cache",
                found.uid(),
                euid()
            ));
        }
        let mode = found.mode() & 0o7777;
        Ok(if mode & 0o077 == 0 { Found::Well } else { Found::TooOpen(mode) })
    }

    /// The error text for a directory with too open a mode.
    pub(super) fn refusal(&self, mode: u32) -> String {
        let path = self.0.display();
        format!(
            "{path}: others than its owner have access to it (mode {mode:04o}), and the relay did\n\
             not create it; chmod 700 {path}, or give a --cert-cache below it, which the relay\n\
             will create"
        )
    }

    /// Checks by owner, mode, mount and free space whether files can be created in the directory or, if
    /// it does not exist, whether it can be created.
    ///
    /// # Errors
    /// The reason why not, with the path.
    pub(super) fn check_writable(&self) -> Result<(), String> {
        let mut path = self.0.as_path();
        // The empty parent of a relative path is the working directory.
        while matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
            path = match path.parent() {
                Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                Some(parent) => parent,
                None => break,
            };
        }
        accessat(CWD, path, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
            .map_err(|errno| format!("{}: is not writable: {errno}", path.display()))?;
        match statvfs(path) {
            Ok(found) if !has_room(&found, euid()) => {
                Err(format!("{}: is not writable: {}", path.display(), Errno::NOSPC))
            }
            // The trial before an order decides.
            _ => Ok(()),
        }
    }

    /// Creates the directory unless it exists; returns whether it was created.
    ///
    /// # Errors
    /// Those of the system, with the path.
    pub(super) fn create(&self) -> io::Result<bool> {
        if self.0.is_dir() {
            return Ok(false);
        }
        let named = |error| named(&self.0, &error);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(named)?;
        Ok(true)
    }

    /// Removes other users' permissions.
    pub(super) fn tighten(&self, from: u32) -> io::Result<()> {
        fs::set_permissions(&self.0, Permissions::from_mode(0o700))
            .map_err(|error| named(&self.0, &error))?;
        log::warn!(
            path:% = self.0.display(), from = format!("{from:04o}"), to = "0700";
            "tightened cert cache dir perms"
        );
        Ok(())
    }

    /// The inode, which identifies the directory within its file system.
    pub(super) fn inode(&self) -> Option<u64> {
        fs::metadata(&self.0).ok().map(|found| found.ino())
    }

    /// Writes and removes a trial file of [`TRIAL_BYTES`].
    ///
    /// # Errors
    /// Those of the system, with the path.
    pub(super) fn try_write(&self) -> io::Result<()> {
        let path = self.0.join("pyrycode-relay+trial");
        let _ = fs::remove_file(&path);
        let written = create_new(&path).and_then(|mut file| {
            file.write_all(&[0; TRIAL_BYTES])?;
            file.sync_all()
        });
        let _ = fs::remove_file(&path);
        written.map_err(|error| named(&self.0, &error))
    }

    /// The content of a file; `None`: the file does not exist.
    ///
    /// # Errors
    /// Those of the system, and if another user could have written it; with the path.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.0.join(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(named(&path, &error)),
        };
        let found = file.metadata().map_err(|error| named(&path, &error))?;
        if !is_trusted(found.uid()) || found.mode() & 0o022 != 0 {
            return Err(io::Error::other(format!(
                "{0}: others than the relay's user can write it (user {1}, mode {2:04o});\n\
                 remove it or, if you trust its content, chown {3} {0} and chmod 600 {0}",
                path.display(),
                found.uid(),
                found.mode() & 0o7777,
                euid()
            )));
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(|error| named(&path, &error))?;
        Ok(Some(content))
    }

    /// Replaces a file atomically, even if the machine stops meanwhile.
    pub(super) fn write(&self, name: &str, content: &str) -> io::Result<()> {
        let path = self.0.join(name);
        // A host name contains no plus sign, so the name cannot collide.
        let new = self.0.join(format!("{name}+new"));
        // A left-over file may have another mode.
        let _ = fs::remove_file(&new);
        let written = create_new(&new).and_then(|mut file| {
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.0)?.sync_all()
        });
        written.map_err(|error| named(&path, &error))
    }

    /// Renames a file that cannot be used, so that it is not overwritten.
    pub(super) fn put_aside(&self, name: &str) -> io::Result<PathBuf> {
        let aside = self.0.join(format!("{name}+unusable"));
        let path = self.0.join(name);
        fs::rename(&path, &aside).map_err(|error| named(&path, &error))?;
        Ok(aside)
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Whether a trial file fits. Root may use blocks that are reserved for it. A file system
/// that counts no blocks does not tell.
fn has_room(found: &StatVfs, euid: u32) -> bool {
    let blocks = if euid == 0 { found.f_bfree } else { found.f_bavail };
    found.f_blocks == 0 || blocks.saturating_mul(found.f_frsize) >= TRIAL_BYTES as u64
}

fn euid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Root is trusted because it can replace the program itself.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == euid()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> Directory {
        let name = format!("pyrycode-relay-directory-{}-{name}", std::process::id());
        Directory::new(std::env::temp_dir().join(name).join("certs"))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn remove(directory: &Directory) {
        fs::remove_dir_all(directory.0.parent().unwrap()).unwrap();
    }

    #[test]
    fn it_is_made_for_its_owner_only_and_a_check_makes_nothing() {
        let directory = directory("made");
        assert_eq!(directory.check(), Ok(Found::Well));
        assert_eq!(directory.check_writable(), Ok(()));
        assert!(!directory.0.exists());
        assert!(directory.create().unwrap() && !directory.create().unwrap());
        assert_eq!(mode(&directory.0), 0o700);
        directory.try_write().unwrap();
        directory.write("a", "1").unwrap();
        directory.write("a", "2").unwrap();
        assert_eq!(directory.read("a").unwrap().unwrap(), b"2");
        assert_eq!(directory.read("b").unwrap(), None);
        assert_eq!(mode(&directory.0.join("a")), 0o600);
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 1);
        remove(&directory);
    }

    #[test]
    fn a_check_sees_a_mode_that_is_too_open_and_leaves_it() {
        let directory = directory("open");
        directory.create().unwrap();
        for open in [0o755, 0o750, 0o701, 0o2775, 0o1777] {
            fs::set_permissions(&directory.0, Permissions::from_mode(open)).unwrap();
            assert_eq!(directory.check(), Ok(Found::TooOpen(open)));
            assert!(directory.refusal(open).contains(&format!("(mode {open:04o})")));
            assert_eq!(mode(&directory.0), open);
        }
        fs::remove_dir(&directory.0).unwrap();
        fs::write(&directory.0, "").unwrap();
        assert!(directory.check().unwrap_err().ends_with("is not a directory"));
        remove(&directory);
    }

    #[test]
    fn what_others_may_have_written_is_not_read() {
        let directory = directory("planted");
        directory.create().unwrap();
        directory.write("a", "x").unwrap();
        fs::set_permissions(directory.0.join("a"), Permissions::from_mode(0o622)).unwrap();
        let said = directory.read("a").unwrap_err().to_string();
        assert!(said.contains("mode 0622") && said.contains("/certs/a"), "{said}");
        // Only root can give a file away.
        if euid() == 0 {
            directory.write("a", "x").unwrap();
            std::os::unix::fs::chown(directory.0.join("a"), Some(65534), None).unwrap();
            assert!(directory.read("a").unwrap_err().to_string().contains("user 65534"));
            std::os::unix::fs::chown(&directory.0, Some(65534), None).unwrap();
            assert!(directory.check().unwrap_err().contains("chown 0 "));
        }
        remove(&directory);
    }

    #[test]
    fn a_full_file_system_is_noticed_without_writing() {
        let mut found = statvfs("/").unwrap();
        (found.f_blocks, found.f_frsize, found.f_bfree, found.f_bavail) = (1_000, 4_096, 16, 0);
        assert!(has_room(&found, 0), "root may use what is reserved");
        assert!(!has_room(&found, 1000));
        found.f_bavail = 16;
        assert!(has_room(&found, 1000));
        (found.f_bfree, found.f_bavail) = (15, 15);
        assert!(!has_room(&found, 0) && !has_room(&found, 1000));
        (found.f_blocks, found.f_bfree, found.f_bavail) = (0, 0, 0);
        assert!(has_room(&found, 1000), "it does not tell");
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        // Not even root can make a file here.
        let directory = Directory::new("/proc/self/certs".into());
        let said = directory.create().unwrap_err().to_string();
        assert!(said.starts_with("/proc/self/certs: "), "{said}");
        let directory = Directory::new("/proc/self".into());
        let said = directory.try_write().unwrap_err().to_string();
        assert!(said.starts_with("/proc/self: "), "{said}");
        if euid() != 0 {
            let said = Directory::new("/certs/a/b".into()).check_writable().unwrap_err();
            assert!(said.starts_with("/: is not writable: "), "{said}");
        }
    }
}

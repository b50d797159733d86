//! Key file: reads a private key and checks the file's permissions.
//!
//! Owns the rule, which is PostgreSQL's for `ssl_key_file`: the file belongs to the relay's
//! user and is accessible to that user alone, or it belongs to root and is accessible to
//! root and at most one group.
//!
//! 1. Files below systemd's `$CREDENTIALS_DIRECTORY` are exempt: systemd restricts access
//!    to them by means that a mode does not show.
//! 2. On a read-only mount (secrets of Kubernetes and Docker) the mode cannot be changed, so
//!    too open a mode is a warning there, and an error elsewhere.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{StatVfsMountFlags, fstatvfs};

/// The content of a key file, and a warning about its permissions.
#[derive(Debug)]
pub(super) struct KeyFile {
    pub(super) content: Vec<u8>,
    pub(super) warning: Option<String>,
}

/// Reads the key at `path`; `credentials` is `$CREDENTIALS_DIRECTORY`.
///
/// # Errors
/// Describes what is wrong with the file and the remedy.
pub(super) fn read(path: &Path, credentials: Option<&Path>) -> Result<KeyFile, String> {
    let uid = rustix::process::geteuid().as_raw();
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{error} for uid {uid}; give the file to a group of that user (chgrp, chmod 640),\n\
             or let systemd pass it (LoadCredential= in the unit)"
        ),
        _ => error.to_string(),
    };
    // The open descriptor is checked, so that the file cannot be replaced after the check.
    let mut file = File::open(path).map_err(explain)?;
    let metadata = file.metadata().map_err(explain)?;
    let mut warning = None;
    if !credentials.is_some_and(|directory| lies_in(path, directory))
        && let Some(CertificateError { what, remedy }) =
            check(metadata.mode() & 0o7777, metadata.uid(), uid)
    {
        let is_read_only =
            fstatvfs(&file).is_ok_and(|it| it.f_flag.contains(StatVfsMountFlags::RDONLY));
        if !is_read_only {
            return Err(format!("{what};\n{remedy} {}", path.display()));
        }
        warning = Some(format!("{what}; mount it with mode 0400"));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content).map_err(explain)?;
    Ok(KeyFile { content, warning })
}

fn lies_in(path: &Path, directory: &Path) -> bool {
    match (fs::canonicalize(path), fs::canonicalize(directory)) {
        (Ok(path), Ok(directory)) => path.starts_with(directory),
        _ => false,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct CertificateError {
    what: String,
    /// A command; the path follows it.
    remedy: String,
}

/// What is wrong with a key file of this mode and owner for a relay that runs as `uid`.
fn check(mode: u32, owner: u32, uid: u32) -> Option<CertificateError> {
    if owner != uid && owner != 0 {
        return Some(CertificateError {
            what: format!("uid {owner} owns this key; the owner must be the relay's user or root"),
            remedy: format!("chown {uid}"),
        });
    }
    let (forbidden, complaint) = match owner {
        0 => (0o027, "others than root and its group may use this key"),
        _ => (0o077, "others than its owner may use this key"),
    };
    (mode & forbidden != 0).then(|| CertificateError {
        what: format!("{complaint} (mode {mode:04o})"),
        remedy: if owner == 0 && uid != 0 { "chmod 640" } else { "chmod 600" }.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u32 = 0;
    const RELAY: u32 = 998;
    const OTHER: u32 = 1000;

    #[test]
    fn a_key_is_its_owners_or_roots_and_a_groups() {
        for (mode, owner, uid, remedy) in [
            (0o600, RELAY, RELAY, None),
            (0o400, RELAY, RELAY, None),
            (0o700, RELAY, RELAY, None),
            (0o640, RELAY, RELAY, Some("chmod 600")),
            (0o604, RELAY, RELAY, Some("chmod 600")),
            // Debian's ssl-cert, Kubernetes' fsGroup, an ACL (its mask is the group's mode).
            (0o640, ROOT, RELAY, None),
            (0o440, ROOT, RELAY, None),
            (0o440, ROOT, ROOT, None),
            (0o600, ROOT, ROOT, None),
            // Docker's secrets.
            (0o444, ROOT, RELAY, Some("chmod 640")),
            (0o644, ROOT, ROOT, Some("chmod 600")),
            (0o660, ROOT, RELAY, Some("chmod 640")),
            // Another user could replace it.
            (0o600, OTHER, ROOT, Some("chown 0")),
            (0o644, OTHER, RELAY, Some("chown 998")),
        ] {
            let found = check(mode, owner, uid);
            assert_eq!(
                found.as_ref().map(|it| it.remedy.as_str()),
                remedy,
                "{mode:o} {owner} {uid}"
            );
        }
    }

    #[test]
    fn what_systemd_hands_over_lies_in_its_directory() {
        let directory = std::env::temp_dir().join(format!("relay-key-{}", std::process::id()));
        let (inside, outside) = (directory.join("credentials"), directory.join("key.pem"));
        fs::create_dir_all(&inside).unwrap();
        fs::write(&outside, "").unwrap();
        fs::write(inside.join("key.pem"), "").unwrap();
        assert!(lies_in(&inside.join("key.pem"), &inside));
        assert!(!lies_in(&inside.join("../key.pem"), &inside));
        assert!(!lies_in(&outside, &inside));
        assert!(!lies_in(&inside.join("key.pem"), &directory.join("absent")));
        fs::remove_dir_all(&directory).unwrap();
    }
}

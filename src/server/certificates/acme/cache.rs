//! Account key and certificate on disk, where they survive a restart.
//!
//! Owns the directory and that nobody else looks into it. Knows no authority but by the
//! name of its directory: what one has issued is no other's.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

use crate::config::Acme;

/// The directory and its two files.
#[derive(Clone, Debug)]
pub(in crate::server) struct Cache {
    directory: PathBuf,
    account: PathBuf,
    certificate: PathBuf,
}

impl Cache {
    /// Where `acme` says. Looks at nothing.
    pub(in crate::server) fn new(acme: &Acme) -> Self {
        let authority = digest(&SHA256, acme.directory.as_bytes());
        let authority = HEXLOWER.encode(&authority.as_ref()[..8]);
        Self {
            directory: acme.cache.clone(),
            account: acme.cache.join(format!("account-{authority}.pem")),
            certificate: acme.cache.join(format!("{}-{authority}.pem", acme.domain)),
        }
    }

    /// Checks the directory, if it is there: mode 0700, which it is given when it is
    /// ours.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub(in crate::server) fn check(&self) -> Result<(), String> {
        let path = self.directory.display();
        let found = match fs::metadata(&self.directory) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(format!("{path}: {error}")),
        };
        if !found.is_dir() {
            return Err(format!("{path}: is not a directory"));
        }
        let mode = found.mode() & 0o7777;
        if mode & 0o077 == 0 {
            return Ok(());
        }
        if found.uid() == rustix::process::geteuid().as_raw() {
            fs::set_permissions(&self.directory, Permissions::from_mode(0o700))
                .map_err(|error| format!("{path}: {error}"))
        } else {
            Err(format!(
                "{path}: others than its owner may use it (mode {mode:04o}), and it is not ours;\n\
                 chmod 700 {path}, or give another --cert-cache"
            ))
        }
    }

    /// Makes the directory, unless it is there.
    ///
    /// # Errors
    /// Those of the system, with the path.
    pub(in crate::server) fn create(&self) -> io::Result<()> {
        let named = |error| io::Error::other(format!("{}: {error}", self.directory.display()));
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(named)
    }

    /// The account key; `None`: there is none yet.
    pub(super) fn account(&self) -> io::Result<Option<Vec<u8>>> {
        read(&self.account)
    }

    /// The certificate chain with its key in one file, so that they fit.
    pub(in crate::server) fn certificate(&self) -> io::Result<Option<Vec<u8>>> {
        read(&self.certificate)
    }

    pub(super) fn keep_account(&self, pem: &str) -> io::Result<()> {
        write(&self.account, pem)
    }

    pub(super) fn keep_certificate(&self, pem: &str) -> io::Result<()> {
        write(&self.certificate, pem)
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// All of it or nothing, even if the machine stops meanwhile.
fn write(path: &Path, content: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    // One that was left behind may have another mode.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(name: &str, directory: &str) -> Cache {
        let name = format!("pyrycode-relay-cache-{}-{name}", std::process::id());
        let cache = std::env::temp_dir().join(name).join("certs");
        Cache::new(&Acme {
            domain: "relay.example".into(),
            cache,
            directory: directory.into(),
            ca: None,
        })
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn remove(cache: &Cache) {
        fs::remove_dir_all(cache.directory.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_was_kept_is_there_for_the_owner_and_for_its_authority_only() {
        let kept = cache("kept", "https://ca.example/a");
        assert_eq!(kept.check(), Ok(()));
        kept.create().unwrap();
        kept.create().unwrap();
        assert_eq!(mode(&kept.directory), 0o700);
        assert!(kept.account().unwrap().is_none() && kept.certificate().unwrap().is_none());
        kept.keep_account("account").unwrap();
        kept.keep_certificate("old").unwrap();
        fs::write(kept.certificate.with_extension("new"), "left behind").unwrap();
        kept.keep_certificate("new").unwrap();
        assert_eq!(kept.account().unwrap().unwrap(), b"account");
        assert_eq!(kept.certificate().unwrap().unwrap(), b"new");
        assert_eq!([mode(&kept.account), mode(&kept.certificate)], [0o600; 2]);
        assert_eq!(fs::read_dir(&kept.directory).unwrap().count(), 2);
        let other = cache("kept", "https://ca.example/b");
        assert!(other.account().unwrap().is_none() && other.certificate().unwrap().is_none());
        remove(&kept);
    }

    #[test]
    fn a_directory_of_ours_is_tightened_and_what_is_none_is_refused() {
        let loose = cache("loose", "https://ca.example/a");
        loose.create().unwrap();
        fs::set_permissions(&loose.directory, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(loose.check(), Ok(()));
        assert_eq!(mode(&loose.directory), 0o700);
        fs::remove_dir(&loose.directory).unwrap();
        fs::write(&loose.directory, "").unwrap();
        assert!(loose.check().unwrap_err().ends_with("is not a directory"));
        remove(&loose);
        // The tests may run as root, to whom nothing of this is another's.
        if rustix::process::geteuid().as_raw() != 0 {
            let mut others = loose;
            others.directory = "/".into();
            assert!(others.check().unwrap_err().contains("chmod 700 /"));
        }
    }
}

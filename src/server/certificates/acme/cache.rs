//! Cache: account key and certificate on disk, kept across restarts.
//!
//! Owns the names and the format of the files. They are those of Go's autocert
//! (golang.org/x/crypto/acme/autocert, `DirCache`), so that the Go relay and this one can
//! take turns on one directory: `acme_account+key` holds the account key, and a file named
//! after the domain holds the certificate's key followed by its chain, all in PEM. Knows an
//! authority only by the URL of its directory.
//!
//! 1. A certificate issued by another authority than the configured one is not served: the
//!    notes record the issuer of the certificate that this program wrote. A certificate
//!    without a note was written by the Go relay and is served.
//! 2. An account key that cannot be parsed is renamed, not overwritten.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::challenge::Method;
use super::directory::{Directory, Found};
use crate::config::Acme;
use crate::server::certificates::certificate::Certificate;

const ACCOUNT: &str = "acme_account+key";
/// The name that old versions of autocert used.
const ACCOUNT_LEGACY: &str = "acme_account.key";
const NOTES: &str = "pyrycode-relay.json";

/// Facts that the next start needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Notes {
    /// The inode of the directory, if the relay created it: a copy has another inode.
    made_directory: Option<u64>,
    /// SHA-256 of the leaf that was stored last.
    certificate: Option<String>,
    /// The directory URL of the authority that issued it.
    authority: Option<String>,
    /// The challenge that worked last.
    challenge: Option<Method>,
}

/// The cache.
#[derive(Clone, Debug)]
pub(in crate::server) struct Cache {
    directory: Directory,
    domain: String,
    /// The URL of the authority's directory.
    authority: String,
}

impl Cache {
    /// A cache in the directory that `acme` names. Does not access it.
    pub(in crate::server) fn new(acme: &Acme) -> Self {
        Self {
            directory: Directory::new(acme.cache.clone()),
            domain: acme.domain.clone(),
            authority: acme.directory.clone(),
        }
    }

    /// Checks the directory, if it exists, without changing anything.
    ///
    /// # Errors
    /// Describes what is wrong with it and the remedy.
    pub(in crate::server) fn check(&self) -> Result<(), String> {
        match self.directory.check()? {
            Found::TooOpen(mode) if !self.is_made_by_us() => Err(self.directory.refusal(mode)),
            _ => Ok(()),
        }
    }

    /// Checks, without writing, whether a certificate could be stored.
    ///
    /// # Errors
    /// The reason why not, with the path.
    pub(in crate::server) fn check_writable(&self) -> Result<(), String> {
        self.directory.check_writable()
    }

    /// Creates the directory unless it exists, and removes other users' permissions from a
    /// directory that the relay created.
    ///
    /// # Errors
    /// Those of the system, with the path.
    pub(in crate::server) fn create(&self) -> io::Result<()> {
        if self.directory.create()? {
            let notes = Notes { made_directory: self.directory.inode(), ..self.notes() };
            return self.keep_notes(&notes);
        }
        match self.directory.check().map_err(io::Error::other)? {
            Found::TooOpen(mode) if self.is_made_by_us() => self.directory.tighten(mode),
            _ => Ok(()),
        }
    }

    /// Writes a trial file: orders count against the authority's rate limits, and a
    /// certificate that cannot be stored is lost when the process ends.
    ///
    /// # Errors
    /// Those of the system, with the path.
    pub(super) fn try_write(&self) -> io::Result<()> {
        self.directory.try_write()
    }

    fn is_made_by_us(&self) -> bool {
        let made = self.notes().made_directory;
        made.is_some() && made == self.directory.inode()
    }

    /// The account key in PEM, with the name of its file; `None`: not created yet.
    pub(super) fn account(&self) -> io::Result<Option<(String, Vec<u8>)>> {
        let own = format!("account-{}.pem", self.authority_digest());
        for name in [ACCOUNT, ACCOUNT_LEGACY, &own] {
            if let Some(pem) = self.directory.read(name)? {
                return Ok(Some((name.to_owned(), pem)));
            }
        }
        Ok(None)
    }

    pub(super) fn keep_account(&self, pem: &str) -> io::Result<()> {
        self.directory.write(ACCOUNT, pem)
    }

    /// Renames a file that cannot be parsed, and returns its new path.
    pub(super) fn put_aside(&self, name: &str) -> io::Result<PathBuf> {
        self.directory.put_aside(name)
    }

    /// The certificate to serve at `now`, since 1970: a valid one, preferring EC over the
    /// RSA one that autocert keeps for clients without EC support; if none is valid, the one
    /// that expires last.
    ///
    /// # Errors
    /// Those of the system, with the path.
    pub(in crate::server) fn certificate(&self, now: Duration) -> io::Result<Option<Certificate>> {
        let notes = self.notes();
        // The third name is this program's own, from versions that do not share autocert's
        // names.
        let names = [
            self.domain.clone(),
            format!("{}+rsa", self.domain),
            format!("{}-{}.pem", self.domain, self.authority_digest()),
        ];
        let mut best: Option<Certificate> = None;
        for name in names {
            let Some(pem) = self.directory.read(&name)? else { continue };
            // A damaged file is skipped, and its certificate fetched again.
            let Ok(certificate) = Certificate::from_pem(&pem, &pem) else { continue };
            let is_anothers = notes.certificate.is_some()
                && notes.certificate == fingerprint(&pem)
                && notes.authority.as_ref() != Some(&self.authority);
            if is_anothers || !certificate.is_for(&self.domain) {
                continue;
            }
            let rank =
                |it: &Certificate| (it.not_before <= now && now < it.not_after, it.not_after);
            let is_valid = |it: &Certificate| rank(it).0;
            if best.as_ref().is_none_or(|best| !is_valid(best) && rank(&certificate) > rank(best)) {
                best = Some(certificate);
            }
        }
        Ok(best)
    }

    /// Stores a certificate: its key and its chain, both in PEM.
    pub(super) fn keep_certificate(&self, key: &str, chain: &[u8]) -> io::Result<()> {
        // autocert rejects a file with text between or after the blocks, which a chain may
        // contain.
        let blocks = CertificateDer::pem_slice_iter(chain).filter_map(Result::ok);
        let chain: String = blocks.map(|block| pem_block(&block)).collect();
        let notes = Notes {
            certificate: fingerprint(chain.as_bytes()),
            authority: Some(self.authority.clone()),
            ..self.notes()
        };
        // The note of the issuer comes first: a certificate without one would be taken for
        // the Go relay's.
        self.keep_notes(&notes)?;
        self.directory.write(&self.domain, &format!("{}\n{chain}", key.trim()))
    }

    /// The challenge that worked last.
    pub(super) fn challenge(&self) -> Option<Method> {
        self.notes().challenge
    }

    pub(super) fn keep_challenge(&self, method: Method) -> io::Result<()> {
        self.keep_notes(&Notes { challenge: Some(method), ..self.notes() })
    }

    /// The notes; empty if they cannot be read.
    fn notes(&self) -> Notes {
        let read = self.directory.read(NOTES).ok().flatten();
        read.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn keep_notes(&self, notes: &Notes) -> io::Result<()> {
        if *notes == self.notes() {
            return Ok(());
        }
        self.directory.write(NOTES, &serde_json::to_string(notes).map_err(io::Error::other)?)
    }

    fn authority_digest(&self) -> String {
        HEXLOWER.encode(&digest(&SHA256, self.authority.as_bytes()).as_ref()[..8])
    }
}

/// SHA-256 of the first certificate, in hex.
fn fingerprint(pem: &[u8]) -> Option<String> {
    let leaf = CertificateDer::from_pem_slice(pem).ok()?;
    Some(HEXLOWER.encode(digest(&SHA256, &leaf).as_ref()))
}

/// A PEM block in lines of 64 characters (RFC 7468 §2).
fn pem_block(der: &[u8]) -> String {
    let mut block = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in BASE64.encode(der).as_bytes().chunks(64) {
        block.extend(line.iter().map(|&byte| char::from(byte)));
        block.push('\n');
    }
    block + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn cache(name: &str, authority: &str) -> (Cache, PathBuf) {
        let name = format!("pyrycode-relay-cache-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name).join("certs");
        let cache = Cache::new(&Acme {
            domain: "relay.example".into(),
            cache: path.clone(),
            directory: authority.into(),
            ca: None,
            account: None,
        });
        (cache, path)
    }

    fn remove(path: &Path) {
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    /// Key and chain in PEM, valid from and until these seconds, counted from [`NOW`].
    fn pair(name: &str, from: i64, until: i64) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        let at = |seconds: i64| {
            let since = std::time::SystemTime::UNIX_EPOCH + NOW;
            let offset = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 { since - offset } else { since + offset }
        };
        params.not_before = at(from).into();
        params.not_after = at(until).into();
        let key = KeyPair::generate().unwrap();
        (key.serialize_pem(), params.self_signed(&key).unwrap().pem())
    }

    fn served(cache: &Cache) -> Option<i64> {
        let found = cache.certificate(NOW).unwrap()?;
        Some(found.not_after.as_secs() as i64 - NOW.as_secs() as i64)
    }

    #[test]
    fn files_are_named_and_formed_as_autocert_does() {
        let (cache, path) = cache("form", "https://ca.example/a");
        cache.check().unwrap();
        assert!(!path.exists());
        cache.create().unwrap();
        let (key, chain) = pair("relay.example", -1, 100);
        let (_, other) = pair("ca", -1, 100);
        let scattered = format!("# a comment\n{chain}\r\n\r\n{other}\n\n");
        cache.keep_certificate(&key, scattered.as_bytes()).unwrap();
        let kept = fs::read_to_string(path.join("relay.example")).unwrap();
        let lf = |text: &str| text.replace('\r', "");
        assert_eq!(kept, format!("{}{}{}", lf(&key), lf(&chain), lf(&other)));
        assert_eq!(served(&cache), Some(100));
        cache.keep_account("key").unwrap();
        assert_eq!(cache.account().unwrap().unwrap(), ("acme_account+key".into(), b"key".into()));
        for file in ["relay.example", "acme_account+key", "pyrycode-relay.json"] {
            assert_eq!(mode(&path.join(file)), 0o600, "{file}");
        }
        remove(&path);
    }

    #[test]
    fn of_several_the_valid_one_is_served_and_the_other_names_are_known() {
        let (cache, path) = cache("choice", "https://ca.example/a");
        cache.create().unwrap();
        let put = |name: &str, (key, chain): (String, String)| {
            fs::write(path.join(name), key + &chain).unwrap();
        };
        put("relay.example+rsa", pair("relay.example", -1, 200));
        assert_eq!(served(&cache), Some(200));
        put("relay.example", pair("relay.example", -1, 100));
        assert_eq!(served(&cache), Some(100), "EC first");
        put("relay.example", pair("relay.example", -9, -3));
        assert_eq!(served(&cache), Some(200), "rather than an expired one");
        put("relay.example+rsa", pair("relay.example", -9, -5));
        assert_eq!(served(&cache), Some(-3), "none is valid");
        let digest = cache.authority_digest();
        put(&format!("relay.example-{digest}.pem"), pair("relay.example", -1, 50));
        assert_eq!(served(&cache), Some(50));
        put("relay.example", pair("other.example", -1, 100));
        assert_eq!(served(&cache), Some(50), "for another name");
        fs::write(path.join("relay.example"), "damaged").unwrap();
        assert_eq!(served(&cache), Some(50));
        fs::write(path.join(format!("account-{digest}.pem")), "own").unwrap();
        assert_eq!(cache.account().unwrap().unwrap().1, b"own");
        fs::write(path.join("acme_account.key"), "legacy").unwrap();
        assert_eq!(cache.account().unwrap().unwrap().1, b"legacy");
        let aside = cache.put_aside("acme_account.key").unwrap();
        assert_eq!(fs::read(aside).unwrap(), b"legacy");
        assert_eq!(cache.account().unwrap().unwrap().1, b"own");
        remove(&path);
    }

    #[test]
    fn what_one_authority_issued_is_no_others_but_what_go_wrote_is_anybodys() {
        let (staging, path) = cache("authority", "https://ca.example/staging");
        staging.create().unwrap();
        let (key, chain) = pair("relay.example", -1, 100);
        staging.keep_certificate(&key, chain.as_bytes()).unwrap();
        let (production, _) = cache("authority", "https://ca.example/production");
        assert_eq!((served(&staging), served(&production)), (Some(100), None));
        let (key, chain) = pair("relay.example", -1, 300);
        fs::write(path.join("relay.example"), key + &chain).unwrap();
        assert_eq!((served(&staging), served(&production)), (Some(300), Some(300)));
        remove(&path);
    }

    #[test]
    fn only_what_the_relay_made_is_tightened() {
        let (cache, path) = cache("tighten", "https://ca.example/a");
        let open = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        cache.create().unwrap();
        open(0o755);
        cache.check().unwrap();
        assert_eq!(mode(&path), 0o755, "a check changes nothing");
        cache.create().unwrap();
        assert_eq!(mode(&path), 0o700);
        // A copy, notes and all, is not what the relay made.
        let copy = path.with_extension("copy");
        fs::create_dir(&copy).unwrap();
        fs::copy(path.join(NOTES), copy.join(NOTES)).unwrap();
        fs::remove_dir_all(&path).unwrap();
        fs::rename(&copy, &path).unwrap();
        open(0o755);
        assert!(cache.check().unwrap_err().contains("chmod 700"));
        cache.create().unwrap();
        assert_eq!(mode(&path), 0o755);
        remove(&path);
    }

    #[test]
    fn notes_keep_what_the_others_say() {
        let (cache, path) = cache("notes", "https://ca.example/a");
        cache.create().unwrap();
        cache.keep_challenge(Method::Http).unwrap();
        let (key, chain) = pair("relay.example", -1, 100);
        cache.keep_certificate(&key, chain.as_bytes()).unwrap();
        assert_eq!(cache.challenge(), Some(Method::Http));
        assert!(cache.is_made_by_us());
        fs::write(path.join(NOTES), "damaged").unwrap();
        assert_eq!(cache.challenge(), None);
        assert_eq!(served(&cache), Some(100));
        remove(&path);
    }
}

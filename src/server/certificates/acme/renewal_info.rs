//! Renewal information: the window in which an authority wants a certificate to be renewed
//! (ARI, RFC 9773).
//!
//! Owns the certificate identifier and the parsing of the reply. Pure: makes no call, and
//! takes random numbers as arguments.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::AuthorityKeyIdentifier;

/// The suggested window; times since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) start: Duration,
    pub(super) end: Duration,
}

impl Window {
    /// Parses the authority's reply; `None`: it is malformed, or the window's end is not
    /// after its start (RFC 9773 §4.2).
    pub(super) fn read(renewal_info: &Value) -> Option<Self> {
        let at = |member: &str| {
            let text = renewal_info["suggestedWindow"][member].as_str()?;
            let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
            // A time before 1970 lies in the past like 1970 itself.
            Some(Duration::from_secs(at.unix_timestamp().try_into().unwrap_or(0)))
        };
        let window = Self { start: at("start")?, end: at("end")? };
        (window.start < window.end).then_some(window)
    }

    /// A random time in the window, so that clients do not renew all at once (RFC 9773 §4.2).
    pub(super) fn choose(&self, random: u64) -> Duration {
        self.start + (self.end - self.start).mul_f64(random as f64 / u64::MAX as f64)
    }
}

/// The certificate's identifier (RFC 9773 §4.1); `None`: the certificate does not identify
/// the key that signed it.
pub(super) fn certificate_id(leaf: &[u8]) -> Option<String> {
    let leaf = x509_cert::Certificate::from_der(leaf).ok()?;
    let leaf = leaf.tbs_certificate();
    let (_, authority) = leaf.get_extension::<AuthorityKeyIdentifier>().ok()??;
    let key = authority.key_identifier?;
    let [key, serial] =
        [key.as_bytes(), leaf.serial_number().as_bytes()].map(|part| BASE64URL_NOPAD.encode(part));
    Some(format!("{key}.{serial}"))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use serde_json::json;

    use super::*;

    fn window(start: &str, end: &str) -> Option<Window> {
        Window::read(&json!({ "suggestedWindow": { "start": start, "end": end } }))
    }

    #[test]
    fn a_window_is_read_however_rfc_3339_lets_it_be_written() {
        let expected = Window {
            start: Duration::from_secs(1_735_689_600),
            end: Duration::from_secs(1_735_776_000),
        };
        for (start, end) in [
            ("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z"),
            ("2025-01-01T00:00:00.123456789Z", "2025-01-02t00:00:00z"),
            ("2025-01-01T02:00:00+02:00", "2025-01-01T19:00:00-05:00"),
        ] {
            assert_eq!(window(start, end), Some(expected), "{start} {end}");
        }
        let past = window("1969-01-01T00:00:00Z", "1971-01-01T00:00:00Z").unwrap();
        assert_eq!(past.start, Duration::ZERO);
        for (start, end) in [
            ("2025-01-02T00:00:00Z", "2025-01-01T00:00:00Z"),
            ("2025-01-01T00:00:00Z", "2025-01-01T00:00:00Z"),
            ("soon", "later"),
            ("", ""),
        ] {
            assert_eq!(window(start, end), None, "{start} {end}");
        }
        assert_eq!(Window::read(&Value::Null), None);
    }

    #[test]
    fn the_time_that_is_chosen_lies_in_the_window() {
        let window = Window { start: Duration::from_secs(100), end: Duration::from_secs(200) };
        let seconds = |random| window.choose(random).as_secs();
        assert_eq!([0, u64::MAX / 2, u64::MAX].map(seconds), [100, 150, 200]);
    }

    #[test]
    fn a_certificate_is_called_as_in_rfc_9773() {
        // Its appendix A.
        let pem = "-----BEGIN CERTIFICATE-----\n\
            MIIBQzCB66ADAgECAgUAh2VDITAKBggqhkjOPQQDAjAVMRMwEQYDVQQDEwpFeGFt\n\
            cGxlIENBMCIYDzAwMDEwMTAxMDAwMDAwWhgPMDAwMTAxMDEwMDAwMDBaMBYxFDAS\n\
            BgNVBAMTC2V4YW1wbGUuY29tMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEeBZu\n\
            7cbpAYNXZLbbh8rNIzuOoqOOtmxA1v7cRm//AwyMwWxyHz4zfwmBhcSrf47NUAFf\n\
            qzLQ2PPQxdTXREYEnKMjMCEwHwYDVR0jBBgwFoAUaYhba4dGQEHhs3uEe6CuLN4B\n\
            yNQwCgYIKoZIzj0EAwIDRwAwRAIge09+S5TZAlw5tgtiVvuERV6cT4mfutXIlwTb\n\
            +FYN/8oCIClDsqBklhB9KAelFiYt9+6FDj3z4KGVelYM5MdsO3pK\n\
            -----END CERTIFICATE-----\n";
        let mut leaf = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        // Its validity begins in the year 1, before the library's calendar does.
        let year = b"\x18\x0f00010101000000Z";
        while let Some(at) = leaf.windows(year.len()).position(|it| it == year) {
            leaf[at + 2..at + 6].copy_from_slice(b"2001");
        }
        let id = certificate_id(&leaf);
        assert_eq!(id.as_deref(), Some("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"));
        assert_eq!(certificate_id(b"nothing"), None);
    }
}

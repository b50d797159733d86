//! What is read from PEM files, and what is refused in which words. Files that OpenSSL
//! makes are tests/interop/tls.py's.

use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::*;

fn pair() -> (String, String) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["relay".into()]).unwrap();
    (cert.pem(), signing_key.serialize_pem())
}

fn count(file: &str) -> Result<usize, String> {
    certificates(file.as_bytes()).map(|it| it.len())
}

/// Without its last line end.
fn unended(pem: &str) -> &str {
    pem.trim_end()
}

#[test]
fn what_tools_write_is_read() {
    let (a, key_pem) = pair();
    let (b, _) = pair();
    let bom = '\u{feff}';
    let ec = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    for file in [
        format!("{a}{b}"),
        format!("{bom}{a}{bom}{b}"),
        format!("{}\n\n{}", unended(&a), unended(&b)),
        format!("{a}{b}").replace('\n', "\r\n"),
        format!("{a}{b}").replace("\r\n", "\n").replace('\n', "\r"),
        format!("{a}{b}").replace("-----\n", "-----  \t\n"),
        format!("subject=CN = relay\nissuer=-- END of it\n{a}\nsecond:\n{b}{key_pem}"),
        format!("{ec}{key_pem}{a}{b}"),
    ] {
        assert_eq!(count(&file), Ok(2), "{file:?}");
    }
    let latin1 = [b"caf\xe9\n", a.as_bytes()].concat();
    assert_eq!(certificates(&latin1).map(|it| it[0].line), Ok(2));
    for file in [key_pem.clone(), format!("{bom}{key_pem}"), format!("{ec}{a}{key_pem}{b}")] {
        assert!(key(file.as_bytes()).is_ok(), "{file:?}");
    }
}

#[test]
fn a_block_that_is_not_understood_is_refused_with_its_line() {
    let (a, key_pem) = pair();
    let (b, _) = pair();
    let end = a.lines().count();
    let relabelled = |label: &str| format!("{a}{}", b.replace("CERTIFICATE", label));
    let second = format!("line {}: ", end + 1);
    let lowered = format!("{a}{}", b.replace("BEGIN", "begin"));
    let short = format!("{a}{}", b.replace("-----BEGIN", "----BEGIN"));
    for (file, line, what) in [
        (format!("{}{b}", unended(&a)), format!("line {end}: "), "two blocks are glued together"),
        (relabelled("TRUSTED CERTIFICATE"), second.clone(), "openssl x509 -in FILE -out NEW"),
        (relabelled("X509 CERTIFICATE"), second.clone(), "is obsolete"),
        (relabelled("PUBLIC KEY"), second.clone(), "\"PUBLIC KEY\" is no certificate"),
        (lowered, second.clone(), "five dashes"),
        (short, second.clone(), "five dashes"),
        (format!("{a}x {b}"), second.clone(), "five dashes"),
        (format!("{a}{}", &b[..b.len() / 2]), second.clone(), "its END line is missing"),
        (
            format!("{}\n{b}", &a[..100]),
            "line 1: ".into(),
            "is cut off: the next one begins in line",
        ),
        (
            b.replace("-----END CERTIFICATE", "-----END PRIVATE KEY"),
            format!("line {end}: "),
            "the label is not the one with which the block began in line 1",
        ),
        (format!("{a}-----END CERTIFICATE-----\n"), second.clone(), "that did not begin"),
        (format!("{a}{}", b.replacen("MII", "M!I", 1)), second.clone(), "is not base64"),
        (
            format!("{a}-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"),
            second.clone(),
            "not an X.509 certificate",
        ),
    ] {
        let refused = count(&file).expect_err(what);
        assert!(refused.starts_with(&line) && refused.contains(what), "{line}{what}: {refused}");
        assert!(refused.lines().count() <= 2, "{refused}");
    }
    assert_eq!(count(&key_pem), Err("no CERTIFICATE block in it".into()));
    assert_eq!(count("no certificate"), Err("no CERTIFICATE block in it".into()));
}

#[test]
fn other_formats_are_named() {
    let (a, key_pem) = pair();
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let der = certificates(a.as_bytes()).unwrap().remove(0).der;
    for (file, expected) in [
        (utf16(&a), "is text in UTF-16; save it as UTF-8"),
        (utf16(&format!("\u{feff}{a}")), "is text in UTF-16; save it as UTF-8"),
        (der.to_vec(), "is DER, not PEM"),
        (key(key_pem.as_bytes()).unwrap().secret_der().to_vec(), "is DER, not PEM"),
        (b"\x30\x82\x0a\x0b\x02\x01\x03\x30\x82\0\0\0\0\0\0\0".to_vec(), "is PKCS#12, not PEM"),
        (Vec::new(), "is empty"),
    ] {
        for refused in [certificates(&file).map(drop), key(&file).map(drop)] {
            let refused = refused.expect_err(expected);
            assert!(refused.starts_with(expected), "{refused}");
        }
    }
}

#[test]
fn a_key_is_one_and_needs_no_passphrase() {
    let (a, key_pem) = pair();
    let (_, other) = pair();
    let encrypted = key_pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let traditional = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\
                       DEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    for (file, expected) in [
        (encrypted.as_str(), "line 1: the key is encrypted"),
        (traditional, "line 1: the key is encrypted"),
        (&format!("{key_pem}{other}"), "holds more than one private key (lines 1 and "),
        (&a, "no PRIVATE KEY block in it"),
    ] {
        let refused = key(file.as_bytes()).expect_err(expected);
        assert!(refused.starts_with(expected), "{refused}");
    }
}

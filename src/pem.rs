//! PEM: certificates and private keys in PEM files (RFC 7468).
//!
//! Owns how a file is split into blocks, and the error texts. Must not know flags or file
//! names. rustls-pki-types decodes the blocks; used alone it skips blocks that it does not
//! recognise, so that a chain could be served without its intermediate.
//!
//! 1. Every line that begins or ends a block is parsed, or refused with its line number.
//! 2. An error repeats nothing of a block but its label.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::der::Decode;

#[cfg(test)]
mod tests;

/// A certificate and the line of the file in which its block begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumberedCertificate {
    /// The line number; the first line of a file is 1.
    pub line: usize,
    /// The content of the block.
    pub der: CertificateDer<'static>,
}

/// The certificates of a file, at least one. Keys and parameters in the file are skipped.
///
/// # Errors
/// Describes what is wrong with the file, for the operator.
pub fn certificates(file: &[u8]) -> Result<Vec<NumberedCertificate>, String> {
    let mut certificates = Vec::new();
    for Block { line, text, .. } in blocks(file)?.iter().filter(|it| it.kind == Kind::Certificate) {
        let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| not_base64(*line))?;
        x509_cert::Certificate::from_der(&der)
            .map_err(|error| format!("line {line}: not an X.509 certificate: {error}"))?;
        certificates.push(NumberedCertificate { line: *line, der });
    }
    if certificates.is_empty() {
        return Err("no CERTIFICATE block in it".into());
    }
    Ok(certificates)
}

/// The one private key of a file. Certificates and parameters in the file are skipped.
///
/// # Errors
/// Describes what is wrong with the file, for the operator.
pub fn key(file: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let mut blocks = blocks(file)?;
    blocks.retain(|block| matches!(block.kind, Kind::Key | Kind::EncryptedKey));
    match &blocks[..] {
        [] => Err("no PRIVATE KEY block in it".into()),
        [Block { line, kind: Kind::EncryptedKey, .. }] => Err(format!(
            "line {line}: the key is encrypted; remove the passphrase:\n\
             openssl pkey -in FILE -out NEW"
        )),
        [Block { line, text, .. }] => {
            PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| not_base64(*line))
        }
        [first, second, ..] => Err(format!(
            "holds more than one private key (lines {} and {}); keep one",
            first.line, second.line
        )),
    }
}

fn not_base64(line: usize) -> String {
    format!("line {line}: the block that begins here is not base64")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Certificate,
    Key,
    EncryptedKey,
    /// Parameters of a curve or of Diffie-Hellman, which some tools write beside a key.
    Parameters,
}

#[derive(Debug)]
struct Block {
    /// The line in which the block begins.
    line: usize,
    kind: Kind,
    label: String,
    /// The whole block, one line feed after each line.
    text: String,
}

/// The role of a line.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Begin(&'a str),
    End(&'a str),
    /// A malformed boundary, or a line that contains one.
    Broken,
    Text,
}

fn blocks(file: &[u8]) -> Result<Vec<Block>, String> {
    refuse_other_formats(file)?;
    // Text between blocks may have any encoding.
    let text = String::from_utf8_lossy(file).replace("\r\n", "\n");
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (index, line) in text.split(['\n', '\r']).enumerate() {
        let number = index + 1;
        // Concatenated files may each start with a byte order mark.
        let line = line.trim_start_matches('\u{feff}').trim();
        open = match (open.take(), classify(line)) {
            (_, Line::Broken) => return Err(broken(number, line)),
            (None, Line::Text) => None,
            (None, Line::Begin(label)) => Some(Block {
                line: number,
                kind: kind(label).map_err(|why| format!("line {number}: {why}"))?,
                label: label.into(),
                text: format!("{line}\n"),
            }),
            (None, Line::End(_)) => {
                return Err(format!("line {number}: a block ends here that did not begin"));
            }
            (Some(block), Line::Begin(_)) => {
                return Err(format!(
                    "line {}: the block that begins here is cut off: the next one begins in \
                     line {number}",
                    block.line
                ));
            }
            (Some(mut block), Line::Text) => {
                // RFC 1421 §4.6.1.1; OpenSSL's traditional key formats still use it.
                if line.starts_with("Proc-Type:") && line.contains("ENCRYPTED") {
                    block.kind = Kind::EncryptedKey;
                }
                block.text.push_str(line);
                block.text.push('\n');
                Some(block)
            }
            (Some(mut block), Line::End(label)) if label == block.label => {
                block.text.push_str(line);
                block.text.push('\n');
                blocks.push(block);
                None
            }
            (Some(block), Line::End(_)) => {
                return Err(format!(
                    "line {number}: the label is not the one with which the block began in line {}",
                    block.line
                ));
            }
        };
    }
    match open {
        Some(block) => Err(format!(
            "line {}: the block that begins here is cut off: its END line is missing",
            block.line
        )),
        None => Ok(blocks),
    }
}

fn classify(line: &str) -> Line<'_> {
    let label = |begin: &str| {
        let label = line.strip_prefix(begin)?.strip_suffix("-----")?;
        (!label.contains("--")).then_some(label)
    };
    if let Some(label) = label("-----BEGIN ") {
        return Line::Begin(label);
    }
    if let Some(label) = label("-----END ") {
        return Line::End(label);
    }
    let has_boundary = line.contains("-----BEGIN") || line.contains("-----END");
    // A boundary with a dash missing, or in lower case.
    let is_like_one = line.starts_with("--") && {
        let word = line.trim_start_matches('-').trim_start().to_ascii_uppercase();
        word.starts_with("BEGIN ") || word.starts_with("END ")
    };
    if has_boundary || is_like_one { Line::Broken } else { Line::Text }
}

fn broken(number: usize, line: &str) -> String {
    if line.contains("-----END") && line.contains("-----BEGIN") {
        format!(
            "line {number}: two blocks are glued together; a line must end between\n\
             -----END …----- and -----BEGIN …-----"
        )
    } else {
        format!(
            "line {number}: begins or ends a block, but is not -----BEGIN …----- or\n\
             -----END …----- alone, with five dashes on both sides"
        )
    }
}

fn kind(label: &str) -> Result<Kind, String> {
    Ok(match label {
        "CERTIFICATE" => Kind::Certificate,
        "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => Kind::Key,
        "ENCRYPTED PRIVATE KEY" => Kind::EncryptedKey,
        "EC PARAMETERS" | "DH PARAMETERS" => Kind::Parameters,
        "TRUSTED CERTIFICATE" => {
            return Err("TRUSTED CERTIFICATE is a format of OpenSSL's own; convert it:\n\
                        openssl x509 -in FILE -out NEW"
                .into());
        }
        "X509 CERTIFICATE" => {
            return Err("the label X509 CERTIFICATE is obsolete; write CERTIFICATE".into());
        }
        _ => {
            let label: String = label.chars().take(40).collect();
            return Err(format!(
                "{label:?} is no certificate and no private key; remove the block"
            ));
        }
    })
}

fn refuse_other_formats(file: &[u8]) -> Result<(), String> {
    let is_utf16 = file.starts_with(b"\xff\xfe")
        || file.starts_with(b"\xfe\xff")
        || file.windows(4).any(|it| it == b"-\0-\0");
    if is_utf16 {
        return Err("is text in UTF-16; save it as UTF-8".into());
    }
    match file {
        [] => Err("is empty".into()),
        // A DER SEQUENCE whose length takes more than one byte.
        [0x30, length, ..] if *length >= 0x80 => {
            // PKCS#12 begins with the version 3 (RFC 7292 §4).
            let is_pkcs12 =
                file.get(..16).is_some_and(|it| it.windows(3).any(|it| it == [2, 1, 3]));
            Err(if is_pkcs12 {
                "is PKCS#12, not PEM; convert it: openssl pkcs12 -in FILE -nodes -out NEW".into()
            } else {
                "is DER, not PEM; convert it: openssl x509 (or pkey) -inform der -in FILE -out NEW"
                    .into()
            })
        }
        _ => Ok(()),
    }
}

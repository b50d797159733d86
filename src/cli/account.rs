//! A Google service account's JSON key, as `PYRYCODE_RELAY_FCM_CREDENTIALS` holds it.
//!
//! Owns which fields are needed and what they look like. Whether the private key is
//! a key is the shell's to find out. No refusal repeats any of it.

use serde::Deserialize;

use super::flag::is_https_url;
use crate::config::ServiceAccount;

/// Google's are of 6 to 30 characters, older ones have a domain before a colon.
const PROJECT_ID_MAX: usize = 128;

/// The fields that matter, of some ten.
#[derive(Deserialize)]
struct Key {
    #[serde(rename = "type")]
    kind: Option<String>,
    project_id: Option<String>,
    private_key_id: Option<String>,
    private_key: Option<String>,
    client_email: Option<String>,
    token_uri: Option<String>,
}

/// Reads the JSON.
///
/// # Errors
/// What is wrong, for the operator.
pub(super) fn parse(json: &str) -> Result<ServiceAccount, &'static str> {
    // serde's own words would repeat a value of the wrong type, and it would take an
    // array for the fields in order.
    let key: Option<Key> =
        json.trim_ascii_start().strip_prefix('{').and_then(|_| serde_json::from_str(json).ok());
    let key = key.ok_or(
        "is not the JSON of a service account's key; set it to\n\
         the file's contents, not to its name",
    )?;
    if key.kind.as_deref() != Some("service_account") {
        return Err("type must be \"service_account\"; make a key for one in\n\
                    the Firebase console, project settings, service accounts");
    }
    let field = |value: Option<String>, is_good: fn(&str) -> bool, why| {
        value.filter(|value| is_good(value)).ok_or(why)
    };
    Ok(ServiceAccount {
        project_id: field(
            key.project_id,
            is_project_id,
            "project_id must be the name of a project: letters, digits and -._:",
        )?,
        client_email: field(
            key.client_email,
            is_email,
            "client_email must be the account's name, with an @ in it",
        )?,
        token_uri: field(
            key.token_uri,
            is_https_url,
            "token_uri must be an https URL without user, query or fragment",
        )?,
        private_key_id: key.private_key_id,
        private_key: field(
            key.private_key,
            |key| !key.is_empty(),
            "private_key must be an RSA key in PEM",
        )?,
    })
}

/// It becomes part of a URL's path.
fn is_project_id(text: &str) -> bool {
    text.len() <= PROJECT_ID_MAX
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte))
}

fn is_email(text: &str) -> bool {
    text.contains('@') && text.bytes().all(|byte| byte.is_ascii_graphic())
}

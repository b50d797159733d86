//! A Google service account's JSON key, as `PYRYCODE_RELAY_FCM_CREDENTIALS` holds it.
//!
//! Owns which fields are needed and what they look like. Whether the private key is
//! a key is the shell's to find out. No refusal repeats any of it.

use data_encoding::BASE64;
use serde::Deserialize;

use super::flag::is_https_url;
use crate::config::ServiceAccount;

/// Google's are of 6 to 30 characters, older ones have a domain before a colon.
const PROJECT_ID_MAX: usize = 128;

/// The project of a key that names none: the one that the apps belong to.
const PROJECT_ID: &str = "pyrycode-mobile";
/// Where Google gives access tokens, for a key that does not say.
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

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
pub(super) fn parse(json: &str) -> Result<ServiceAccount, String> {
    // serde would take an array for the fields in order.
    if !json.trim_ascii_start().starts_with('{') {
        return Err(not_an_object(json).into());
    }
    let key: Key = serde_json::from_str(json).map_err(|error| broken(&error))?;
    if key.kind.as_deref() != Some("service_account") {
        return Err("type must be \"service_account\"; make a key for one in\n\
                    the Firebase console, project settings, service accounts"
            .into());
    }
    let field = |value: Option<String>, is_good: fn(&str) -> bool, why| {
        value.filter(|value| is_good(value)).ok_or(why)
    };
    let private_key =
        field(key.private_key, |key| !key.is_empty(), "private_key must be an RSA key in PEM")?;
    if let Some(why) = mangled(&private_key) {
        return Err(format!("private_key: {why};\n{LINE_BREAKS}"));
    }
    Ok(ServiceAccount {
        project_id: field(
            key.project_id.or_else(|| Some(PROJECT_ID.into())),
            is_project_id,
            "project_id must be the name of a project: letters, digits and -._:",
        )?,
        client_email: field(
            key.client_email,
            is_email,
            "client_email must be the account's name, with an @ in it",
        )?,
        token_uri: field(
            key.token_uri.or_else(|| Some(TOKEN_URI.into())),
            is_https_url,
            "token_uri must be an https URL without user, query or fragment",
        )?,
        private_key_id: key.private_key_id,
        private_key,
    })
}

/// What a value is that does not begin as a key does.
fn not_an_object(text: &str) -> &'static str {
    let is_base64 = |text: &str| {
        let digits: String = text.split_ascii_whitespace().collect();
        let first = digits.get(..4).and_then(|first| BASE64.decode(first.as_bytes()).ok());
        first.is_some_and(|first| first.trim_ascii_start().starts_with(b"{"))
    };
    if text.starts_with('\u{feff}') {
        "begins with a byte order mark; save the key's file as UTF-8 without one"
    } else if text.starts_with(['\'', '"']) {
        "begins with a quote, which is part of the value here: docker's --env-file and\n\
         Compose's lists keep quotes; write the JSON without them"
    } else if is_base64(text) {
        "is in base64; set it to what `base64 -d` makes of that"
    } else if text.starts_with("AAAA") && text.contains(":APA91") {
        "is a legacy server key, which FCM takes no more; make a key for a service\n\
         account in the Firebase console, project settings, service accounts"
    } else {
        "is not the JSON of a service account's key; set it to\n\
         the file's contents, not to its name"
    }
}

/// Where the JSON breaks. serde's own words might repeat a value.
fn broken(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    if error.is_data() {
        return format!(
            "line {line}, column {column}: a field is there twice or its value has the\n\
             wrong type; set it to the unchanged contents of the key's file"
        );
    }
    // A line break within a string is the first thing of the next line to serde.
    let place = match column {
        0 => format!("the end of line {}", line.saturating_sub(1)),
        _ => format!("line {line}, column {column}"),
    };
    format!("the JSON breaks at {place};\n{LINE_BREAKS}")
}

/// The usual cause, and the way out.
const LINE_BREAKS: &str =
    "line breaks in private_key must be \\n; in an EnvironmentFile quote with '…'";

/// What has become of the line breaks of a private key that the JSON holds.
fn mangled(key: &str) -> Option<&'static str> {
    let (_, rest) = key.split_once("PRIVATE KEY-----")?;
    if rest.starts_with(['\n', '\r']) {
        None
    } else if rest.starts_with('\\') {
        Some("the backslashes before its line breaks are doubled")
    } else if rest.starts_with('n') {
        Some("the backslashes of its line breaks are lost")
    } else if rest.starts_with(' ') {
        Some("blanks have taken the place of its line breaks")
    } else {
        Some("it has no line breaks")
    }
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

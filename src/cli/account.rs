//! Service account key: the Google JSON key in `PYRYCODE_RELAY_FCM_CREDENTIALS`.
//!
//! Owns the required fields and their formats. Does not parse the private key; the server
//! does. No error repeats any part of the key.

use data_encoding::BASE64;
use serde::Deserialize;

use super::flag::is_https_url;
use crate::config::ServiceAccount;

/// Google's project IDs have 6 to 30 characters; older ones have a domain and a colon in front.
const PROJECT_ID_MAX: usize = 128;

/// The default project, which the mobile apps belong to.
const PROJECT_ID: &str = "pyrycode-mobile";
/// Google's token endpoint, the default for a key without `token_uri`.
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

/// The fields that the relay reads; a key has about ten.
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

/// Parses the JSON.
///
/// # Errors
/// The fault and the next step, for the operator.
pub(super) fn parse(json: &str) -> Result<ServiceAccount, String> {
    // serde would accept an array of the field values in order.
    if !json.trim_ascii_start().starts_with('{') {
        return Err(not_an_object(json).into());
    }
    let key: Key = serde_json::from_str(json).map_err(|error| broken(&error))?;
    if key.kind.as_deref() != Some("service_account") {
        return Err("type must be \"service_account\"; create a key for a service account in\n\
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
            "project_id must be a project ID: letters, digits and -._:",
        )?,
        client_email: field(
            key.client_email,
            is_email,
            "client_email must be the account's e-mail address",
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

/// The likely mistake behind a value that does not start with `{`.
fn not_an_object(text: &str) -> &'static str {
    let is_base64 = |text: &str| {
        let digits: String = text.split_ascii_whitespace().collect();
        let first = digits.get(..4).and_then(|first| BASE64.decode(first.as_bytes()).ok());
        first.is_some_and(|first| first.trim_ascii_start().starts_with(b"{"))
    };
    if text.starts_with('\u{feff}') {
        "begins with a byte order mark; save the key file as UTF-8 without one"
    } else if text.starts_with(['\'', '"']) {
        "begins with a quote, which is part of the value here: docker's --env-file and\n\
         Compose's lists keep quotes; write the JSON without them"
    } else if is_base64(text) {
        "is in base64; decode it with `base64 -d` and set it to the result"
    } else if text.starts_with("AAAA") && text.contains(":APA91") {
        "is a legacy server key, which FCM no longer accepts; create a key for a\n\
         service account in the Firebase console, project settings, service accounts"
    } else {
        "is not the JSON of a service account key; set it to\n\
         the contents of the key file, not to its name"
    }
}

/// The position of the first JSON error. serde's own message might repeat a value.
fn broken(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    if error.is_data() {
        return format!(
            "line {line}, column {column}: a field is duplicate or its value has the\n\
             wrong type; set the variable to the unchanged contents of the key file"
        );
    }
    // serde reports a line break within a string as column 0 of the next line.
    let place = match column {
        0 => format!("the end of line {}", line.saturating_sub(1)),
        _ => format!("line {line}, column {column}"),
    };
    format!("the JSON is invalid at {place};\n{LINE_BREAKS}")
}

/// The usual cause of invalid JSON, and its remedy.
const LINE_BREAKS: &str =
    "write line breaks in private_key as \\n; in an EnvironmentFile quote with '…'";

/// How the line breaks of the private key were damaged, if they were.
fn mangled(key: &str) -> Option<&'static str> {
    let (_, rest) = key.split_once("PRIVATE KEY-----")?;
    if rest.starts_with(['\n', '\r']) {
        None
    } else if rest.starts_with('\\') {
        Some("the backslashes before its line breaks are doubled")
    } else if rest.starts_with('n') {
        Some("the backslashes of its line breaks are lost")
    } else if rest.starts_with(' ') {
        Some("its line breaks were replaced by spaces")
    } else {
        Some("it has no line breaks")
    }
}

/// The project ID becomes part of a URL's path.
fn is_project_id(text: &str) -> bool {
    text.len() <= PROJECT_ID_MAX
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte))
}

fn is_email(text: &str) -> bool {
    text.contains('@') && text.bytes().all(|byte| byte.is_ascii_graphic())
}

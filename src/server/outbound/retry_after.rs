//! Retry-After: the header of a reply (RFC 9110 §10.2.3).
//!
//! Owns both of its forms: a number of seconds, and a date. The caller limits the wait.
//!
//! 1. A date is counted from the reply's own Date, so that a wrong clock on this machine
//!    neither shortens nor lengthens the wait; without a Date, from this machine's clock.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, HeaderName, RETRY_AFTER};

/// The wait that the reply asks for; `None`: the header is missing or malformed. A date in
/// the past is a wait of zero. `wall_time` is the time since 1970 at which the reply arrived.
pub(in crate::server) fn retry_after(headers: &HeaderMap, wall_time: Duration) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that overflows is a long wait all the same.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = date(headers, DATE).unwrap_or(SystemTime::UNIX_EPOCH + wall_time);
    Some(until.duration_since(now).unwrap_or_default())
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 §5.6.7.
    const NOW: Duration = Duration::from_secs(784_111_777);

    fn read(retry_after: &str, date: Option<&str>) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, retry_after.parse().expect("a header's value"));
        if let Some(date) = date {
            headers.insert(DATE, date.parse().expect("a header's value"));
        }
        super::retry_after(&headers, NOW).map(|wait| wait.as_secs())
    }

    #[test]
    fn seconds_are_read() {
        assert_eq!(retry_after(&HeaderMap::new(), NOW), None);
        for (value, seconds) in
            [("120", 120), ("0", 0), (" 7 ", 7), ("99999999999999999999999", u64::MAX)]
        {
            assert_eq!(read(value, None), Some(seconds), "{value:?}");
        }
    }

    #[test]
    fn all_three_forms_of_a_date_are_read() {
        for value in [
            "Sun, 06 Nov 1994 08:51:37 GMT",
            "Sunday, 06-Nov-94 08:51:37 GMT",
            "Sun Nov  6 08:51:37 1994",
        ] {
            assert_eq!(read(value, None), Some(120), "{value}");
        }
        assert_eq!(read("Sun, 06 Nov 1994 08:49:36 GMT", None), Some(0), "it has passed");
    }

    #[test]
    fn a_date_is_counted_from_the_date_of_the_reply() {
        let until = "Sun, 06 Nov 1994 10:00:00 GMT";
        assert_eq!(read(until, Some("Sun, 06 Nov 1994 09:59:50 GMT")), Some(10));
        assert_eq!(read(until, Some("yesterday")), Some(70 * 60 + 23));
    }

    #[test]
    fn what_is_neither_is_nothing() {
        for value in ["", "-1", "+1", "1.5", "1 s", "soon", "1994-11-06T08:51:37Z"] {
            assert_eq!(read(value, None), None, "{value:?}");
        }
    }
}

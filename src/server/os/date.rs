//! Date: the Date header of HTTP responses.
//!
//! Owns its format (RFC 9110, 5.6.7) and its refresh: once a second, however many responses
//! there are. Must not know responses.

use std::time::{Duration, UNIX_EPOCH};

use super::clock::wall_time;
use crate::protocol::response::Date;

/// The last second of the year 9999, since 1970, and the latest that the format can express.
const LAST: Duration = Duration::from_secs(253_402_300_799);

/// The date, refreshed each second.
#[derive(Debug, Default)]
pub(in crate::server) struct DateClock {
    /// The second of the last date; `None`: there was none yet.
    made_in: Option<u64>,
}

impl DateClock {
    /// The date of a new second; `None`: the previous date is still current.
    pub(in crate::server) fn turn(&mut self) -> Option<Date> {
        let second = wall_time().as_secs();
        (self.made_in.replace(second) != Some(second)).then(|| date(Duration::from_secs(second)))
    }
}

/// The date now.
pub(in crate::server) fn now() -> Date {
    date(wall_time())
}

fn date(since_epoch: Duration) -> Date {
    let text = httpdate::fmt_http_date(UNIX_EPOCH + since_epoch.min(LAST));
    Date::new(&text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_an_imf_fixdate() {
        // date -u -d @SECONDS '+%a, %d %b %Y %T GMT'
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (1_709_210_096, "Thu, 29 Feb 2024 12:34:56 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(date(Duration::from_secs(seconds)).as_str(), expected);
        }
    }

    #[test]
    fn it_is_made_once_a_second() {
        let mut clock = DateClock::default();
        assert!(clock.turn().is_some());
        let made_in = clock.made_in;
        let again = clock.turn();
        assert_eq!(again.is_some(), clock.made_in != made_in);
    }
}

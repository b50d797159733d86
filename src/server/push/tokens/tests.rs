//! Tokens: when an exchange starts, which wake makes it, and what the other wakes get.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::*;

const FAILURE: Failure = Failure { status: Some(400), cause: "refused" };

/// Wakes in sequence; each exchange grants the next letter as its token.
struct Wakes {
    tokens: Tokens,
    began: Instant,
    exchanges: usize,
    lifetime: u64,
    is_refusing: bool,
}

impl Wakes {
    fn new(lifetime: u64) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an instant to count from")]
        let began = Instant::now();
        Self { tokens: Tokens::default(), began, exchanges: 0, lifetime, is_refusing: false }
    }

    fn at(&self, seconds: u64) -> Instant {
        self.began + Duration::from_secs(seconds)
    }

    fn obtain(&mut self, seconds: u64) -> Result<Arc<AccessToken>, Failure> {
        let now = self.at(seconds);
        let Self { tokens, exchanges, lifetime, is_refusing, .. } = self;
        tokens.obtain(&|| now, || {
            *exchanges += 1;
            if *is_refusing {
                return Err(FAILURE);
            }
            let lifetime = Duration::from_secs(*lifetime);
            Ok(Grant { token: format!("token-{exchanges}"), lifetime })
        })
    }

    /// The number of the token, or why no token was had.
    fn number(&mut self, seconds: u64) -> Result<u32, Failure> {
        self.obtain(seconds).map(|token| token.reveal()["token-".len()..].parse().unwrap())
    }
}

#[test]
fn a_token_is_kept_and_renewed_before_its_end() {
    let mut wakes = Wakes::new(3600);
    for (at, number) in [(0, 1), (1, 1), (3299, 1), (3300, 2), (3301, 2), (6599, 2), (10_000, 3)] {
        assert_eq!(wakes.number(at), Ok(number), "at {at} s");
    }
}

#[test]
fn a_renewal_that_fails_leaves_the_old_token_until_its_end() {
    let mut wakes = Wakes::new(3600);
    assert_eq!(wakes.number(0), Ok(1));
    wakes.is_refusing = true;
    assert_eq!(wakes.number(3300), Ok(1));
    assert_eq!(wakes.number(3300), Ok(1));
    assert_eq!(wakes.exchanges, 2, "backed off");
    assert_eq!(wakes.number(3539), Ok(1));
    assert_eq!(wakes.number(3600), Err(FAILURE));
    wakes.is_refusing = false;
    assert_eq!(wakes.number(3700), Ok(5));
}

#[test]
fn of_a_short_life_shares_are_kept_back() {
    let mut wakes = Wakes::new(8);
    for (at, number) in [(0, 1), (3, 1), (4, 2), (7, 2)] {
        assert_eq!(wakes.number(at), Ok(number), "at {at} s");
    }
    wakes.is_refusing = true;
    assert_eq!(wakes.number(9), Ok(2));
    assert_eq!(wakes.number(10), Err(FAILURE));
}

#[test]
fn a_failed_exchange_is_backed_off_for_twice_as_long_each_time() {
    let mut wakes = Wakes::new(3600);
    wakes.is_refusing = true;
    let mut at = 0;
    for (exchanges, pause) in [1, 2, 4, 8, 16, 32, 64, 64, 64].into_iter().enumerate() {
        assert_eq!(wakes.number(at), Err(FAILURE));
        assert_eq!(wakes.number(at + pause - 1), Err(BACKING_OFF));
        assert_eq!(wakes.exchanges, exchanges + 1);
        at += pause;
    }
    wakes.is_refusing = false;
    assert!(wakes.number(at).is_ok());
    // Only a token that FCM accepts ends the back-off.
    wakes.tokens.accept();
    let token = wakes.obtain(at).unwrap();
    wakes.tokens.reject(&token, true, wakes.at(at));
    assert_eq!(wakes.number(at), Err(BACKING_OFF));
    assert!(wakes.number(at + 1).is_ok());
}

#[test]
fn a_refused_token_is_replaced_once_however_many_had_it() {
    let mut wakes = Wakes::new(3600);
    let first = wakes.obtain(0).unwrap();
    wakes.tokens.reject(&first, false, wakes.at(0));
    let second = wakes.obtain(0).unwrap();
    wakes.tokens.reject(&first, false, wakes.at(0));
    assert_eq!(wakes.number(0), Ok(2), "the refusal of the first is not the second's");
    // FCM refused both: the next exchange is delayed, however often the refusal is reported.
    wakes.tokens.reject(&second, true, wakes.at(0));
    wakes.tokens.reject(&second, true, wakes.at(0));
    assert_eq!(wakes.number(0), Err(BACKING_OFF));
    assert_eq!(wakes.number(1), Ok(3));
    let third = wakes.obtain(1).unwrap();
    wakes.tokens.reject(&third, true, wakes.at(1));
    assert_eq!(wakes.number(2), Err(BACKING_OFF), "a second time, so for 2 s");
    assert_eq!(wakes.number(3), Ok(4));
}

#[test]
fn one_exchange_at_a_time_and_all_who_wait_get_what_it_gave() {
    for is_refused in [false, true] {
        let wakes = Wakes::new(3600);
        let (tokens, now, exchanges) = (&wakes.tokens, wakes.began, AtomicUsize::new(0));
        let (begun, wait_for_begin) = mpsc::channel();
        let (go_on, wait_for_go) = mpsc::channel::<()>();
        let exchanges = &exchanges;
        thread::scope(|scope| {
            let first = scope.spawn(move || {
                tokens.obtain(&|| now, || {
                    exchanges.fetch_add(1, Ordering::SeqCst);
                    begun.send(()).unwrap();
                    wait_for_go.recv().unwrap();
                    if is_refused {
                        return Err(FAILURE);
                    }
                    Ok(Grant { token: "the one".into(), lifetime: Duration::from_secs(3600) })
                })
            });
            wait_for_begin.recv().unwrap();
            let others: Vec<_> = (0..31)
                .map(|_| {
                    scope.spawn(move || {
                        tokens.obtain(&|| now, || {
                            exchanges.fetch_add(1, Ordering::SeqCst);
                            Err(FAILURE)
                        })
                    })
                })
                .collect();
            go_on.send(()).unwrap();
            let first = first.join().unwrap();
            assert_eq!(first.is_err(), is_refused);
            for other in others {
                match other.join().unwrap() {
                    Ok(token) => assert!(Arc::ptr_eq(&token, first.as_ref().unwrap())),
                    Err(failure) => assert_eq!((failure, is_refused), (BACKING_OFF, true)),
                }
            }
        });
        assert_eq!(exchanges.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn a_grant_is_understood_or_refused_without_a_word_of_it() {
    let is_good = |status, body: &str| grant(status, body.as_bytes()).is_ok();
    let good = r#"{"access_token":"ya29.c","expires_in":3599,"token_type":"Bearer"}"#;
    assert!(is_good(200, good));
    assert!(!is_good(201, good) && !is_good(400, good) && !is_good(302, good));
    let longest = "t".repeat(TOKEN_MAX);
    assert!(is_good(200, &format!(r#"{{"access_token":"{longest}","expires_in":1}}"#)));
    for bad in [
        "",
        "{}",
        "[\"t\"]",
        r#"{"access_token":"t"}"#,
        r#"{"access_token":"","expires_in":1}"#,
        r#"{"access_token":"t","expires_in":0}"#,
        r#"{"access_token":"t","expires_in":-1}"#,
        r#"{"access_token":"t","expires_in":"3599"}"#,
        r#"{"access_token":"t\r\nx: y","expires_in":1}"#,
        r#"{"access_token":"t t","expires_in":1}"#,
        r#"{"access_token":"ü","expires_in":1}"#,
        &format!(r#"{{"access_token":"{longest}t","expires_in":1}}"#),
    ] {
        assert!(!is_good(200, bad), "{bad}");
    }
    // The longest lifetime that fits the reply is capped and does not overflow.
    let mut wakes = Wakes::new(u64::MAX);
    assert_eq!((wakes.number(0), wakes.number(24 * 3600)), (Ok(1), Ok(2)));
}

//! A phone's frame: exactly the JSON values of RFC 8259, byte for byte.

use pyrycode_relay::config::NESTING_MAX;
use pyrycode_relay::relay::envelope;

use super::json;

/// Checks the text, and the same with a long string.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    check(text);
    json::stretched(text).iter().for_each(|long| check(long));
}

/// Compares with the grammar, and the answer with a tree of values.
fn check(text: &str) {
    let frame = envelope::frame(text);
    let expected = json::only_value(text).filter(|value| json::depth(value) <= NESTING_MAX);
    assert_eq!(frame, expected, "{text:?}");

    // A tree refuses more (depth, lone surrogates, numbers out of range) but
    // nothing that is refused here.
    let tree = serde_json::from_str::<serde_json::Value>(text);
    assert!(tree.is_err() || frame.is_some(), "{text:?}");
    let Some(frame) = frame else { return };
    let envelope = envelope::wrap("0123456789abcdef0123456789abcdef", frame).concat();
    assert_eq!(envelope.len(), frame.len() + envelope::OVERHEAD);
    let envelope = String::from_utf8(envelope).expect("text in text");
    assert_eq!(json::only_value(&envelope), Some(&*envelope));
    if let Ok(tree) = tree {
        let embedded: serde_json::Value = serde_json::from_str(frame).expect("the same value");
        assert_eq!(embedded, tree);
    }
}

//! Feeds `tests/fuzz_corpus/state.rs`.

#![no_main]

#[expect(dead_code, reason = "the other targets")]
#[path = "../../tests/fuzz_corpus/main.rs"]
mod fuzz_corpus;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_corpus::state::run(data));

//! Fuzz targets, and the replay of the committed corpus.
//!
//! One module per target: `run` accepts any bytes and panics if a property does not hold.
//! `fuzz/` calls it with a fuzzer's inputs; here every committed input of `fuzz/corpus/` is
//! replayed with the compiler that builds the relay. Uses the public API only.

mod bytes;
pub(crate) mod envelope;
pub(crate) mod frame_json;
mod json;
#[path = "../support/proxy.rs"]
mod proxy;
pub(crate) mod proxy_header;
pub(crate) mod registry;
pub(crate) mod relay;
#[path = "../support/request.rs"]
mod request;
pub(crate) mod request_head;
pub(crate) mod state;
#[path = "../support/survive.rs"]
mod survive;
pub(crate) mod tls_record;
pub(crate) mod websocket;
pub(crate) mod wheel;
#[path = "../support/wire.rs"]
mod wire;
mod world;

#[cfg(test)]
mod replay {
    use std::fs;
    use std::path::Path;

    /// Runs every committed input of a target. The input printed last has failed.
    fn replay(target: &str, run: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let entries = fs::read_dir(&corpus).expect("every target has a corpus");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
        paths.sort();
        assert!(!paths.is_empty(), "{} is empty", corpus.display());
        run(&[]);
        for path in paths {
            println!("{}", path.display());
            run(&fs::read(&path).expect("readable"));
        }
    }

    macro_rules! replays {
        ($($target:ident)*) => {
            $(#[test]
            fn $target() {
                replay(stringify!($target), super::$target::run);
            })*
        };
    }

    replays!(envelope frame_json proxy_header registry relay request_head state tls_record websocket wheel);
}

//! Backlog: the kernel's cap on connections that wait to be accepted.
//!
//! Owns where the kernel publishes it: listen(2) lowers the number that a program asks for
//! without an error.

use std::fs;
use std::path::Path;

/// `net.core.somaxconn` of this network namespace; `None`: it cannot be read, as in a unit
/// with `ProcSubset=pid`. `root` is `/`, or another directory in a test.
#[must_use]
pub fn limit(root: &Path) -> Option<u32> {
    let text = fs::read_to_string(root.join("proc/sys/net/core/somaxconn")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells() {
        assert!(limit(Path::new("/")).is_none_or(|limit| limit > 0));
        assert_eq!(limit(Path::new("/nowhere")), None);
    }
}

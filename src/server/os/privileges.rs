//! Privileges: the capabilities of the process.
//!
//! Owns asking the kernel. The configuration decides which are too many.

use std::io;

/// The names of the effective capabilities, as in capabilities(7). Systems other than Linux
/// have no capabilities.
///
/// # Errors
/// If the kernel refuses the call, as in some sandboxes.
#[cfg(target_os = "linux")]
pub fn capabilities() -> io::Result<Vec<String>> {
    let effective = rustix::thread::capabilities(None)?.effective;
    let named = effective.iter_names().map(|(name, _)| format!("CAP_{name}"));
    // Capabilities newer than the library have no name in it.
    let unknown = effective.iter().filter(|it| it.iter_names().next().is_none());
    let unknown = unknown.map(|it| format!("capability {}", it.bits().trailing_zeros()));
    Ok(named.chain(unknown).collect())
}

/// The same for systems without capabilities.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn capabilities() -> io::Result<Vec<String>> {
    Ok(Vec::new())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_proc_tells() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        let effective = u64::from_str_radix(effective.trim(), 16).unwrap();
        let capabilities = capabilities().unwrap();
        assert_eq!(capabilities.len() as u32, effective.count_ones(), "{capabilities:?}");
        let binds = capabilities.iter().any(|name| name == "CAP_NET_BIND_SERVICE");
        assert_eq!(binds, effective & (1 << 10) != 0);
    }
}

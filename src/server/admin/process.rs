//! Process: the resource usage behind the customary `process_*` metrics.
//!
//! Owns reading it from the kernel (proc(5)). A value that cannot be read is left out.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Resource usage of the process.
#[derive(Clone, Debug)]
pub(in crate::server) struct Usage {
    /// User and system CPU time of all threads.
    pub(in crate::server) cpu: Duration,
    /// Virtual and resident memory, in bytes.
    pub(in crate::server) memory: Option<(u64, u64)>,
    /// Open descriptors.
    pub(in crate::server) descriptors: Option<u64>,
    /// The soft limit on open descriptors; `None`: no limit.
    pub(in crate::server) descriptors_max: Option<u64>,
}

impl Usage {
    pub(in crate::server) fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            cpu: Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec.unsigned_abs() as u32),
            memory: memory(),
            descriptors: descriptors(),
            descriptors_max: getrlimit(Resource::Nofile).current,
        }
    }
}

fn memory() -> Option<(u64, u64)> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split(' ').map_while(|field| field.parse::<u64>().ok());
    let size = rustix::param::page_size() as u64;
    Some((pages.next()? * size, pages.next()? * size))
}

/// Since Linux 6.2 the size of the directory is the number of descriptors; on older kernels
/// the directory has to be listed.
fn descriptors() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    match fs::metadata(DIRECTORY).ok()?.len() {
        // One entry is the descriptor of the directory itself.
        0 => Some((fs::read_dir(DIRECTORY).ok()?.count() as u64).saturating_sub(1)),
        count => Some(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells() {
        let usage = Usage::now();
        let (virtual_memory, resident) = usage.memory.unwrap();
        assert!(resident > 100_000 && virtual_memory > resident, "{usage:?}");
        let open = usage.descriptors.unwrap();
        let held: Vec<_> = (0..100).map(|_| fs::File::open("/proc/self/statm").unwrap()).collect();
        // Other tests in this process open and close some, too.
        let more = Usage::now().descriptors.unwrap();
        assert!((open + 50..open + 1_000).contains(&more), "{open}, then {more}");
        drop(held);
        assert!(usage.descriptors_max.is_none_or(|max| max > open));
        assert!(Usage::now().cpu >= usage.cpu && usage.cpu > Duration::ZERO);
    }
}

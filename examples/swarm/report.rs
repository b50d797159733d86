//! Report of a run: its measurements as text, and the machine that they imply.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::time::Duration;

use crate::crowd::Crowd;
use crate::options::Options;

/// The default of `--buffer-memory` in bytes.
const BUFFER_MEMORY: f64 = 64.0 * 1024.0 * 1024.0;
/// Descriptors that the relay keeps for everything else.
const RESERVED: usize = 64;

/// The machine that the relay runs on, if it is this one.
pub struct Machine {
    pid: Option<u32>,
}

/// Resources used by the relay and the kernel, or the difference between two times.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident memory of the relay, in bytes.
    resident: f64,
    /// Memory of the kernel, in bytes: its objects (slab).
    kernel: f64,
    /// CPU time of the relay, in seconds.
    cpu: f64,
}

impl Machine {
    pub fn new(options: &Options) -> Self {
        Self { pid: options.pid }
    }

    pub fn usage(&self) -> io::Result<Usage> {
        let Some(pid) = self.pid else { return Ok(Usage::default()) };
        let kib = |text: &str, name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            1024.0 * number.unwrap_or(0.0)
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mut nanos = 0.0;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            // It may have ended since.
            let schedstat = fs::read_to_string(thread?.path().join("schedstat"));
            let spent = schedstat.unwrap_or_default();
            nanos += spent.split(' ').next().and_then(|it| it.parse().ok()).unwrap_or(0.0);
        }
        Ok(Usage {
            resident: kib(&status, "VmRSS:"),
            kernel: kib(&fs::read_to_string("/proc/meminfo")?, "Slab:"),
            cpu: nanos / 1e9,
        })
    }
}

impl Usage {
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            resident: self.resident - earlier.resident,
            kernel: self.kernel - earlier.kernel,
            cpu: self.cpu - earlier.cpu,
        }
    }
}

/// The run in a few lines. `returned`: frames that came back while all were in.
pub fn of(
    options: &Options,
    crowd: &Crowd,
    came: Duration,
    ramp: &Usage,
    held: Duration,
    hold: &Usage,
    returned: usize,
) -> String {
    let mut text = String::new();
    let tally = &crowd.tally;
    let mut line = |what: &str, value: String| {
        let _ = writeln!(text, "{what:<36} {value}");
    };
    line("connections open at the end", format!("{} of {}", crowd.open(), crowd.all()));
    line("all in after", format!("{:.1} s", came.as_secs_f64()));
    line("upgrades", tally.upgrades.to_string());
    if tally.resumed > 0 {
        line("of them with a resumed TLS session", tally.resumed.to_string());
    }
    if options.pid.is_some() {
        let each = ramp.cpu * 1e6 / crowd.all() as f64;
        line("relay: CPU for each upgrade", format!("{each:.0} µs"));
        let each = ramp.resident / crowd.all() as f64;
        line("relay: memory for each connection", format!("{each:.0} bytes"));
        line("relay: CPU while all were in", percent(hold.cpu, held));
    }
    line("pings answered", tally.pings.to_string());
    if tally.own_pings > 0 {
        line("own pings, answered", format!("{}, {}", tally.own_pings, tally.own_pongs));
    }
    if tally.sent > 0 {
        line("frames sent, returned", format!("{}, {}", tally.sent, tally.round_trips.len()));
        line("their round trip", percentiles(&tally.round_trips));
        let second = returned as f64 / held.as_secs_f64();
        line("returned in a second", format!("{second:.0}"));
        if options.pid.is_some() && returned > 0 {
            // Each was forwarded to the binary and back.
            let each = hold.cpu * 1e6 / (2 * returned) as f64;
            line("relay: CPU for each message", format!("{each:.2} µs"));
        }
    }
    if options.half_open > 0 {
        line(
            "silent, ended by the relay",
            format!("{}, {}", options.half_open, tally.silences.len()),
        );
        line("after", percentiles(&tally.silences));
    }
    line("refused", tally.refused.to_string());
    for (why, count) in &tally.refusals {
        line("", format!("{count} × {why}"));
    }
    line("lost", tally.lost.to_string());
    for (code, count) in &tally.codes {
        line("", format!("{count} × close code {code}"));
    }
    text
}

/// The machine needed for such connections.
pub fn sizes(
    options: &Options,
    crowd: &Crowd,
    ramp: &Usage,
    held: Duration,
    hold: &Usage,
) -> String {
    let all = crowd.all() as f64;
    // Both ends of each connection are in this kernel.
    let ends = if options.relay.ip().is_loopback() { 2.0 } else { 1.0 };
    let kernel = ramp.kernel.max(0.0) / all / ends;
    let own = ramp.resident.max(0.0) / all;
    let share = hold.cpu / held.as_secs_f64() / all;
    let mut text = format!(
        "\nFor connections that do as these did ({kernel:.0} bytes of kernel memory each):\n\
         {:>11}  {:>11}  {:>9}  {:>9}  {:>9}  {:>10}\n",
        "connections", "descriptors", "relay", "kernel", "with queues", "CPU"
    );
    for count in [1_000_usize, 10_000, 30_000, 100_000, 1_000_000] {
        let (own, kernel) = (own * count as f64, kernel * count as f64);
        let _ = writeln!(
            text,
            "{count:>11}  {:>11}  {:>9}  {:>9}  {:>11}  {:>8.1} %",
            count + RESERVED,
            mib(own),
            mib(kernel),
            mib(own + kernel + BUFFER_MEMORY),
            100.0 * share * count as f64,
        );
    }
    text
}

fn mib(bytes: f64) -> String {
    format!("{:.0} MiB", (bytes / f64::from(1 << 20)).ceil())
}

fn percent(cpu: f64, time: Duration) -> String {
    format!("{:.2} % of a core", 100.0 * cpu / time.as_secs_f64())
}

fn percentiles(times: &[Duration]) -> String {
    if times.is_empty() {
        return "none".into();
    }
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let [median, p99, max] =
        [500, 990, 1000].map(|rank| sorted[(sorted.len() - 1) * rank / 1000].as_secs_f64() * 1e3);
    format!("median {median:.2}, p99 {p99:.2}, max {max:.2} ms")
}

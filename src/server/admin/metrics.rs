//! Metrics: a [`Snapshot`] in the Prometheus text format (version 0.0.4).
//!
//! Owns the metric names, labels and help texts. Counts nothing: every value is read from
//! the one place that counts it, so that two values cannot disagree.
//!
//! 1. Every series exists from the start, at zero until something happens, except the
//!    certificate's validity while there is no certificate.
//! 2. Label values come from closed lists in this program, never from a peer.

use std::time::Duration;

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use crate::protocol::close::CloseCause;
use crate::relay::Snapshot;
use crate::relay::stats::{self, Outcome};
use crate::server::admin::process::Usage;
use crate::server::log::Sink;
use crate::server::messages::handover_stats::HandoverStats;
use crate::server::messages::{LoopSnapshot, tls_stats};

/// The media type of [`text`].
pub(in crate::server) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// In the order of [`stats::Stats::closes`].
const ROLES: [&str; 2] = ["binary", "phone"];
/// In the order of [`stats::Stats::upgrades`].
const ENDPOINTS: [&str; 2] = ["server", "client"];

/// Facts about the process, outside the event loop.
#[derive(Clone, Debug)]
pub(in crate::server) struct Surroundings {
    /// When the process started, since 1970.
    pub(in crate::server) started: Duration,
    /// Resources that the process uses.
    pub(in crate::server) usage: Usage,
    /// Log lines lost.
    pub(in crate::server) log_lines_dropped: u64,
}

impl Surroundings {
    /// Those of this moment.
    pub(in crate::server) fn now(started: Duration, sink: &Sink) -> Self {
        Self { started, usage: Usage::now(), log_lines_dropped: sink.lines_dropped() }
    }
}

/// All metrics as one text, ready to be scraped.
pub(in crate::server) fn text(report: &LoopSnapshot, around: &Surroundings) -> String {
    let LoopSnapshot { relay: snapshot, tls, turns, handover } = report;
    let mut families = Families(Vec::new());
    families.relay(snapshot);
    families.traffic(&snapshot.stats);
    families.upgrades(&snapshot.stats);
    families.liveness(&snapshot.stats);
    families.turns(turns);
    families.tls(tls);
    families.handovers(handover);
    families.surroundings(around);
    TextEncoder.encode_to_string(&families.0).expect("every family has a name and a sample")
}

struct Families(Vec<MetricFamily>);

impl Families {
    fn relay(&mut self, snapshot: &Snapshot) {
        self.gauge(
            "pyrycode_relay_connected_binaries",
            "Connected binaries that hold a server-id.",
            snapshot.binaries as f64,
        );
        self.gauge(
            "pyrycode_relay_connected_phones",
            "Connected phones that are registered for a server-id.",
            snapshot.phones as f64,
        );
        self.gauge(
            "pyrycode_relay_connections",
            "Live WebSocket connections, counted as --max-connections counts them.",
            snapshot.connections as f64,
        );
        self.gauge(
            "pyrycode_relay_connections_max",
            "Maximum of live WebSocket connections: --max-connections or, if lower, the number \
             that the limit on open files allows.",
            snapshot.connections_max as f64,
        );
        self.gauge(
            "pyrycode_relay_buffered_bytes",
            "Bytes buffered in the queues of all connections.",
            snapshot.buffered as f64,
        );
        self.gauge(
            "pyrycode_relay_buffered_bytes_max",
            "Maximum of bytes buffered in the queues of all connections: --buffer-memory.",
            snapshot.buffered_max as f64,
        );
        self.gauge(
            "pyrycode_relay_draining",
            "1 while the relay is shutting down, 0 otherwise.",
            f64::from(u8::from(snapshot.is_draining)),
        );
        let version = label("version", env!("CARGO_PKG_VERSION"));
        self.push(
            "pyrycode_relay_build_info",
            "Always 1; the label carries the version of the program.",
            MetricType::GAUGE,
            vec![gauge(vec![version], 1.0)],
        );
    }

    fn traffic(&mut self, stats: &stats::Stats) {
        self.counters(
            "pyrycode_relay_frames_forwarded_total",
            "Frames forwarded, by direction.",
            by(
                "direction",
                [
                    ("phone_to_binary", stats.frames_to_binary),
                    ("binary_to_phone", stats.frames_to_phone),
                ],
            ),
        );
        self.counters(
            "pyrycode_relay_forwarded_bytes_total",
            "Bytes of the frames forwarded, without their envelopes, by direction.",
            by(
                "direction",
                [
                    ("phone_to_binary", stats.bytes_to_binary),
                    ("binary_to_phone", stats.bytes_to_phone),
                ],
            ),
        );
        self.counter(
            "pyrycode_relay_close_notices_total",
            "Notices to binaries that one of their phones has disconnected; not counted as \
             forwarded frames.",
            stats.close_notices,
        );
        self.counters(
            "pyrycode_relay_frames_dropped_total",
            "Envelopes from binaries that were not delivered, by cause.",
            by("cause", stats.dropped.labelled()),
        );
        self.counters(
            "pyrycode_relay_push_wakes_total",
            "Push wakes requested by binaries, by outcome.",
            by("outcome", stats.wakes.labelled()),
        );
    }

    fn upgrades(&mut self, stats: &stats::Stats) {
        let [server, client] = &stats.upgrades;
        let attempts = ENDPOINTS.iter().zip(&stats.upgrades).flat_map(|(endpoint, outcomes)| {
            by("outcome", outcomes.labelled()).map(|(mut labels, count)| {
                labels.insert(0, label("endpoint", endpoint));
                (labels, count)
            })
        });
        self.counters(
            "pyrycode_relay_ws_upgrade_attempts_total",
            "WebSocket upgrade attempts, by endpoint and outcome; each attempt is counted once.",
            attempts,
        );
        self.counters(
            "pyrycode_relay_proxy_header_refused_total",
            "Connections closed for lack of a valid PROXY protocol header, by cause.",
            by("cause", stats.proxy_refusals.labelled()),
        );
        self.counters(
            "pyrycode_relay_early_closes_total",
            "Connections closed without an answer before their upgrade, by the limit that was \
             reached: a client's connections, its rate, or the memory for connections that are \
             not upgraded.",
            by("cause", stats.early_closes.labelled()),
        );
        let limited = Outcome::RejectRateLimit;
        self.counters(
            "pyrycode_relay_register_failures_total",
            "Registrations refused, by kind; each is also counted as a rejected upgrade attempt.",
            by(
                "kind",
                [
                    ("no_server", client[Outcome::Reject404]),
                    ("server_in_use", server[Outcome::Reject409]),
                    ("phones_at_cap", client[Outcome::Reject429]),
                    ("ratelimit", server[limited] + client[limited]),
                ],
            ),
        );
        self.counter(
            "pyrycode_relay_grace_expiries_total",
            "Server-ids released because their binary did not reconnect within the grace period.",
            stats.grace_expiries,
        );
        self.counter(
            "pyrycode_relay_takeovers_total",
            "Server-ids taken over from a binary that did not answer a probe.",
            stats.takeovers,
        );
    }

    fn liveness(&mut self, stats: &stats::Stats) {
        self.counter(
            "pyrycode_relay_heartbeat_pings_total",
            "Pings sent, including probes of a claimed server-id.",
            stats.pings,
        );
        self.counter(
            "pyrycode_relay_heartbeat_pongs_total",
            "Pongs received in answer to a ping.",
            stats.pongs,
        );
        let timeouts = stats.closes_by(CloseCause::HeartbeatTimeout);
        self.counters(
            "pyrycode_relay_heartbeat_timeouts_total",
            "Connections closed because a pong did not arrive in time, by role.",
            by("role", ROLES.into_iter().zip(timeouts)),
        );
        let closes = ROLES.iter().zip(&stats.closes).flat_map(|(role, causes)| {
            by("cause", causes.labelled()).map(|(mut labels, count)| {
                labels.insert(0, label("role", role));
                (labels, count)
            })
        });
        self.counters(
            "pyrycode_relay_closes_total",
            "WebSocket connections that ended, by role and cause.",
            closes,
        );
        self.histogram(
            "pyrycode_relay_heartbeat_rtt_seconds",
            "Round-trip time from a ping to its pong.",
            &stats.round_trips,
        );
        self.histogram(
            "pyrycode_relay_loop_lag_seconds",
            "Delay between a timer's deadline and its expiry; up to one tick (0.1 s) is by design.",
            &stats.loop_lag,
        );
    }

    fn turns(&mut self, turns: &stats::Histogram) {
        self.histogram(
            "pyrycode_relay_turn_seconds",
            "Time from when the loop woke until it had done all its work or a share of it; \
             a turn is bounded to some 10 ms.",
            turns,
        );
    }

    fn tls(&mut self, stats: &tls_stats::Stats) {
        self.counters(
            "pyrycode_relay_tls_reloads_total",
            "Certificate reloads and renewals, by outcome.",
            by("outcome", [("ok", stats.reloads), ("failed", stats.failed_reloads)]),
        );
        self.counter(
            "pyrycode_relay_tls_faults_total",
            "TLS connections that failed with a TLS error, in the handshake or after it.",
            stats.faults,
        );
        self.counter(
            "pyrycode_relay_tls_truncations_total",
            "TLS connections that the peer ended without close_notify.",
            stats.truncations,
        );
        if let Some(not_before) = stats.not_before {
            self.gauge(
                "pyrycode_relay_tls_certificate_not_before_timestamp_seconds",
                "Start of the validity of the certificate in use since unix epoch in seconds.",
                not_before.as_secs_f64(),
            );
        }
        if let Some(not_after) = stats.not_after {
            self.gauge(
                "pyrycode_relay_tls_certificate_expiry_timestamp_seconds",
                "Expiry of the certificate in use since unix epoch in seconds.",
                not_after.as_secs_f64(),
            );
        }
    }

    fn handovers(&mut self, stats: &HandoverStats) {
        self.counters(
            "pyrycode_relay_handovers_total",
            "Hand-overs to another program (SIGUSR2), by outcome.",
            by("outcome", [("done", stats.done), ("refused", stats.refused)]),
        );
        let pause = stats.last_done.as_ref().map_or(Duration::ZERO, |done| done.pause);
        self.gauge(
            "pyrycode_relay_handover_pause_seconds",
            "Time in which no connection was served during the last hand-over; 0 before the \
             first.",
            pause.as_secs_f64(),
        );
    }

    fn surroundings(&mut self, around: &Surroundings) {
        self.counter(
            "pyrycode_relay_log_lines_dropped_total",
            "Log lines lost because the queue was full or stderr could not be written.",
            around.log_lines_dropped,
        );
        let usage = &around.usage;
        self.push(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            MetricType::COUNTER,
            vec![counter(Vec::new(), usage.cpu.as_secs_f64())],
        );
        self.gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            around.started.as_secs_f64(),
        );
        if let Some((virtual_memory, resident)) = usage.memory {
            self.gauge(
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
                virtual_memory as f64,
            );
            self.gauge(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                resident as f64,
            );
        }
        if let Some(open) = usage.descriptors {
            self.gauge("process_open_fds", "Number of open file descriptors.", open as f64);
        }
        if let Some(max) = usage.descriptors_max {
            self.gauge("process_max_fds", "Maximum number of open file descriptors.", max as f64);
        }
    }

    fn push(&mut self, name: &str, help: &str, kind: MetricType, samples: Vec<Metric>) {
        let mut family = MetricFamily::default();
        family.set_name(name.into());
        family.set_help(help.into());
        family.set_field_type(kind);
        family.set_metric(samples);
        self.0.push(family);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.push(name, help, MetricType::GAUGE, vec![gauge(Vec::new(), value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.counters(name, help, [(Vec::new(), value)]);
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (Vec<LabelPair>, u64)>,
    ) {
        let samples = series.into_iter().map(|(labels, value)| counter(labels, value as f64));
        self.push(name, help, MetricType::COUNTER, samples.collect());
    }

    fn histogram(&mut self, name: &str, help: &str, durations: &stats::Histogram) {
        let mut count = 0;
        let buckets = durations.bounded().map(|(bound, observed)| {
            count += observed;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound.as_secs_f64());
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(durations.count());
        histogram.set_sample_sum(durations.sum.as_secs_f64());
        let mut sample = Metric::default();
        sample.set_histogram(histogram);
        self.push(name, help, MetricType::HISTOGRAM, vec![sample]);
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}

/// Series that differ in the value of one label.
fn by(
    name: &str,
    counts: impl IntoIterator<Item = (&'static str, u64)>,
) -> impl Iterator<Item = (Vec<LabelPair>, u64)> {
    counts.into_iter().map(move |(value, count)| (vec![label(name, value)], count))
}

fn counter(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(value);
    let mut sample = Metric::from_label(labels);
    sample.set_counter(counter);
    sample
}

fn gauge(labels: Vec<LabelPair>, value: f64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(value);
    let mut sample = Metric::from_label(labels);
    sample.set_gauge(gauge);
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_in_seconds() {
        let mut report = LoopSnapshot::default();
        for millis in [1, 2, 2, 300, 100_000] {
            report.relay.stats.round_trips.observe(Duration::from_millis(millis));
        }
        let around = Surroundings {
            started: Duration::from_millis(1_500),
            usage: Usage::now(),
            log_lines_dropped: 7,
        };
        let text = text(&report, &around);
        let rtt = "pyrycode_relay_heartbeat_rtt_seconds";
        for (sample, value) in [
            ("_bucket{le=\"0.001\"}", "1"),
            ("_bucket{le=\"0.002\"}", "3"),
            ("_bucket{le=\"0.256\"}", "3"),
            ("_bucket{le=\"0.512\"}", "4"),
            ("_bucket{le=\"65.536\"}", "4"),
            ("_bucket{le=\"+Inf\"}", "5"),
            ("_count", "5"),
            ("_sum", "100.305"),
        ] {
            assert!(text.contains(&format!("\n{rtt}{sample} {value}\n")), "{sample} in {text}");
        }
        assert!(text.contains(&format!("\n# TYPE {rtt} histogram\n")), "{text}");
        assert!(text.contains("\nprocess_start_time_seconds 1.5\n"), "{text}");
        assert!(text.contains("\npyrycode_relay_log_lines_dropped_total 7\n"), "{text}");
    }
}

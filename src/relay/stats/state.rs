//! State of the counters, by name: the program that takes over may have others.

use std::time::Duration;

use super::{Histogram, Stats};
use crate::relay::counts::{ClosedList, Counts};
use crate::state::v1;

/// What is done with each counter, and with each histogram.
trait Visitor {
    fn count(&mut self, name: String, count: &mut u64);
    fn histogram(&mut self, name: &str, histogram: &mut Histogram);
    fn counts<T: ClosedList, const N: usize>(&mut self, name: &str, counts: &mut Counts<T, N>) {
        for (label, mut count) in counts.clone().labelled() {
            self.count(format!("{name}/{label}"), &mut count);
            counts.set(label, count);
        }
    }
}

impl Stats {
    /// As plain values.
    pub(in crate::relay) fn save(&self) -> v1::Stats {
        let mut saved = v1::Stats::default();
        self.clone().visit(&mut Save(&mut saved));
        saved
    }

    /// Continues with what [`Self::save`] returned; counters that this program does not know
    /// are left out.
    pub(in crate::relay) fn restore(&mut self, saved: &v1::Stats) {
        self.visit(&mut Restore(saved));
    }

    /// Every counter with its name in a state.
    fn visit(&mut self, visitor: &mut impl Visitor) {
        let Self {
            pings,
            pongs,
            round_trips,
            loop_lag,
            frames_to_binary,
            frames_to_phone,
            bytes_to_binary,
            bytes_to_phone,
            close_notices,
            dropped,
            closes: [closes_of_binaries, closes_of_phones],
            grace_expiries,
            takeovers,
            proxy_refusals,
            early_closes,
            upgrades: [upgrades_of_binaries, upgrades_of_phones],
            wakes,
        } = self;
        for (name, count) in [
            ("pings", pings),
            ("pongs", pongs),
            ("frames_to_binary", frames_to_binary),
            ("frames_to_phone", frames_to_phone),
            ("bytes_to_binary", bytes_to_binary),
            ("bytes_to_phone", bytes_to_phone),
            ("close_notices", close_notices),
            ("grace_expiries", grace_expiries),
            ("takeovers", takeovers),
        ] {
            visitor.count(name.to_owned(), count);
        }
        visitor.histogram("round_trips", round_trips);
        visitor.histogram("loop_lag", loop_lag);
        visitor.counts("dropped", dropped);
        visitor.counts("closes_of_binaries", closes_of_binaries);
        visitor.counts("closes_of_phones", closes_of_phones);
        visitor.counts("proxy_refusals", proxy_refusals);
        visitor.counts("early_closes", early_closes);
        visitor.counts("upgrades_of_binaries", upgrades_of_binaries);
        visitor.counts("upgrades_of_phones", upgrades_of_phones);
        visitor.counts("wakes", wakes);
    }
}

struct Save<'a>(&'a mut v1::Stats);

impl Visitor for Save<'_> {
    fn count(&mut self, name: String, count: &mut u64) {
        self.0.counts.push((name, *count));
    }

    fn histogram(&mut self, name: &str, histogram: &mut Histogram) {
        self.0.histograms.push((name.to_owned(), histogram.save()));
    }
}

struct Restore<'a>(&'a v1::Stats);

impl Visitor for Restore<'_> {
    fn count(&mut self, name: String, count: &mut u64) {
        if let Some((_, saved)) = self.0.counts.iter().find(|(known, _)| *known == name) {
            *count = *saved;
        }
    }

    fn histogram(&mut self, name: &str, histogram: &mut Histogram) {
        if let Some((_, saved)) = self.0.histograms.iter().find(|(known, _)| known == name) {
            *histogram = Histogram::restore(saved);
        }
    }
}

impl Histogram {
    /// As plain values.
    #[must_use]
    pub fn save(&self) -> v1::Histogram {
        let sum = u64::try_from(self.sum.as_nanos()).unwrap_or(u64::MAX);
        v1::Histogram { buckets: self.buckets.to_vec(), sum }
    }

    /// The histogram of which [`Self::save`] returned `saved`; buckets beyond the last are
    /// added to it.
    #[must_use]
    pub fn restore(saved: &v1::Histogram) -> Self {
        let mut histogram = Self { sum: Duration::from_nanos(saved.sum), ..Self::default() };
        let last = histogram.buckets.len() - 1;
        for (index, count) in saved.buckets.iter().enumerate() {
            let bucket = &mut histogram.buckets[index.min(last)];
            *bucket = bucket.saturating_add(*count);
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::close::CloseCause;
    use crate::relay::stats::Outcome;

    #[test]
    fn every_counter_is_restored() {
        /// Gives each counter a value of its own.
        struct Number(u64);
        impl Visitor for Number {
            fn count(&mut self, _name: String, count: &mut u64) {
                self.0 += 1;
                *count = self.0;
            }
            fn histogram(&mut self, _name: &str, histogram: &mut Histogram) {
                histogram.buckets[3] = 7;
                histogram.observe(Duration::from_micros(5_001));
            }
        }
        let mut stats = Stats::default();
        stats.visit(&mut Number(0));
        assert!(stats.closes_by(CloseCause::Shutdown).iter().all(|count| *count > 0));
        assert!(stats.upgrades[1][Outcome::Accept] > 0 && stats.loop_lag.count() == 8);
        let mut restored = Stats::default();
        restored.restore(&stats.save());
        assert_eq!(restored, stats);
    }

    #[test]
    fn counters_of_another_program_are_left_out() {
        let saved = v1::Stats {
            counts: vec![("pings".into(), 5), ("of_tomorrow".into(), 6), ("wakes/new".into(), 7)],
            histograms: vec![("of_tomorrow".into(), Histogram::default().save())],
        };
        let mut stats = Stats::default();
        stats.restore(&saved);
        assert_eq!(stats, Stats { pings: 5, ..Stats::default() });
    }
}

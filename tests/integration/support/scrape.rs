//! The metrics of a relay, as a scraper reads them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Answer, ask};

/// Every sample: name and labels as they stand in the text, and the value.
#[derive(Clone, Debug)]
pub struct Scrape(pub BTreeMap<String, f64>);

impl Scrape {
    /// Scrapes.
    pub fn of(metrics: SocketAddr) -> Self {
        let Answer { status, head, body } =
            ask(metrics, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(status, 200, "{head}");
        let samples = body.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        Self(samples.collect())
    }

    /// The value of one of the relay's own series.
    pub fn value(&self, series: &str) -> f64 {
        let series = format!("pyrycode_relay_{series}");
        *self.0.get(&series).unwrap_or_else(|| panic!("no {series}"))
    }

    /// The sum over all series of one of the relay's metrics.
    pub fn sum(&self, metric: &str) -> f64 {
        let start = format!("pyrycode_relay_{metric}{{");
        let series = self.0.iter().filter(|(series, _)| series.starts_with(&start));
        series.map(|(_, value)| value).sum()
    }

    /// What has changed since `before` in the relay's metric: labels and by how much.
    pub fn changes(&self, before: &Self, metric: &str) -> Vec<(&str, f64)> {
        let start = format!("pyrycode_relay_{metric}{{");
        let of_metric = |series: &&str| series.starts_with(&start);
        let changed = self.0.keys().map(String::as_str).filter(of_metric).map(|series| {
            let labels = series[start.len()..].trim_end_matches('}');
            (labels, self.0[series] - before.0[series])
        });
        changed.filter(|(_, change)| *change != 0.0).collect()
    }
}

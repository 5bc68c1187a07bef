//! The running tracker's metrics, now and a second ago.

use std::net::SocketAddr;

use super::HostReport;
use super::finding::{Check, Finding};

/// What the sockets of the running tracker lost in the last second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TrackerLosses {
    /// Datagrams that were dropped before the tracker received them.
    pub(super) dropped: u64,
    /// Datagrams that it received.
    pub(super) received: u64,
}

/// Why it is unknown what the tracker's sockets lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LossesUnknown {
    /// No tracker of these settings responds, or an older one.
    NoMetrics,
    /// A filter drops datagrams on purpose, which the kernel counts as well.
    Filtered,
}

impl TrackerLosses {
    /// The growth of the counters while they were watched.
    pub(super) fn of(report: &HostReport) -> Result<Self, LossesUnknown> {
        let now = report.facts.metrics.as_ref().map_err(|_| LossesUnknown::NoMetrics)?;
        let earlier = report.earlier.metrics().ok_or(LossesUnknown::NoMetrics)?;
        let growth = |name: &str, label: &str| {
            let grown = sum(now, name, label)? - sum(earlier, name, label)?;
            Some(crate::frontend::figures::rounded(grown))
        };
        let dropped = growth("skep_udp_socket_drops_total", "");
        let received = growth("skep_requests_total", "transport=\"udp\"");
        let (Some(dropped), Some(received)) = (dropped, received) else {
            return Err(LossesUnknown::NoMetrics);
        };
        let denied = [now, earlier].map(|it| value(it, "skep_kernel_denied_sources"));
        if denied.into_iter().flatten().any(|it| it > 0.0) {
            return Err(LossesUnknown::Filtered);
        }
        Ok(Self { dropped, received })
    }
}

/// Datagrams of the last second: all of them, and those that an XDP program answers or drops before
/// a socket has them. `None` if no tracker of these settings responds.
pub(super) fn before_sockets(report: &HostReport) -> Option<(u64, u64)> {
    let now = report.facts.metrics.as_ref().ok()?;
    let earlier = report.earlier.metrics()?;
    let growth = |name: &str, label: &str| {
        let grown = sum(now, name, label)? - sum(earlier, name, label)?;
        Some(crate::frontend::figures::rounded(grown))
    };
    let all = growth("skep_requests_total", "transport=\"udp\"")?;
    let connects = growth("skep_responses_total", "action=\"connect\"").unwrap_or(0);
    let reasons = ["forged_id", "expired_id", "limited_connect", "network_denied"];
    let dropped = reasons
        .map(|reason| growth("skep_dropped_total", &format!("reason=\"{reason}\"")).unwrap_or(0));
    Some((all, (connects + dropped.iter().sum::<u64>()).min(all)))
}

/// The finding of a check that needs a running tracker, where none responds.
pub(super) fn without_tracker(check: &Check, admin: SocketAddr, error: &str) -> Finding {
    check
        .info(format!("no skep of these settings responds at {admin} ({error})"))
        .remedied("run `skep doctor` again, with the same settings, while skep serves")
}

/// The value of a series in the running tracker's metrics.
pub(super) fn value(metrics: &str, series: &str) -> Option<f64> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    value.trim().parse().ok().filter(|value: &f64| value.is_finite())
}

/// The sum of a metric's series that have a label, as `name="value"`; empty: of all of them. `None`
/// if there is none.
fn sum(metrics: &str, name: &str, label: &str) -> Option<f64> {
    let value = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let is_it = labels.is_empty() || labels.starts_with('{');
        let value = value.parse().ok().filter(|value: &f64| value.is_finite());
        value.filter(|_| is_it && labels.contains(label))
    };
    metrics.lines().filter_map(value).reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_label() {
        let metrics = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"2\",y=\"2\"} 4\nab 9\nb 5\n";
        let sums = [("a", ""), ("a", "x=\"1\""), ("a", "x=\"3\""), ("b", ""), ("c", "")];
        let sums = sums.map(|(name, label)| sum(metrics, name, label));
        assert_eq!(sums, [Some(7.0), Some(3.0), None, Some(5.0), None]);
    }

    #[test]
    fn what_a_tracker_lost_before_it_was_watched_does_not_count() {
        let metrics = |drops: [u32; 2], received: u32, denied: u32| {
            let [v4, v6] = drops;
            format!(
                "skep_udp_socket_drops_total{{worker=\"0\",family=\"ipv4\"}} {v4}\n\
                 skep_udp_socket_drops_total{{worker=\"0\",family=\"ipv6\"}} {v6}\n\
                 skep_requests_total{{transport=\"udp\",family=\"ipv4\"}} {received}\n\
                 skep_requests_total{{transport=\"http\",family=\"ipv4\"}} {v4}\n\
                 skep_kernel_denied_sources {denied}\n"
            )
        };
        let losses = |earlier: &str, now: &str| {
            let mut fake = Fake::new();
            fake.report.facts.metrics = Ok(now.to_owned());
            fake.report.earlier.set_metrics(earlier);
            TrackerLosses::of(&fake.report)
        };
        let found = losses(&metrics([1000, 5], 70, 0), &metrics([1003, 9], 90, 0));
        assert_eq!(found, Ok(TrackerLosses { dropped: 7, received: 20 }));
        let found = losses(&metrics([0, 0], 0, 1), &metrics([9, 0], 0, 0));
        assert_eq!(found, Err(LossesUnknown::Filtered));
        let found = losses("skep_torrents 0\n", &metrics([9, 0], 0, 0));
        assert_eq!(found, Err(LossesUnknown::NoMetrics));
        assert_eq!(TrackerLosses::of(&Fake::new().report), Err(LossesUnknown::NoMetrics));
    }
}

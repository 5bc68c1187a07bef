//! Makes the kernel drop datagrams of the worst heavy hitters before they are queued. A source that
//! is over the limit for verified work that often costs a worker most of a microsecond per
//! datagram, for no benefit.
//!
//! While its datagrams are dropped, a source is not measured. It is admitted again after a while,
//! and denied again within two seconds if it continues.

use std::net::{IpAddr, UdpSocket};

use tracing::{info, warn};

use crate::server::log::OPERATOR;
use crate::sys::filter::{self, SOURCES_MAX};
use crate::time::Now;
use crate::types::Family;

/// Seconds for which a source is denied.
const DENIED_S: u64 = 30;

/// The sources that are denied, on all UDP sockets.
pub(crate) struct KernelFilter {
    denied: Vec<(IpAddr, Now)>,
    /// The sources that were set on the sockets last; `None` at the start: an inherited socket may
    /// deny some.
    reported: Option<Vec<IpAddr>>,
}

impl KernelFilter {
    /// Denies no source.
    pub(crate) fn new() -> Self {
        Self { denied: Vec::new(), reported: None }
    }

    /// The sources that are denied.
    pub(crate) fn sources(&self) -> Vec<IpAddr> {
        self.denied.iter().map(|it| it.0).collect()
    }

    /// How many sources are denied.
    pub(crate) fn denied(&self) -> usize {
        self.denied.len()
    }

    /// Admits the sources whose time is over, and denies `offenders`: the worst first, each with
    /// its requests per second over the limit. Sets the filters if that changes anything.
    pub(crate) fn tick<'a>(
        &mut self,
        now: Now,
        offenders: &[(IpAddr, u32)],
        sockets: impl Iterator<Item = (Family, &'a UdpSocket)>,
    ) {
        self.denied.retain(|it| now < it.1);
        let mut new = Vec::new();
        for (source, rate) in offenders {
            let is_new = self.denied.iter().all(|it| it.0 != *source);
            if is_new && self.denied.len() < SOURCES_MAX {
                self.denied.push((*source, now.plus_s(DENIED_S)));
                new.push((*source, *rate));
            }
        }
        if let Some((worst, rate)) = new.first() {
            info!(
                target: OPERATOR,
                sources = new.len(), %worst, worst_over_limit_per_s = rate, seconds = DENIED_S,
                "sources denied in the kernel"
            );
        }
        let denied = self.sources();
        if self.reported.as_ref() != Some(&denied) {
            for (family, socket) in sockets {
                if let Err(error) = filter::deny(socket, family, &denied) {
                    let _ = filter::deny(socket, family, &[]); // nor for longer than documented
                    let remedy = "raise net.core.optmem_max, or set limits.kernel_deny_rate = 0";
                    warn!(%error, remedy, "sources not denied in the kernel, limited as before");
                }
            }
            self.reported = Some(denied);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Now = Now::from_s(1_800_000_000);

    #[test]
    fn who_is_denied_comes_back_in_half_a_minute() {
        let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
        deaf.set_nonblocking(true).unwrap();
        let sender = UdpSocket::bind("127.0.0.2:0").unwrap();
        let offender = [(sender.local_addr().unwrap().ip(), 5000)];
        let hears = || {
            sender.send_to(b"denied?", deaf.local_addr().unwrap()).unwrap();
            deaf.recv(&mut [0; 16]).is_ok()
        };
        let mut kernel_filter = KernelFilter::new();
        let sockets = || std::iter::once((Family::V4, &deaf));
        // A predecessor's socket, which still denies a source.
        filter::deny(&deaf, Family::V4, &[offender[0].0]).unwrap();
        kernel_filter.tick(START, &[], sockets());
        assert!(hears());
        kernel_filter.tick(START.plus_s(1), &offender, sockets());
        assert_eq!((kernel_filter.denied(), hears()), (1, false));
        kernel_filter.tick(START.plus_s(30), &[], sockets());
        assert!(!hears());
        kernel_filter.tick(START.plus_s(31), &[], sockets());
        assert_eq!((kernel_filter.denied(), hears()), (0, true));
    }

    #[test]
    fn no_more_are_denied_than_a_program_holds() {
        let offenders: Vec<_> = (0..200).map(|it| (IpAddr::from([8, 8, 8, it]), 9)).collect();
        let mut kernel_filter = KernelFilter::new();
        kernel_filter.tick(START, &offenders, std::iter::empty());
        assert_eq!(kernel_filter.denied(), SOURCES_MAX);
    }
}

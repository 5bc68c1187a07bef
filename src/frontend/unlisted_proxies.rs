//! Notices a reverse proxy that `http.trusted_proxies` does not list, at the first request that it
//! forwards: the request has a header that names its client, and comes from an untrusted source.
//!
//! Behind such a proxy all clients have one address, so every peer in a response is useless. But
//! anybody may send such a header, and clients behind proxies of their own do. Requests from
//! loopback and private addresses are therefore counted apart from those of public addresses: a
//! stranger on the Internet has such an address only where a bridge or a NAT hides all clients,
//! which is a fault as well, but with another remedy. Two counts and two samples are kept, whatever
//! arrives.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use strum::{EnumCount, IntoStaticStr, VariantArray};

use crate::frontend::origin::HopField;
use crate::time::Now;
use crate::types::Scope;

/// Where a request with a forwarding header comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ProxySource {
    /// From this host or its private network: a proxy of the operator's, or a NAT that hides all
    /// clients.
    Private,
    /// From the Internet: a content delivery network of the operator's, a proxy of the client's, or
    /// a client that forges the header.
    Public,
}

impl ProxySource {
    /// All kinds, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The kind of an unmapped address.
    pub fn of(address: IpAddr) -> Self {
        match Scope::of(address) {
            Scope::Loopback | Scope::Private => Self::Private,
            Scope::Public => Self::Public,
        }
    }

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// A header in which a proxy names its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardingHeader {
    /// A header field of HTTP.
    Field(HopField),
    /// The PROXY protocol, in front of a connection's bytes.
    ProxyProtocol,
}

impl ForwardingHeader {
    /// Its name in log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Field(field) => field.name(),
            Self::ProxyProtocol => "PROXY protocol",
        }
    }
}

impl From<HopField> for ForwardingHeader {
    fn from(field: HopField) -> Self {
        Self::Field(field)
    }
}

/// One request with a forwarding header from a source that is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnlistedProxy {
    /// The source, unmapped.
    pub address: IpAddr,
    /// The header.
    pub header: ForwardingHeader,
}

/// What all workers have seen of proxies that are not listed.
#[derive(Debug, Default)]
pub struct UnlistedProxies([SourceCounts; ProxySource::COUNT]);

/// What was seen of one kind of source.
#[derive(Debug, Default)]
struct SourceCounts {
    requests: AtomicU64,
    /// The time of the latest request, in seconds since the Unix epoch; 0: none.
    latest_s: AtomicU64,
    /// Bits of the share of the last hour's requests over HTTP, from 0 to 1.
    ratio: AtomicU64,
    /// Whether `sample` is taken: only the first request after [`UnlistedProxies::take`] locks it.
    has_sample: AtomicBool,
    sample: Mutex<Option<UnlistedProxy>>,
}

impl UnlistedProxies {
    /// Records one request with this header from an unmapped address that is not trusted.
    pub fn note(&self, now: Now, address: IpAddr, header: ForwardingHeader) {
        let seen = self.of(ProxySource::of(address));
        seen.requests.fetch_add(1, Ordering::Relaxed);
        // Behind a proxy every request comes here: what is the same already is not written again.
        if seen.latest_s.load(Ordering::Relaxed) != now.seconds() {
            seen.latest_s.store(now.seconds(), Ordering::Relaxed);
        }
        let has_sample = seen.has_sample.load(Ordering::Relaxed);
        if !has_sample && !seen.has_sample.swap(true, Ordering::Relaxed) {
            *seen.sample.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(UnlistedProxy { address, header });
        }
    }

    /// The number of such requests since the start.
    pub fn requests(&self, source: ProxySource) -> u64 {
        self.of(source).requests.load(Ordering::Relaxed)
    }

    /// The time of the latest such request, in seconds since the Unix epoch; 0 if there was none
    /// since the start or since [`Self::forget`].
    pub fn latest_s(&self, source: ProxySource) -> u64 {
        self.of(source).latest_s.load(Ordering::Relaxed)
    }

    /// The share of such requests in those over HTTP of the last hour, from 0 to 1, or since
    /// [`Self::forget`].
    pub fn ratio(&self, source: ProxySource) -> f64 {
        f64::from_bits(self.of(source).ratio.load(Ordering::Relaxed))
    }

    /// Sets that share.
    pub fn set_ratio(&self, source: ProxySource, ratio: f64) {
        self.of(source).ratio.store(ratio.to_bits(), Ordering::Relaxed);
    }

    /// The first such request since the last call.
    pub fn take(&self, source: ProxySource) -> Option<UnlistedProxy> {
        let seen = self.of(source);
        let sample = seen.sample.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        seen.has_sample.store(false, Ordering::Relaxed);
        Some(sample)
    }

    /// Forgets the latest requests, because other proxies are listed now. Counts stay.
    pub fn forget(&self) {
        for source in ProxySource::ALL {
            self.take(source);
            self.of(source).latest_s.store(0, Ordering::Relaxed);
            self.set_ratio(source, 0.0);
        }
    }

    fn of(&self, source: ProxySource) -> &SourceCounts {
        &self.0[source as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now::from_s(1_800_000_000);

    #[test]
    fn the_first_request_since_the_last_look_is_kept_and_all_are_counted() {
        let seen = UnlistedProxies::default();
        assert_eq!(seen.take(ProxySource::Private), None);
        let field = ForwardingHeader::Field(HopField::XForwardedFor);
        for (second, address) in (0..).zip(["127.0.0.1", "10.0.0.7", "9.9.9.9", "fd00::1"]) {
            seen.note(NOW.plus_s(second), address.parse().unwrap(), field);
        }
        let first = UnlistedProxy { address: "127.0.0.1".parse().unwrap(), header: field };
        assert_eq!(ProxySource::ALL.map(|source| seen.requests(source)), [3, 1]);
        assert_eq!(seen.latest_s(ProxySource::Private), NOW.seconds() + 3);
        assert_eq!(seen.take(ProxySource::Private), Some(first));
        assert_eq!(seen.take(ProxySource::Private), None);
        seen.note(NOW, "10.0.0.7".parse().unwrap(), ForwardingHeader::ProxyProtocol);
        let next = seen.take(ProxySource::Private).unwrap();
        assert_eq!(
            (next.address.to_string(), next.header.name()),
            ("10.0.0.7".into(), "PROXY protocol")
        );
    }

    #[test]
    fn what_is_forgotten_stays_counted() {
        let seen = UnlistedProxies::default();
        seen.note(NOW, "192.168.0.1".parse().unwrap(), HopField::Forwarded.into());
        seen.forget();
        assert_eq!(
            (seen.take(ProxySource::Private), seen.latest_s(ProxySource::Private)),
            (None, 0)
        );
        assert_eq!(seen.requests(ProxySource::Private), 1);
    }
}

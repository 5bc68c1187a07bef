//! The cost of a TLS connection before its first request: both sides of a handshake in memory, full
//! and resumed, with the crypto provider and ticket type of the server. TLS 1.3, P-256.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NAME: &str = "tracker.example";

/// A server configured as in skep, and a client that trusts it.
fn configs() -> (Arc<ServerConfig>, ClientConfig) {
    let certified_key = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let certificate = certified_key.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(certified_key.signing_key.serialize_der().into());
    let provider = Arc::new(ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    server.ticketer = ring::Ticketer::new().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), client)
}

/// Moves the pending bytes of `from` to the other side.
macro_rules! carry {
    ($from:ident, $to:ident, $wire:ident) => {
        $wire.clear();
        while $from.wants_write() {
            $from.write_tls($wire).unwrap();
        }
        let mut unread = $wire.as_slice();
        while !unread.is_empty() {
            $to.read_tls(&mut unread).unwrap();
            $to.process_new_packets().unwrap();
        }
    };
}

/// Runs one handshake and transfers the tickets after it. Returns the kind of handshake that the
/// server reports.
fn handshake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    wire: &mut Vec<u8>,
) -> HandshakeKind {
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    while client.wants_write() || server.wants_write() {
        carry!(client, server, wire);
        carry!(server, client, wire);
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    server.handshake_kind().unwrap()
}

fn tls(criterion: &mut Criterion) {
    let (server, client) = configs();
    let mut group = criterion.benchmark_group("tls-handshake");
    group.throughput(Throughput::Elements(1));
    let mut forgetful = client.clone();
    forgetful.resumption = Resumption::disabled();
    for (name, client, kind) in [
        ("full", Arc::new(forgetful), HandshakeKind::Full),
        ("resumed", Arc::new(client), HandshakeKind::Resumed),
    ] {
        let mut wire = Vec::new();
        // The first handshake of a client with a session cache is full, too, and brings its first
        // tickets.
        assert_eq!(handshake(&server, &client, &mut wire), HandshakeKind::Full);
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(handshake(&server, &client, &mut wire), kind));
        });
    }
    group.finish();
}

criterion_group!(benches, tls);
criterion_main!(benches);

//! Clients of every kind, good and bad, over every front end, for as long as somebody watches.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{Announcement, encode_announce, encode_connect, encode_scrape};
use skep::types::{Event, InfoHash};

use crate::support::{Client, Skep, command, http_get, leecher, seeder};

/// Clients of one burst: many bursts a second, as handling times are sampled once in 64 turns.
const BURST: u8 = 32;

/// Traffic that ends when dropped.
pub(crate) struct Traffic {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Sends to all addresses of a skep: datagrams in bursts, and probes one after the other.
    pub(crate) fn start(skep: &Skep, authority: &Path) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for &address in &skep.udp {
            let ended = ended.clone();
            threads.push(std::thread::spawn(move || datagrams(address, &ended)));
        }
        let (urls, page) = (urls(skep), *skep.tcp.last().unwrap());
        let (authority, shared) = (authority.to_owned(), ended.clone());
        threads.push(std::thread::spawn(move || probes(&urls, page, &authority, &shared)));
        Self { ended, threads }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for handle in self.threads.drain(..) {
            let _ = handle.join();
        }
    }
}

/// What probes ask.
fn urls(skep: &Skep) -> Vec<String> {
    let mut urls = Vec::new();
    for address in &skep.udp {
        urls.push(format!("udp://{address}"));
    }
    for address in &skep.tcp {
        urls.push(format!("http://{address}/announce"));
        urls.push(format!("ws://{address}"));
    }
    for address in &skep.tls {
        let port = address.port();
        urls.push(format!("https://localhost:{port}/announce"));
    }
    urls
}

fn probes(urls: &[String], page: SocketAddr, authority: &Path, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        assert_eq!(http_get(page, "/nowhere").0, 404);
        // Whether they succeed is the matter of other tests.
        let mut probe = command();
        probe.args(["probe", "--timeout=1", "--tries=1", "--ca"]).arg(authority).args(urls);
        let _ = probe.output().unwrap();
    }
}

fn datagrams(address: SocketAddr, ended: &AtomicBool) {
    let client = Client::connect(address);
    let silent = Duration::from_millis(1);
    client.socket.set_read_timeout(Some(silent)).unwrap();
    let mut buffer = [0; 2048];
    let mut port = 0; // ever new ones: a peer completes but once
    while !ended.load(Ordering::Relaxed) {
        for torrent in 0..BURST {
            port = port % 60_000 + 1;
            client_of(&client.socket, client.connection_id, (torrent, port), &mut buffer);
        }
        while client.socket.recv(&mut buffer).is_ok() {}
    }
}

/// A leecher's announce, its completion, a connect, a scrape, a forged id, and what is too short.
fn client_of(socket: &UdpSocket, id: u64, (torrent, port): (u8, u16), buffer: &mut [u8]) {
    let finished = Announcement { event: Event::Completed, ..seeder(torrent, port) };
    let transaction = TransactionId([torrent; 4]);
    let send = |bytes: usize, buffer: &[u8]| drop(socket.send(&buffer[..bytes]));
    for announcement in [leecher(torrent, port), finished] {
        send(encode_announce(id, transaction, &announcement, buffer), buffer);
    }
    send(encode_connect(transaction, buffer), buffer);
    send(encode_scrape(id, transaction, &[InfoHash([torrent; 20])], buffer), buffer);
    send(encode_announce(id ^ 8, transaction, &leecher(torrent, port), buffer), buffer);
    send(7, buffer);
}

//! Builds everything, in the order in which it can fail, and runs it until it is told to stop.
//!
//! ```text
//! settings ─▶ log ─▶ keys ─▶ backend ─▶ sockets ─▶ workers udp-0 … udp-N ─▶ control ─▶ ready
//! ```
//!
//! All sockets are bound before any worker starts, so a start that fails has served nobody. From
//! the ready line on, a worker that fails ends the process: it is never half alive.

mod backend;
mod control;
mod error;
mod exporter;
mod log;
mod options;
mod reload;
mod sockets;
mod state;
mod workers;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::{Config, Source};
use crate::store::{self, Store};
use crate::sys::clock::Clock;
use crate::sys::socket::BoundUdp;
use exporter::{Exporter, WatchedSocket};

pub use error::StartError;

/// Serves until SIGTERM or SIGINT. Blocks.
///
/// # Errors
/// [`StartError`] where the configuration is wrong, the host does not grant what it asks for, or a
/// worker breaks later.
pub fn run(source: Source) -> Result<(), StartError> {
    let base = control::Base::new()?;
    let config = source.load()?;
    let level = log::start(options::log(&config));
    end_with_any_panic();
    raise_descriptor_limit();
    let keys = options::keys(&config)?;
    if let Some(warning) = &keys.warning {
        tracing::warn!("{warning}");
    }
    tracing::info!(target: log::OPERATOR, origin = keys.origin, "connection-id key");
    let shared = workers::Shared {
        store: Arc::new(Store::new(store::Options::default())),
        tracker: Arc::new(ArcSwap::from_pointee(options::tracker(&config))),
        ids: Arc::new(ArcSwap::from_pointee(options::connection_ids(&config, &keys))),
        clock: Clock::start(),
    };
    let reloader = reload::Reloader { source, config, keys, level, shared };
    let control = assemble(reloader)?;
    let thread = std::thread::Builder::new().name("control".into());
    let thread = thread
        .spawn(move || control::run(base, control))
        .map_err(|error| StartError::lacking("cannot start a thread", &error))?;
    thread.join().unwrap_or_else(|_| Err(StartError::Failed("the control thread broke".into())))
}

/// Checks what a start would check without binding or creating anything: settings, and the key
/// that the environment or they name.
///
/// # Errors
/// [`StartError`] with the first thing that is wrong.
pub fn check(source: &Source) -> Result<(), StartError> {
    let config = source.load()?;
    let in_environment = state::Environment::of_process().key.is_some();
    if in_environment || !config.udp.key_file.is_empty() {
        options::keys(&config)?;
    }
    Ok(())
}

/// Binds sockets and starts workers.
fn assemble(reloader: reload::Reloader) -> Result<control::Control, StartError> {
    let config = &reloader.config;
    let choice = backend::choose(config.server.io)?;
    let cpus = workers::placement(config.server.workers)?;
    let buffer_bytes = usize::try_from(config.udp.receive_buffer.0).unwrap_or(usize::MAX);
    let (admin, admin_address) = bind_admin(config)?;
    let sockets = sockets::bind(config.udp_listen(), &cpus, buffer_bytes)?;
    let watched = watch(&sockets.by_worker)?;
    let mut ready_line = String::from("ready");
    for address in &sockets.addresses {
        ready_line += &format!(" udp={address}");
    }
    let (io, workers) = (choice.backend.label(), cpus.len());
    ready_line += &format!(" admin={admin_address} io={io} workers={workers}");
    let workers =
        workers::Workers::start(&reloader.shared, choice.backend, &cpus, sockets.by_worker)?;
    let exporter = Exporter::new(workers.counters.clone(), watched, choice.info);
    Ok(control::Control { workers, exporter, reloader, admin, ready_line })
}

/// Second handles on all sockets, to read the kernel's figures from.
fn watch(by_worker: &[Vec<BoundUdp>]) -> Result<Vec<WatchedSocket>, StartError> {
    let all = by_worker.iter().enumerate().flat_map(|(n, them)| them.iter().map(move |it| (n, it)));
    all.map(|(worker, it)| {
        let socket = it.socket().try_clone();
        let socket =
            socket.map_err(|error| StartError::lacking("cannot duplicate a socket", &error))?;
        Ok(WatchedSocket { worker, family: it.family(), socket })
    })
    .collect()
}

/// Binds the admin listener.
fn bind_admin(config: &Config) -> Result<(TcpListener, SocketAddr), StartError> {
    let asked = config.admin.listen;
    let bind = || {
        let listener = TcpListener::bind(asked)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bind().map_err(|error| StartError::listening("tcp (admin)", asked, &error))
}

/// A panic anywhere ends the process, whatever the build profile says.
fn end_with_any_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

/// Each socket takes two descriptors, each connection one; the soft limit is often 1024.
fn raise_descriptor_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}

//! Builds everything, in the order in which it can fail.
//!
//! ```text
//! settings ─▶ log ─▶ keys ─▶ backend ─▶ sockets ─▶ workers ─▶ control ─▶ ready
//!                                                  udp-0 … udp-N
//!                                                  tcp-0 … tcp-N
//! ```
//!
//! All sockets are bound before any worker starts, so a start that fails has served no client. From
//! the ready line on, a worker that fails ends the process: it never serves with only some of its
//! workers.

mod backend;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::access::mode::Mode;
use crate::access_store::AccessManager;
use crate::config::{Config, ConfigFinding, ConfigPlace, ConfigReport, SettingsSource};
use crate::server::cluster::{ClusterControl, ClusterOptions};
use crate::server::context::AppContext;
use crate::server::control::ready_line::ReadyLine;
use crate::server::control::reload::Reloader;
use crate::server::control::service_manager::ServiceManager;
use crate::server::control::{self, Control, ControlRuntime};
use crate::server::metrics::Metrics;
use crate::server::metrics::sources::{MetricInputs, WatchedSocket};
use crate::server::sockets::bind::{self, Sockets};
use crate::server::sockets::bind_retry::BindRetry;
use crate::server::sockets::handover::{self, Predecessor};
use crate::server::sockets::inherited::{BindPlace, InheritedSockets, OwnedSockets, SocketKind};
use crate::server::sockets::listeners::BoundListener;
use crate::server::sockets::stream_listeners::StreamListeners;
use crate::server::state_directory::KeyWarning;
use crate::server::workers::datagram::Workers;
use crate::server::workers::stream::Streams;
use crate::server::{StartError, check, confine, end_with_any_panic, log, options, tls, workers};
use crate::store::Store;
use crate::sys::allocator::restrain_huge_pages;
use crate::sys::identity::keep_files_private;
use crate::sys::signals::ignore_meaningless;
use crate::sys::socket::BoundUdp;

/// Builds everything and serves until the end. Blocks.
///
/// # Errors
/// As [`crate::server::run`].
pub(crate) fn serve(source: SettingsSource, take_over: bool) -> Result<(), StartError> {
    let inherited_sockets = InheritedSockets::of_process()?;
    // Reads a pipe to its end, so it comes before signals are caught: a signal must be able to end
    // it.
    let report = source.judge();
    let prepared = prepare(source, &report, inherited_sockets, take_over);
    let Prepared { base, reloader, choice, inherited_sockets, partners } =
        prepared.map_err(|error| check::with_all_faults(error, report))?;
    let memory = reloader.context.memory.clone();
    let control = assemble(reloader, choice, inherited_sockets, partners)?;
    let lacking = |error| StartError::lacking("cannot start a thread", &error);
    let _looking = memory.start().map_err(lacking)?;
    let thread = std::thread::Builder::new().name("control".into());
    let thread = thread.spawn(move || control::run(base, control)).map_err(lacking)?;
    thread.join().unwrap_or_else(|_| Err(control_panicked()))
}

/// All that is made before sockets are bound.
struct Prepared {
    base: ControlRuntime,
    reloader: Reloader,
    choice: backend::Choice,
    inherited_sockets: InheritedSockets,
    partners: SocketPartners,
}

/// Reads everything that the settings name. A failure here may be a fault of the configuration.
fn prepare(
    source: SettingsSource,
    report: &ConfigReport,
    mut inherited_sockets: InheritedSockets,
    take_over: bool,
) -> Result<Prepared, StartError> {
    let config = report.clone().into_config()?;
    let base = ControlRuntime::new()?;
    let level = log::start(options::log(&config));
    log_start(&source, take_over);
    let manager = ServiceManager::of_process();
    settle_process()?;
    check::warnings(report).iter().for_each(log_warning);
    let user = confine::user_of(&config)?;
    confine::create_state_directory(user.as_ref(), options::state_home(&config).as_deref().ok());
    let cluster = ClusterOptions::read(&config)?;
    let keys = options::keys_as(user.as_ref(), &config, cluster.as_ref())?;
    keys.warning.iter().for_each(KeyWarning::log);
    tracing::info!(target: log::OPERATOR, origin = keys.origin, "connection-id key loaded");
    let choice = backend::choose(config.server.io)?;
    let tls = options::tls(&config).map(tls::Tls::start).transpose()?;
    // From here to the end of `context`, the state directory is accessed as its user.
    let acting = confine::act_as(user.as_ref())?;
    let mut was_warned = keys.made_up;
    let snapshots = Arc::new(options::snapshots(&config, &mut was_warned)?);
    let mut predecessor = None;
    if take_over {
        // From here on the predecessor waits for this process, and only one of them has the
        // database open.
        let path = options::handover_path(&config);
        let path = path.map_err(|error| StartError::Failed(error.to_string()))?;
        let users = handover::trusted_users(&config.server.user);
        let (found, sockets) = Predecessor::ask(&path, &users)?;
        (predecessor, inherited_sockets) = (Some(found), sockets);
        snapshots.wait_for_predecessor();
    }
    let store = Store::new(options::store(&config));
    let access_manager = open_access(&config, &mut was_warned)?;
    let token = options::admin_token(&config, was_warned, None);
    let live = options::live(&config, &keys, token);
    let history = options::history(&config, was_warned);
    let fingerprint = options::fingerprint(&config, &keys);
    let context = AppContext {
        cluster: Arc::new(ClusterControl::new(cluster, fingerprint)),
        history: Arc::new(history),
        certificate: tls.as_ref().map(|it| it.figures.clone()).unwrap_or_default(),
        ..AppContext::new(store, access_manager, live, snapshots)
    };
    drop(acting);
    prepare_for_sessions(&context);
    let confinement = Default::default();
    let reloader = Reloader { source, config, keys, level, context, tls, confinement };
    let partners = SocketPartners { manager, predecessor };
    Ok(Prepared { base, reloader, choice, inherited_sockets, partners })
}

/// Logs which program starts, and with which settings.
fn log_start(source: &SettingsSource, take_over: bool) {
    tracing::info!(
        target: log::OPERATOR,
        version = %env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        config = source.file.as_ref().map(|path| tracing::field::display(path.display())),
        take_over = take_over.then_some(true),
        "skep starting"
    );
}

/// Logs a warning that `skep check` prints, with its parts as fields.
fn log_warning(finding: &ConfigFinding) {
    let place = Some(&finding.place).filter(|it| **it != ConfigPlace::Default);
    tracing::warn!(
        target: log::OPERATOR,
        place = place.map(tracing::field::display),
        key = finding.key.as_deref(),
        value = finding.value.as_deref(),
        problem = finding.message,
        remedy = finding.advice(),
        "configuration doubtful"
    );
}

fn control_panicked() -> StartError {
    StartError::Failed("the control thread panicked; remedy: report this with the log".into())
}

/// Sets what applies to the whole process.
fn settle_process() -> Result<(), StartError> {
    end_with_any_panic();
    keep_files_private();
    ignore_meaningless().map_err(|error| StartError::lacking("cannot ignore signals", &error))?;
    restrain_huge_pages();
    raise_descriptor_limit();
    Ok(())
}

/// Makes sure that sessions of passkeys can be restored, and gives them their part of memory.
fn prepare_for_sessions(context: &AppContext) {
    let access = context.access_manager.access();
    if context.snapshots.is_restoring() {
        access.passkeys().await_sessions();
    }
    if access.mode() == Mode::Private {
        context.memory.count_sessions(access.passkeys().session_bytes().clone());
    }
}

/// Opens lists and registrations. If there is no place to keep them, a warning has the reason,
/// unless the operator `was_warned` about the state directory before.
fn open_access(config: &Config, was_warned: &mut bool) -> Result<AccessManager, StartError> {
    let access = options::access(config);
    if let Err(reason) = &access.state
        && !std::mem::replace(was_warned, true)
    {
        tracing::warn!(
            error = %reason,
            remedy = "set server.state_dir to a directory that this user may write",
            "access lists without a configured file are empty"
        );
    }
    Ok(AccessManager::open(&access)?)
}

/// Other processes that use the sockets of this one.
struct SocketPartners {
    manager: ServiceManager,
    predecessor: Option<Predecessor>,
}

/// Binds sockets and starts workers.
fn assemble(
    mut reloader: Reloader,
    choice: backend::Choice,
    mut inherited_sockets: InheritedSockets,
    outside: SocketPartners,
) -> Result<Control, StartError> {
    let config = &reloader.config;
    let cpus = workers::placement(config.server.workers)?;
    let mut retry = BindRetry::new();
    let (admin, admin_address) = bind_admin(config, &mut inherited_sockets, &mut retry)?;
    let (sockets, listeners) = bind(config, &cpus, &mut inherited_sockets, &mut retry)?;
    let mut owned = OwnedSockets::new(inherited_sockets.managed(), outside.manager.is_there());
    list(&mut owned, &sockets, &listeners, &admin)
        .map_err(|error| StartError::lacking("cannot duplicate a socket", &error))?;
    let gone = close(inherited_sockets);
    let (xdp_options, denied) = reloader.context.xdp_inputs();
    reloader.context.xdp.prepare(
        (cpus.len(), choice.backend),
        &sockets.addresses,
        xdp_options,
        denied,
    );
    let user = confine::user_of(config)?;
    let state = {
        // Root may lack the capability to enter a directory of another user.
        let _acting = confine::act_as(user.as_ref())?;
        options::state_home(config)
    };
    reloader.confinement = confine::confine(config, state.as_deref().ok())?;
    let watched = watch(&sockets.by_worker)?;
    let streams = |of: &[BoundListener]| of.iter().map(|it| it.address).collect::<Vec<_>>();
    let (io, count) = (choice.backend.label(), cpus.len());
    let ready_line = ReadyLine {
        udp: sockets.addresses.clone(),
        tcp: streams(&listeners.plain),
        tls: streams(&listeners.tls),
        admin: admin_address,
        xdp: Vec::new(),
        io,
        workers: count,
    };
    let (ends, ended) = mpsc::unbounded_channel();
    let (backend, context) = (choice.backend, &reloader.context);
    let workers = Workers::start(context, backend, &cpus, sockets.by_worker, &ends)?;
    let tls = reloader.tls.as_ref().map(|it| it.config.clone());
    let how = (count, outside.predecessor.is_some());
    let streams = Streams::start(config, context, backend, listeners, tls, &ends, how)?;
    let counters = (workers.counters.clone(), streams.counters.clone());
    let tallies = workers.tallies.iter().chain(&streams.tallies).cloned().collect();
    let sources = MetricInputs::new(context.clone(), counters, tallies, watched, choice.info);
    let SocketPartners { manager, predecessor } = outside;
    manager.keep(&owned, &gone);
    let owned = Arc::new(owned);
    Ok(Control {
        workers,
        streams,
        ended,
        metrics: Metrics::new(sources),
        reloader,
        admin,
        ready_line,
        manager,
        predecessor,
        owned,
    })
}

/// Closes inherited sockets that are not configured any more. Returns their names in the service
/// manager's store.
fn close(inherited_sockets: InheritedSockets) -> Vec<String> {
    let (places, names) = inherited_sockets.close();
    for place in places {
        let socket = place.to_string();
        tracing::warn!(target: log::OPERATOR, %socket, "passed socket closed: not configured");
    }
    names
}

/// Second handles on all sockets, to hand them over.
fn list(
    owned: &mut OwnedSockets,
    sockets: &Sockets,
    listeners: &StreamListeners,
    admin: &TcpListener,
) -> std::io::Result<()> {
    for &address in &sockets.addresses {
        owned.add(SocketKind::Udp, &BindPlace::At(address), sockets.of(address))?;
    }
    listeners.list_in(owned)?;
    owned.add_tcp(SocketKind::Admin, admin.local_addr()?, std::slice::from_ref(admin))
}

/// Binds what is served: UDP and TCP on the same addresses, unless one has its own or is disabled.
fn bind(
    config: &Config,
    cpus: &[Option<usize>],
    inherited_sockets: &mut InheritedSockets,
    retry: &mut BindRetry,
) -> Result<(Sockets, StreamListeners), StartError> {
    let buffer_bytes = usize::try_from(config.udp.receive_buffer.0).unwrap_or(usize::MAX);
    let (sockets, plain) = if config.shares_addresses() {
        bind::bind_both(&config.server.listen, cpus, buffer_bytes, inherited_sockets, retry)?
    } else {
        let udp = config.udp_listen();
        let sockets = bind::bind(udp, cpus, buffer_bytes, inherited_sockets, retry)?;
        let plain = config.http_listen();
        (sockets, bind::bind_streams(plain, cpus.len(), SocketKind::Tcp, inherited_sockets, retry)?)
    };
    Ok((sockets, StreamListeners::bind(config, plain, cpus.len(), inherited_sockets, retry)?))
}

/// Second handles on all sockets, to read the kernel's counters from.
fn watch(by_worker: &[Vec<BoundUdp>]) -> Result<Vec<WatchedSocket>, StartError> {
    let all = by_worker.iter().enumerate().flat_map(|(n, them)| them.iter().map(move |it| (n, it)));
    all.map(|(worker, bound)| {
        let socket = bound.socket().try_clone();
        let socket =
            socket.map_err(|error| StartError::lacking("cannot duplicate a socket", &error))?;
        Ok(WatchedSocket { worker, family: bound.family(), socket })
    })
    .collect()
}

/// Binds the admin listener, or takes the inherited one.
fn bind_admin(
    config: &Config,
    inherited_sockets: &mut InheritedSockets,
    retry: &mut BindRetry,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let asked = config.admin.listen;
    let bind = || {
        let listener = match inherited_sockets.take(SocketKind::Admin, asked).pop() {
            Some(inherited) => inherited.into(),
            None => TcpListener::bind(asked)?,
        };
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    let bound = retry.bind(|| format!("tcp (admin) {asked}"), bind);
    bound.map_err(|error| StartError::listening("tcp (admin)", asked, &error))
}

/// Each socket takes two descriptors, each connection one; the soft limit is often 1024.
fn raise_descriptor_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::debug!(%error, "limit on open files not raised");
    }
}

//! A connection to a broker, and the reasons of failures.
//!
//! A connection that is lost is not used again, although the library would make another one: while
//! it does, `publish` waits, what is published meanwhile is sent late, and the reason of a failure
//! is not known. Here each connection is a new one, with the files of TLS as they are then.
//! Messages that the library drops, because they are not taken fast enough, are not noticed here:
//! the numbers of frames show it.

use std::error::Error as _;
use std::future::{pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, Message, ServerAddr, Subscriber,
};
use futures_util::{FutureExt as _, Stream as _};
use hyper::body::Bytes;
use tokio::sync::mpsc;

use super::options::{ClusterOptions, Login};

/// Messages that wait for the socket: 4 MiB at most.
const SENDING_MAX: usize = 64;

/// Messages of one subscription that wait to be taken: 32 MiB of full frames.
const RECEIVING_MAX: usize = 1024;

/// How often a broker is asked whether it is there. Two questions without an answer end the
/// connection.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long a broker may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Most events that wait to be taken. They are few.
const EVENTS_MAX: usize = 64;

/// The reason of a failure, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConnectionFailure {
    pub(super) cause: String,
    pub(super) remedy: String,
}

/// What a connection brings.
pub(super) enum Activity {
    /// A message of a subscription.
    Message(Message),
    /// The broker refuses something, and the connection stays.
    Denied(String),
    /// The connection is gone.
    Lost(ConnectionFailure),
}

/// Whether a message was taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Publication {
    /// It will be sent.
    Taken,
    /// Not yet: the send queue is full.
    Full,
    /// It never will be.
    Refused(String),
}

/// A connection.
pub(super) struct Connection {
    client: Client,
    subscribers: Vec<Subscriber>,
    events: mpsc::Receiver<Event>,
    /// The latest error of the broker.
    error: Option<String>,
    /// The broker's name and version.
    pub(super) broker: String,
}

impl Connection {
    /// Connects to one of the brokers, and subscribes.
    ///
    /// # Errors
    /// Why that failed, with a remedy.
    pub(super) async fn open(
        options: ClusterOptions,
        subjects: Vec<String>,
    ) -> Result<Self, ConnectionFailure> {
        let (event_sender, events) = mpsc::channel(EVENTS_MAX);
        let addresses: Result<Vec<ServerAddr>, io::Error> =
            options.servers.iter().map(|it| it.parse()).collect();
        let addresses = addresses.map_err(|it| failure(&it, "correct cluster.servers"))?;
        let attempt = connect_options(&options)?
            .event_callback(move |event| {
                let _ = event_sender.try_send(event);
                std::future::ready(())
            })
            .connect(addresses);
        let client = attempt.await.map_err(|it| explained(&it, &options))?;
        let mut subscribers = Vec::with_capacity(subjects.len());
        let lost = |error: &dyn std::fmt::Display| failure(error, REACH);
        for subject in subjects {
            subscribers.push(client.subscribe(subject).await.map_err(|it| lost(&it))?);
        }
        client.flush().await.map_err(|it| lost(&it))?;
        let info = client.server_info();
        let broker = format!("{} {}", info.server_name, info.version);
        Ok(Self { client, subscribers, events, error: None, broker })
    }

    /// Waits for something. Nothing is lost if the wait is given up.
    pub(super) async fn next(&mut self) -> Activity {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Activity> {
        while let Poll::Ready(event) = self.events.poll_recv(context) {
            if let Some(activity) = self.note(event) {
                return Poll::Ready(activity);
            }
        }
        // In the order of the subscriptions, changes first: a block of swarms that overtook the
        // changes before it would make downloads count again.
        for subscriber in &mut self.subscribers {
            match Pin::new(subscriber).poll_next(context) {
                Poll::Ready(Some(message)) => return Poll::Ready(Activity::Message(message)),
                Poll::Ready(None) => return Poll::Ready(self.lost()),
                Poll::Pending => {}
            }
        }
        Poll::Pending
    }

    /// What an event means.
    fn note(&mut self, event: Option<Event>) -> Option<Activity> {
        match event {
            Some(Event::ServerError(error)) => {
                let text = error.to_string();
                self.error = Some(text.clone());
                Some(Activity::Denied(text))
            }
            Some(Event::Disconnected | Event::Closed) | None => Some(self.lost()),
            _ => None,
        }
    }

    /// The loss of this connection.
    fn lost(&mut self) -> Activity {
        let cause =
            self.error.take().unwrap_or_else(|| "the broker closed it, or does not respond".into());
        Activity::Lost(ConnectionFailure { cause, remedy: REACH.into() })
    }

    /// Whether it is gone, although no event said so.
    pub(super) fn is_gone(&self) -> bool {
        self.client.connection_state() == State::Disconnected
    }

    /// Publishes a message, without waiting.
    pub(super) fn publish(&self, subject: &str, payload: &Bytes) -> Publication {
        let sent = self.client.publish(subject.to_owned(), payload.clone()).now_or_never();
        match sent {
            Some(Ok(())) => Publication::Taken,
            Some(Err(error)) => Publication::Refused(error.to_string()),
            None => Publication::Full,
        }
    }

    /// Waits until everything is sent that was published.
    pub(super) async fn flush(&self) {
        let _ = self.client.flush().await;
    }
}

/// Waits for what a connection brings; for ever without one.
pub(super) async fn next_of(connection: &mut Option<Connection>) -> Activity {
    match connection {
        Some(connection) => connection.next().await,
        None => pending().await,
    }
}

/// The library's options.
fn connect_options(options: &ClusterOptions) -> Result<ConnectOptions, ConnectionFailure> {
    let login = match &options.login {
        Login::None => ConnectOptions::new(),
        Login::User(user, password) => {
            ConnectOptions::with_user_and_password(user.clone(), password.text())
        }
        Login::Nkey(seed) => ConnectOptions::with_nkey(seed.text()),
        Login::Credentials(text) => ConnectOptions::with_credentials(&text.text())
            .map_err(|it| failure(&it, "correct the file in cluster.credentials_file"))?,
    };
    let mut all = login
        .name(format!("skep {} {}", options.name, options.node))
        .no_echo()
        .client_capacity(SENDING_MAX)
        .subscription_capacity(RECEIVING_MAX)
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_MAX)
        .ignore_discovered_servers() // their certificates and networks may be others
        .max_reconnects(1);
    if options.needs_tls() {
        let config = options.tls.config().map_err(|error| {
            let mut faults = error.faults.into_iter();
            let fault = faults.next().map(|it| (it.message, it.remedy));
            let (cause, remedy) = fault.unwrap_or_default();
            ConnectionFailure { cause, remedy: remedy.unwrap_or_default() }
        })?;
        all = all.tls_client_config(config);
    }
    Ok(all)
}

/// The remedy if a broker does not respond.
const REACH: &str =
    "check that the brokers in cluster.servers run, and that this host reaches them";

fn failure(cause: &dyn std::fmt::Display, remedy: &str) -> ConnectionFailure {
    ConnectionFailure { cause: cause.to_string(), remedy: remedy.into() }
}

/// Explains a failed attempt to connect.
fn explained(error: &ConnectError, options: &ClusterOptions) -> ConnectionFailure {
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_io = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = inner.downcast_ref::<rustls::Error>();
        if let Some(tls) = tls.or_else(|| inner_io.and_then(|it| it.downcast_ref())) {
            return failure(&format!("TLS: {tls}"), REMEDY_OF_TLS);
        }
        source = inner.source();
    }
    let remedy = match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            return failure(error, remedy_of_login(&options.login));
        }
        ConnectErrorKind::Dns => "correct the names in cluster.servers, or this host's resolver",
        ConnectErrorKind::Tls => REMEDY_OF_TLS,
        _ => REACH,
    };
    failure(error, remedy)
}

/// The remedy if TLS fails.
const REMEDY_OF_TLS: &str = "set cluster.ca to the file of the brokers' authority, and write their \
                             names in cluster.servers as their certificates have them";

fn remedy_of_login(login: &Login) -> &'static str {
    match login {
        Login::None => {
            "the brokers require credentials: set cluster.user and cluster.password_file, \
             cluster.nkey_file or cluster.credentials_file"
        }
        Login::User(..) => "correct cluster.user and the password in cluster.password_file",
        Login::Nkey(_) => "add the public key of cluster.nkey_file to the brokers' users",
        Login::Credentials(_) => "renew the file in cluster.credentials_file (nsc)",
    }
}

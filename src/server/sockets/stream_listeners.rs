//! All listeners of the stream workers, and their distribution among the workers.

use std::io;
use std::path::Path;

use crate::config::Config;
use crate::server::StartError;
use crate::server::confine;
use crate::server::sockets::bind::bind_streams;
use crate::server::sockets::bind_retry::BindRetry;
use crate::server::sockets::inherited::{BindPlace, InheritedSockets, OwnedSockets, SocketKind};
use crate::server::sockets::listeners::{BoundListener, UnixSocket};
use crate::worker::stream::Listener;

/// The listeners of the workers.
pub(crate) struct StreamListeners {
    /// HTTP and WebSocket.
    pub(crate) plain: Vec<BoundListener>,
    /// HTTP and WebSocket over TLS.
    pub(crate) tls: Vec<BoundListener>,
    /// HTTP and WebSocket from this host's reverse proxies.
    pub(crate) unix: Option<UnixSocket>,
}

impl StreamListeners {
    /// Binds the configured listeners besides `plain`.
    pub(crate) fn bind(
        config: &Config,
        plain: Vec<BoundListener>,
        workers: usize,
        inherited_sockets: &mut InheritedSockets,
        retry: &mut BindRetry,
    ) -> Result<Self, StartError> {
        let tls = config.tls_listen();
        let tls = bind_streams(tls, workers, SocketKind::Tls, inherited_sockets, retry)?;
        let path = Path::new(config.unix_socket());
        let is_managed = inherited_sockets.managed().contains(&BindPlace::Path(path.to_owned()));
        let unix = match inherited_sockets.take_path(path) {
            _ if config.unix_socket().is_empty() => None,
            Some(socket) => Some(UnixSocket::adopt(path, socket, is_managed)),
            None => {
                let user = confine::user_of(config)?;
                Some(UnixSocket::bind(path, user.as_ref(), retry)?)
            }
        };
        Ok(Self { plain, tls, unix })
    }

    /// Adds second handles on all listeners to those that can be handed over.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(crate) fn list_in(&self, owned: &mut OwnedSockets) -> io::Result<()> {
        for (kind, all) in [(SocketKind::Tcp, &self.plain), (SocketKind::Tls, &self.tls)] {
            for listener in all {
                owned.add_tcp(kind, listener.address, &listener.by_worker)?;
            }
        }
        if let Some(socket) = &self.unix {
            owned.add(
                SocketKind::Unix,
                &BindPlace::Path(socket.path.clone()),
                [&socket.listener],
            )?;
        }
        Ok(())
    }

    /// Distributes the listeners among the workers.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(crate) fn deal(&mut self, workers: usize) -> io::Result<Vec<Vec<Listener>>> {
        let mut hands: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::new()).collect();
        for (bound, kind) in
            [(&mut self.plain, Listener::Plain as fn(_) -> _), (&mut self.tls, Listener::Tls)]
        {
            for bound_listener in bound.drain(..) {
                for (index, listener) in bound_listener.by_worker.into_iter().enumerate() {
                    hands[index % workers].push(kind(listener));
                }
            }
        }
        // Unix sockets have no SO_REUSEPORT: all workers accept from the same queue.
        if let Some(unix) = &self.unix {
            for hand in &mut hands {
                hand.push(Listener::Unix(unix.listener.try_clone()?));
            }
        }
        Ok(hands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::sockets::listeners;

    #[test]
    fn every_worker_is_dealt_each_address_and_the_unix_socket() {
        let folder = tempfile::tempdir().unwrap();
        let bind = || {
            let at = "127.0.0.1:0".parse().unwrap();
            let (mut inherited_sockets, mut retry) =
                (InheritedSockets::default(), BindRetry::none());
            let bind = listeners::bind;
            bind(at, 3, SocketKind::Tcp, false, &mut inherited_sockets, &mut retry).unwrap()
        };
        let path = folder.path().join("skep.sock");
        let unix = UnixSocket::bind(&path, None, &mut BindRetry::none()).unwrap();
        let mut listeners =
            StreamListeners { plain: vec![bind()], tls: vec![bind()], unix: Some(unix) };
        let hands = listeners.deal(3).unwrap();
        assert_eq!(hands.len(), 3);
        for hand in hands {
            assert!(matches!(
                hand.as_slice(),
                [Listener::Plain(_), Listener::Tls(_), Listener::Unix(_)]
            ));
        }
    }
}

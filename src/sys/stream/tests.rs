//! Runs one suite of tests on both backends, on real sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::epoll::Epoll;
use super::uring::UringNetwork;
use super::*;
use crate::sys::probe::probe;

fn tcp() -> (Listening, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (Listening::Tcp(listener), address)
}

#[test]
fn a_panic_of_tokio_uring_comes_with_a_remedy_and_ours_does_not() {
    let (tell, told) = std::sync::mpsc::channel();
    let here = std::thread::current().id();
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match panic.location() {
        Some(location) if std::thread::current().id() == here => {
            tell.send(location.file().into()).unwrap();
        }
        _ => print(panic), // a panic of another test
    }));
    // Outside of a runtime it fails as it does without memory.
    let (socket, _far) = UnixStream::pair().unwrap();
    let broken = std::panic::catch_unwind(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let socket = tokio_uring::net::UnixStream::from_std(socket);
        runtime.block_on(async { Stream::read(&socket, Vec::with_capacity(1)).await.0 })
    });
    drop(std::panic::take_hook());
    assert!(broken.is_err());
    let file: String = told.recv().unwrap();
    assert!(uring::remedy(&file).is_some(), "{file}");
    assert!(uring::remedy(file!()).is_none());
}

/// Runs a test on each backend that this host allows.
macro_rules! on_each_network {
    ($($test:ident)+) => { $(
        #[test]
        fn $test() {
            cases::$test::<Epoll>();
            match probe() {
                Ok(()) => cases::$test::<UringNetwork>(),
                Err(error) => eprintln!("skipped: {error}"),
            }
        }
    )+ };
}

on_each_network! {
    bytes_go_both_ways_and_reads_append
    a_long_write_arrives_whole
    shutting_down_ends_a_read_under_way
    stopping_ends_an_accept_under_way
    leaving_ends_an_accept_and_not_the_listener
    waiting_for_a_connection_takes_none
    connections_send_small_responses_at_once
    unix_sockets_work_alike
}

mod cases {
    use super::*;

    async fn next<N: Network>(
        acceptor: &Acceptor<N>,
    ) -> io::Result<(Socket<N>, Option<SocketAddr>)> {
        loop {
            acceptor.ready().await?;
            match acceptor.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    pub(super) fn waiting_for_a_connection_takes_none<N: Network>() {
        let (listener, address) = tcp();
        let Listening::Tcp(listener) = listener else { unreachable!() };
        let twin = listener.try_clone().unwrap();
        let taken = N::run(async {
            let acceptor = Acceptor::<N>::new(Listening::Tcp(listener)).unwrap();
            let client = TcpStream::connect(address).unwrap();
            acceptor.ready().await.unwrap();
            acceptor.ready().await.unwrap();
            assert_eq!(twin.accept().unwrap().1, client.local_addr().unwrap());
            acceptor.accept().map(drop)
        });
        assert_eq!(taken.unwrap().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    pub(super) fn bytes_go_both_ways_and_reads_append<N: Network>() {
        let (listener, address) = tcp();
        let client = std::thread::spawn(move || {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(b"one").unwrap();
            let mut response = [0; 3];
            client.read_exact(&mut response).unwrap();
            (response, client.local_addr().unwrap())
        });
        let source = N::run(async {
            let acceptor = Acceptor::<N>::new(listener).unwrap();
            let (socket, source) = next(&acceptor).await.unwrap();
            let mut buffer = Vec::with_capacity(64);
            buffer.extend_from_slice(b"zero ");
            let (count, buffer) = socket.read(buffer).await;
            assert_eq!((count.unwrap(), &buffer[..]), (3, &b"zero one"[..]));
            socket.write_all(b"two".to_vec()).await.0.unwrap();
            let (end, _) = socket.read(buffer).await;
            assert_eq!(end.unwrap(), 0);
            source
        });
        let (response, address) = client.join().unwrap();
        assert_eq!((&response, source.unwrap()), (b"two", Some(address)));
    }

    pub(super) fn a_long_write_arrives_whole<N: Network>() {
        let (listener, address) = tcp();
        let sent: Vec<u8> = (0..1 << 22).map(|it: u32| it.to_le_bytes()[1]).collect();
        let client = std::thread::spawn(move || {
            let mut received = Vec::new();
            TcpStream::connect(address).unwrap().read_to_end(&mut received).unwrap();
            received
        });
        let (result, back) = N::run(async {
            let acceptor = Acceptor::<N>::new(listener).unwrap();
            let (socket, _) = next(&acceptor).await.unwrap();
            socket.write_all(sent.clone()).await
        })
        .unwrap();
        result.unwrap();
        assert!(client.join().unwrap() == sent && back == sent);
    }

    pub(super) fn shutting_down_ends_a_read_under_way<N: Network>() {
        let (listener, address) = tcp();
        let mut client = TcpStream::connect(address).unwrap();
        let count = N::run(async {
            let acceptor = Acceptor::<N>::new(listener).unwrap();
            let socket = std::rc::Rc::new(next(&acceptor).await.unwrap().0);
            let reader = socket.clone();
            let read = async move { reader.read(Vec::with_capacity(1)).await.0 };
            let reading = tokio::task::spawn_local(read);
            tokio::task::yield_now().await;
            socket.shutdown(Shutdown::Both);
            reading.await.unwrap()
        });
        assert_eq!(count.unwrap().unwrap(), 0);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }

    pub(super) fn stopping_ends_an_accept_under_way<N: Network>() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        for listener in [tcp().0, Listening::Unix(UnixListener::bind(path).unwrap())] {
            let accepted = N::run(async {
                let acceptor = std::rc::Rc::new(Acceptor::<N>::new(listener).unwrap());
                let waiting = acceptor.clone();
                let accept = async move { next(&waiting).await.map(|_| ()) };
                let accepting = tokio::task::spawn_local(accept);
                tokio::task::yield_now().await;
                acceptor.stop();
                accepting.await.unwrap()
            });
            assert!(accepted.unwrap().is_err());
        }
    }

    pub(super) fn leaving_ends_an_accept_and_not_the_listener<N: Network>() {
        let (listener, address) = tcp();
        let Listening::Tcp(listener) = listener else { unreachable!() };
        let twin = listener.try_clone().unwrap();
        let (first, second) = N::run(async {
            let acceptor = std::rc::Rc::new(Acceptor::<N>::new(Listening::Tcp(listener)).unwrap());
            let _client = TcpStream::connect(address).unwrap();
            let first = next(&acceptor).await.map(|_| ());
            let waiting = acceptor.clone();
            let accept = async move { next(&waiting).await.map(|_| ()) };
            let accepting = tokio::task::spawn_local(accept);
            tokio::task::yield_now().await;
            acceptor.leave().await;
            (first, accepting.await.unwrap())
        })
        .unwrap();
        assert!(first.is_ok() && second.is_err());
        let late = TcpStream::connect(address).unwrap();
        twin.set_nonblocking(false).unwrap();
        let source = twin.accept().unwrap().1;
        assert_eq!(source, late.local_addr().unwrap(), "nobody has taken it away");
    }

    pub(super) fn connections_send_small_responses_at_once<N: Network>() {
        let (listener, address) = tcp();
        let Listening::Tcp(listener) = listener else { unreachable!() };
        let twin = listener.try_clone().unwrap();
        drop(N::run(async { Acceptor::<N>::new(Listening::Tcp(listener)).map(drop) }));
        twin.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(address).unwrap();
        assert!(twin.accept().unwrap().0.nodelay().unwrap(), "inherited");
    }

    pub(super) fn unix_sockets_work_alike<N: Network>() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = Listening::Unix(UnixListener::bind(&path).unwrap());
        let client = std::thread::spawn(move || {
            let mut client = UnixStream::connect(path).unwrap();
            client.write_all(b"ping").unwrap();
            let mut response = String::new();
            client.read_to_string(&mut response).unwrap();
            response
        });
        let source = N::run(async {
            let acceptor = Acceptor::<N>::new(listener).unwrap();
            let (socket, source) = next(&acceptor).await.unwrap();
            let (count, buffer) = socket.read(Vec::with_capacity(4)).await;
            assert_eq!((count.unwrap(), &buffer[..]), (4, &b"ping"[..]));
            socket.write_all(b"pong".to_vec()).await.0.unwrap();
            source
        });
        assert_eq!((client.join().unwrap().as_str(), source.unwrap()), ("pong", None));
    }
}

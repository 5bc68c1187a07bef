//! A little HTTP server for the page that a browser runs WebTorrent in: what the page needs, and
//! where it posts what it says and what it has downloaded. It also tells a browser that never gets
//! as far as the page from a page that fails.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::oneshot;

use super::meeting::PAYLOAD_NAME;

/// More than any download of these tests.
const BODY_BYTES_MAX: usize = 16 << 20;

/// What a page is made of.
pub(super) struct Parts {
    /// The page, which is served as `/`.
    pub(super) page: PathBuf,
    /// WebTorrent's bundle.
    pub(super) bundle: PathBuf,
    /// The torrent.
    pub(super) torrent: PathBuf,
    /// The folder of the file, there or to come.
    pub(super) downloads: PathBuf,
    /// Where to write what the page says.
    pub(super) log: PathBuf,
}

/// How long a browser may take until the page's script runs. It takes a second or two.
pub(super) const LOADING_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a browser that is to load a page in this time, and, if it does not, once more. About one
/// headless Chromium in a hundred never loads anything, which is nothing against the tracker.
pub(crate) fn start_browser<B>(
    page: &Loading,
    time: Duration,
    mut start: impl FnMut(u8) -> B,
) -> B {
    let browser = start(1);
    if page.has_begun_within(time) {
        return browser;
    }
    println!("the browser has not loaded its page within {time:?}: once more");
    drop(browser);
    start(2)
}

/// Whether the script of a page runs.
#[derive(Clone, Default)]
pub(crate) struct Loading(Arc<(Mutex<bool>, Condvar)>);

impl Loading {
    /// The script asks for something.
    pub(crate) fn begin(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn has_begun_within(&self, time: Duration) -> bool {
        let (has_begun, news) = &*self.0;
        *news.wait_timeout_while(has_begun.lock().unwrap(), time, |it| !*it).unwrap().0
    }
}

/// Serves on loopback until dropped.
pub(crate) struct PageServer {
    /// What the page's script has been seen to do.
    pub(super) loading: Loading,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl PageServer {
    /// Begins to serve.
    pub(super) fn start(parts: Parts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let loading = Loading::default();
        let router = router(parts, loading.clone());
        let thread = thread::spawn(|| serve(listener, router, stopped));
        Self { loading, address, stop: Some(stop), thread: Some(thread) }
    }

    /// Where the page is.
    pub(super) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(listener: TcpListener, router: Router, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::select! {
            result = axum::serve(listener, router).into_future() => result.unwrap(),
            _ = stopped => {}
        }
    });
}

fn router(parts: Parts, loading: Loading) -> Router {
    let payload = parts.downloads.join(PAYLOAD_NAME);
    let arrived = payload.clone();
    let store = |body: Bytes| async move { fs::write(arrived, body).unwrap() };
    let log = Arc::new(Mutex::new(open_log(&parts.log)));
    let write = |line: String| async move {
        writeln!(log.lock().unwrap(), "{line}").unwrap();
    };
    let sent = payload.clone();
    let payload = get(move || async move {
        loading.begin(); // what the script asks for first, whoever has the file
        send("application/octet-stream", &sent)
    });
    let file = |kind: &'static str, path: PathBuf| get(move || async move { send(kind, &path) });
    Router::new()
        .route("/", file("text/html", parts.page))
        .route("/webtorrent.min.js", file("text/javascript", parts.bundle))
        .route("/a.torrent", file("application/x-bittorrent", parts.torrent))
        .route("/payload.bin", payload.post(store))
        .route("/log", axum::routing::post(write))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
}

fn open_log(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

fn send(kind: &'static str, path: &Path) -> Response {
    match fs::read(path) {
        Ok(bytes) => ([(header::CONTENT_TYPE, kind)], bytes).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

//! HTTP on a connection: all requests that one read brought are answered with one write. Nothing
//! more is read before the client has received that write.

use std::io;
use std::net::IpAddr;

use tokio::sync::mpsc;

use super::FrontEnds;
use super::charges;
use super::connection::{Connection, HEAD_BYTES_USUAL};
use super::slots::{Deadlines, NEVER};
use crate::counters::{CloseReason, Transport};
use crate::frontend::http::{FullScrape, HEAD_BYTES_MAX, Outcome, PIECE_BYTES_MAX, ReceiveOutcome};
use crate::frontend::request_summary::RequestSummary;
use crate::frontend::{ConnectionWork, Passkey, Tracker};
use crate::sys::stream::Network;
use crate::time::Now;
use crate::types::{Action, Refusal};

/// Bytes of responses to pipelined requests that are gathered before they are written.
const RESPONSES_BYTES_MAX: usize = 32 * 1024;

/// The largest buffer that is kept between two requests.
const KEPT_BYTES_MAX: usize = 4 * HEAD_BYTES_USUAL;

/// Most pieces of a full scrape that wait to be written.
const PIECES_MAX: usize = 2;

/// What follows HTTP.
pub(super) enum Next {
    /// Nothing.
    Ended(CloseReason),
    /// A WebSocket of a client at `source`, which may have sent a passkey. `input` holds bytes of
    /// it that were received already.
    Upgraded { source: IpAddr, passkey: Option<Box<Passkey>>, input: Vec<u8> },
}

/// What to do after the responses so far have been written.
enum NextStep {
    /// Read more.
    Read,
    /// Continue with what was received.
    GoOn,
    /// Close. `linger` if the client may not expect that: what it still sends is read first.
    Close { linger: bool },
    /// Switch to WebSocket.
    Upgrade(IpAddr, Option<Box<Passkey>>),
    /// Send a body that is produced meanwhile.
    FullScrape(Box<FullScrape>, bool),
}

/// Responds to requests until the connection ends or becomes a WebSocket.
pub(super) async fn serve<N: Network>(connection: &Connection<N>, mut input: Vec<u8>) -> Next {
    loop {
        let mut out = Vec::new();
        connection.set_idle(input.is_empty());
        let (consumed, step) = connection.respond(&input, &mut out);
        input.drain(..consumed);
        if consumed > 0 {
            // While a response is written, only the write deadline applies.
            connection.with_deadlines(|it| it.read = NEVER);
        }
        if !out.is_empty()
            && let Err(reason) = connection.write(out).await
        {
            return Next::Ended(reason);
        }
        match step {
            NextStep::Read => connection.expect_request(&mut input),
            NextStep::GoOn => continue,
            NextStep::Close { linger } => {
                return Next::Ended(connection.close(linger, input).await);
            }
            NextStep::Upgrade(source, passkey) => {
                return Next::Upgraded { source, passkey, input };
            }
            NextStep::FullScrape(body, keep_alive) => {
                match Box::pin(connection.send_full_scrape(body)).await {
                    Ok(()) if keep_alive => continue,
                    Ok(()) => return Next::Ended(connection.close(false, input).await),
                    Err(reason) => return Next::Ended(reason),
                }
            }
        }
        match connection.read_more(input).await {
            Ok(more) => input = more,
            Err(reason) => return Next::Ended(reason),
        }
    }
}

impl<N: Network> Connection<N> {
    /// Handles the requests that are complete. Returns how many bytes of `input` they were.
    fn respond(&self, input: &[u8], out: &mut Vec<u8>) -> (usize, NextStep) {
        let worker = &*self.worker;
        worker.begin_turn();
        let mut front_ends = worker.front_ends.borrow_mut();
        let FrontEnds { tracker, http, .. } = &mut *front_ends;
        let now = worker.now();
        let mut done = 0;
        while done < input.len() {
            if out.len() >= RESPONSES_BYTES_MAX {
                return (done, NextStep::GoOn);
            }
            let start = out.len();
            tracker.take_was_charged();
            match http.handle(tracker, now, self.origin.get(), &input[done..], out) {
                ReceiveOutcome::More => break,
                ReceiveOutcome::Responded { consumed, keep_alive, source, outcome } => {
                    assert!(consumed > 0, "a request is not nothing");
                    done += consumed;
                    let is_paid = self.is_paid(tracker, now, source, outcome);
                    let limited = Outcome::Refused(Refusal::Limited);
                    let outcome = if is_paid { outcome } else { limited };
                    self.count(Transport::Http, source, outcome, || {
                        RequestSummary::of_http(&input[done - consumed..done])
                    });
                    self.set_served();
                    if !is_paid {
                        out.truncate(start);
                        self.decide_ending(CloseReason::Limited);
                        return (done, NextStep::Close { linger: true });
                    }
                    if !keep_alive || worker.is_leaving() || worker.is_stopping() {
                        let linger = matches!(outcome, Outcome::Rejected(_));
                        return (done, NextStep::Close { linger });
                    }
                }
                ReceiveOutcome::Upgraded { consumed, source, passkey } => {
                    if charges::charge(tracker, now, Some(source), ConnectionWork::Request).is_err()
                    {
                        let limited = Outcome::Refused(Refusal::Limited);
                        self.count(Transport::Http, Some(source), limited, || {
                            RequestSummary::of_http(&input[done..done + consumed])
                        });
                        out.truncate(start);
                        self.decide_ending(CloseReason::Limited);
                        return (done + consumed, NextStep::Close { linger: true });
                    }
                    return (done + consumed, NextStep::Upgrade(source, passkey.map(Box::new)));
                }
                ReceiveOutcome::FullScrape { consumed, keep_alive, source, encoding, chunked } => {
                    let outcome = Outcome::Answered(Action::Scrape);
                    self.count(Transport::Http, Some(source), outcome, RequestSummary::default);
                    let body = http.full_scrape(tracker.listing(), encoding, chunked);
                    let is_ending = worker.is_leaving() || worker.is_stopping();
                    let keep_alive = keep_alive && !is_ending;
                    return (done + consumed, full_scrape(body, keep_alive));
                }
            }
        }
        (done, NextStep::Read)
    }

    /// Charges a request for a page, or an error, to its source, unless the front end has charged
    /// it. A request that was refused because its source is over the limit is minor work: a client
    /// may be refused thousands of times and returns later, while a flood is closed. True if the
    /// connection may continue. A proxy's connection always may, since other clients use it too.
    fn is_paid(
        &self,
        tracker: &mut Tracker,
        now: Now,
        source: Option<IpAddr>,
        outcome: Outcome,
    ) -> bool {
        let own = self.payer();
        if tracker.take_was_charged() {
            return own.is_none()
                || outcome != Outcome::Refused(Refusal::Limited)
                || self.charge_minor_to(tracker, now, 1).is_ok();
        }
        charges::charge(tracker, now, source.or(own), ConnectionWork::Request).is_ok()
            || own.is_none()
    }

    /// Makes room for the next request, or the rest of a request, and sets its deadline.
    fn expect_request(&self, input: &mut Vec<u8>) {
        let is_idle = input.is_empty();
        self.set_idle(is_idle);
        if !is_idle && input.capacity() == input.len() {
            input.reserve_exact(input.len().min(HEAD_BYTES_MAX.saturating_sub(input.len())).max(1));
        } else if is_idle && !(1..=KEPT_BYTES_MAX).contains(&input.capacity()) {
            *input = Vec::with_capacity(HEAD_BYTES_USUAL);
        }
        let (seconds, missed) = self.worker.with_options(|options| match is_idle {
            true => (options.idle_timeout_s, CloseReason::IdleTimeout),
            false => (options.head_timeout_s, CloseReason::HeadTimeout),
        });
        let deadlines = Deadlines::until(self.worker.now().plus_s(u64::from(seconds)), missed);
        self.with_deadlines(|current| {
            let was_idle = current.missed == CloseReason::IdleTimeout;
            if current.read == NEVER || (was_idle && !is_idle) {
                *current = deadlines;
            }
        });
    }

    async fn close(&self, linger: bool, input: Vec<u8>) -> CloseReason {
        self.decide_ending(CloseReason::Done);
        if linger || self.is_secure() {
            self.end_writing().await;
        }
        if linger {
            self.linger(input).await;
        }
        CloseReason::Done
    }

    /// Writes a body as fast as the client receives it. A thread of its own produces the body,
    /// because that costs milliseconds per million torrents. The thread stops when this task ends.
    async fn send_full_scrape(&self, mut body: Box<FullScrape>) -> Result<(), CloseReason> {
        let (pieces, mut ready) = mpsc::channel::<io::Result<Vec<u8>>>(PIECES_MAX);
        let make = move || {
            loop {
                let mut piece = Vec::with_capacity(PIECE_BYTES_MAX + CHUNK_FRAME_BYTES_MAX);
                let made = body.write_piece(&mut piece);
                let more = *made.as_ref().unwrap_or(&false);
                if pieces.blocking_send(made.map(|_| piece)).is_err() || !more {
                    return;
                }
            }
        };
        // Until the first piece is ready, no deadline of the client runs.
        let thread = std::thread::Builder::new().name("full-scrape".into()).spawn(make);
        thread.map_err(|_| CloseReason::IoError)?;
        let begun = self.worker.now();
        let mut sent = 0;
        while let Some(piece) = ready.recv().await {
            let piece = piece.map_err(|_| CloseReason::IoError)?;
            sent += piece.len() as u64;
            if self.worker.now() > begun.plus_s(SLOW_S_MAX + sent / SLOW_BYTES_PER_S) {
                return Err(CloseReason::WriteStalled);
            }
            self.write(piece).await?;
        }
        Ok(())
    }
}

/// Least rate at which a client has to receive a full scrape, in bytes per second. The process runs
/// one at a time, and no client may occupy it.
const SLOW_BYTES_PER_S: u64 = 64 * 1024;

/// Seconds by which a client may be behind that rate.
const SLOW_S_MAX: u64 = 30;

/// Most bytes around a chunk, the last chunk included.
const CHUNK_FRAME_BYTES_MAX: usize = 16;

fn full_scrape(body: io::Result<FullScrape>, keep_alive: bool) -> NextStep {
    match body {
        Ok(body) => NextStep::FullScrape(Box::new(body), keep_alive),
        // The head of the response announces a body, so only the end of the connection shows that
        // none follows.
        Err(_) => NextStep::Close { linger: false },
    }
}

//! What the stream workers count, as Prometheus reads it.

use std::sync::Arc;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use super::float;
use crate::metrics::{Closed, Handshake, MailLost, RequestCounters, StreamCounters};
use crate::server::memory::Keeper;
use crate::types::{Action, Family, Outcome, Refusal, Rejected, Transport};

/// What can be asked for over HTTP.
const HTTP: [Action; 3] = [Action::Announce, Action::Scrape, Action::Page];

/// What can be asked for over a WebSocket.
const WS: [Action; 3] = [Action::Announce, Action::Scrape, Action::Answer];

/// Series over all stream workers.
pub(super) struct StreamSeries {
    workers: Vec<Arc<StreamCounters>>,
    requests: Vec<RequestSeries>,
    closed: [Counter; Closed::ALL.len()],
    handshakes: [Counter; Handshake::ALL.len()],
    open: [Gauge; Transport::ALL.len()],
    accepted: Counter,
    accept_errors: Counter,
    received_bytes: [Counter; Transport::ALL.len()],
    sent_bytes: [Counter; Transport::ALL.len()],
    upgrades: Counter,
    open_tls: Gauge,
    held_bytes: Gauge,
    held_max_bytes: Gauge,
    mail_lost: [Counter; MailLost::ALL.len()],
}

impl StreamSeries {
    /// Registers them.
    pub(super) fn new(workers: Vec<Arc<StreamCounters>>) -> Self {
        describe();
        let all = Transport::ALL.into_iter();
        let requests = all.flat_map(|it| Family::ALL.map(|family| RequestSeries::new(it, family)));
        let closed = |it: Closed| counter!("skep_connections_closed_total", "reason" => it.label());
        let handshake = |it: Handshake| counter!("skep_tls_handshakes_total", "kind" => it.label());
        let mail_lost =
            |it: MailLost| counter!("skep_webtorrent_mail_lost_total", "reason" => it.label());
        let open = |it: Transport| gauge!("skep_connections", "kind" => it.label());
        let received =
            |it: Transport| counter!("skep_stream_receive_bytes_total", "transport" => it.label());
        let sent =
            |it: Transport| counter!("skep_stream_transmit_bytes_total", "transport" => it.label());
        Self {
            workers,
            requests: requests.collect(),
            closed: Closed::ALL.map(closed),
            handshakes: Handshake::ALL.map(handshake),
            open: Transport::ALL.map(open),
            accepted: counter!("skep_connections_accepted_total"),
            accept_errors: counter!("skep_accept_failed_total"),
            received_bytes: Transport::ALL.map(received),
            sent_bytes: Transport::ALL.map(sent),
            upgrades: counter!("skep_websocket_upgrades_total"),
            open_tls: gauge!("skep_tls_connections"),
            held_bytes: gauge!("skep_connections_used_bytes"),
            held_max_bytes: gauge!("skep_connections_limit_bytes"),
            mail_lost: MailLost::ALL.map(mail_lost),
        }
    }

    /// Brings them up to date.
    pub(super) fn update(&self) {
        let workers = &self.workers;
        let sum =
            |of: &dyn Fn(&StreamCounters) -> u64| workers.iter().map(|it| of(it)).sum::<u64>();
        for series in &self.requests {
            series.update(workers);
        }
        for (reason, counter) in Closed::ALL.into_iter().zip(&self.closed) {
            counter.absolute(sum(&|it| it.closed(reason).get()));
        }
        for (end, counter) in Handshake::ALL.into_iter().zip(&self.handshakes) {
            counter.absolute(sum(&|it| it.handshakes(end).get()));
        }
        for (transport, gauge) in Transport::ALL.into_iter().zip(&self.open) {
            gauge.set(float(sum(&|it| it.open(transport).get())));
        }
        self.accepted.absolute(sum(&|it| it.accepted.get()));
        self.accept_errors.absolute(sum(&|it| it.accept_errors.get()));
        for (at, transport) in Transport::ALL.into_iter().enumerate() {
            self.received_bytes[at].absolute(sum(&|it| it.received_bytes(transport).get()));
            self.sent_bytes[at].absolute(sum(&|it| it.sent_bytes(transport).get()));
        }
        self.upgrades.absolute(sum(&|it| it.upgrades.get()));
        self.open_tls.set(float(sum(&|it| it.open_tls.get())));
        for (reason, counter) in MailLost::ALL.into_iter().zip(&self.mail_lost) {
            counter.absolute(sum(&|it| it.mail_lost(reason).get()));
        }
    }

    /// Brings those about the memory of connections up to date.
    pub(super) fn update_memory(&self, memory: &Keeper, held_max_bytes: u64) {
        self.held_bytes.set(float(memory.connection_bytes()));
        self.held_max_bytes.set(float(held_max_bytes));
    }
}

/// One transport's and family's series.
struct RequestSeries {
    transport: Transport,
    family: Family,
    requests: Counter,
    outcomes: Vec<(Outcome, Counter)>,
}

impl RequestSeries {
    fn new(transport: Transport, family: Family) -> Self {
        let labels = [("transport", transport.label()), ("family", family.label())];
        let with = |key, value| [labels[0], labels[1], (key, value)];
        let answered = |it: Action| counter!("skep_responses_total", &with("action", it.label()));
        let refused = |it: Refusal| counter!("skep_refused_total", &with("reason", it.label()));
        let rejected = |it: Rejected| counter!("skep_rejected_total", &with("reason", it.label()));
        let actions = match transport {
            Transport::Http => HTTP,
            Transport::Ws => WS,
        };
        let mut outcomes = Vec::new();
        outcomes.extend(actions.map(|it| (Outcome::Answered(it), answered(it))));
        outcomes.extend(Refusal::ALL.map(|it| (Outcome::Refused(it), refused(it))));
        let of_transport = Rejected::ALL.into_iter().filter(|it| it.transport() == transport);
        outcomes.extend(of_transport.map(|it| (Outcome::Rejected(it), rejected(it))));
        Self { transport, family, requests: counter!("skep_requests_total", &labels), outcomes }
    }

    /// The requests are the sum of their outcomes as just read, so that every scrape adds up.
    fn update(&self, workers: &[Arc<StreamCounters>]) {
        let mut requests = 0;
        for (outcome, counter) in &self.outcomes {
            let of = |it: &Arc<StreamCounters>| {
                count(it.requests(self.transport, self.family), *outcome)
            };
            let total = workers.iter().map(of).sum();
            counter.absolute(total);
            requests += total;
        }
        self.requests.absolute(requests);
    }
}

fn count(of: &RequestCounters, outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Answered(it) => of.answered[it as usize].get(),
        Outcome::Refused(it) => of.refused[it as usize].get(),
        Outcome::Rejected(it) => of.rejected[it as usize].get(),
    }
}

fn describe() {
    describe_counter!("skep_rejected_total", "Requests over TCP met with an error, by reason");
    describe_gauge!("skep_connections", "Connections over TCP that are open; ws: WebSockets");
    describe_counter!("skep_connections_accepted_total", "Connections accepted");
    describe_counter!("skep_connections_closed_total", "Connections that ended, by reason");
    describe_counter!("skep_accept_failed_total", "Accepts that failed: out of descriptors?");
    describe_counter!("skep_tls_handshakes_total", "TLS handshakes: full, resumed, failed");
    describe_gauge!("skep_tls_connections", "Connections over TLS that are open");
    describe_gauge!("skep_connections_used_bytes", "Bytes that connections over TCP hold");
    describe_gauge!("skep_connections_limit_bytes", "Bytes that connections over TCP may hold");
    describe_counter!("skep_websocket_upgrades_total", "WebSockets opened");
    describe_counter!("skep_stream_receive_bytes_total", "Bytes read from connections");
    describe_counter!("skep_stream_transmit_bytes_total", "Bytes written to connections");
    describe_counter!(
        "skep_webtorrent_mail_lost_total",
        "Offers and answers between WebSockets that were lost, by reason"
    );
}

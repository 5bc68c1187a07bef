//! `/stats` for operators: all figures in tables, and the script that keeps them up to date.
//!
//! The page is `page.html` with `page.css` and `page.js` in it, and places for figures and tables.
//! It needs nothing from elsewhere, and the policy that comes with it allows nothing else: the one
//! style sheet and the one script by their hashes, the icon that is in the page, and a connection
//! to where the page comes from.

use std::net::SocketAddr;
use std::sync::OnceLock;

use askama::Template;
use axum::extract::rejection::ExtensionRejection;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::board::VERSION;
use super::sample::Sample;
use super::tables::{
    self, CLIENTS, Figure, LAYOUTS, Layout, PageHead, Rows, TOP, TopRow, WARNINGS,
};
use crate::admin::access::RequestSender;
use crate::admin::{Admin, NOT_KEPT, Process};
use crate::frontend::drawing::{BarPart, DAY_MINUTES, DayLine, client_bar};

/// The text in place of the largest torrents for those who may not see them.
const NO_TORRENTS: &str =
    "Shown only to requests that the API accepts: from this host, or with the token.";

/// Serves the page.
pub(in crate::admin) async fn page<P: Process>(
    State(admin): State<Admin<P>>,
    from: Result<ConnectInfo<SocketAddr>, ExtensionRejection>,
    request: Request,
) -> impl IntoResponse {
    let board = admin.process.board();
    let mut sample = board.latest().map(|it| (*it).clone()).unwrap_or_default();
    // As of now: what was counted for viewers may be a second old.
    sample.store = admin.process.stats();
    let top = if RequestSender::of(from.ok(), &request).is_served(&admin) {
        Some(tables::top(&admin.top.awaited(&admin).await))
    } else {
        None
    };
    let head = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        NOT_KEPT,
    ];
    (head, html(&sample, board.day_line(), top))
}

/// Leads from the root of the listener to the page, also below a path of a proxy.
pub(in crate::admin) async fn root() -> impl IntoResponse {
    let head = [(header::LOCATION, "stats"), NOT_KEPT];
    (StatusCode::TEMPORARY_REDIRECT, head, "the statistics page is at /stats\n")
}

/// What the browser may do with the page.
fn policy() -> &'static str {
    static POLICY: OnceLock<String> = OnceLock::new();
    POLICY.get_or_init(|| {
        let page = html(&Sample::default(), DayLine::default(), None);
        let hash = |tag| STANDARD.encode(Sha256::digest(inside(&page, tag)));
        let (style, script) = (hash("style"), hash("script"));
        format!(
            "default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; \
             img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        )
    })
}

/// What stands in the one element of this name.
fn inside<'a>(page: &'a str, tag: &str) -> &'a str {
    let begin = page.find(&format!("<{tag}>")).map(|at| at + tag.len() + 2);
    let end = page.find(&format!("</{tag}>"));
    begin.zip(end).and_then(|(begin, end)| page.get(begin..end)).unwrap_or_default()
}

/// The page. Its style sheet and its script are the same for every request.
#[derive(Template)]
#[template(path = "admin/live/page.html")]
struct LivePage {
    version: &'static str,
    head: PageHead,
    figures: Vec<Figure>,
    /// Peers over the last 24 hours.
    day: DayLine,
    /// Clients as a bar.
    clients: Vec<BarPart>,
    /// Each table with its rows; none for the largest torrents.
    tables: Vec<(&'static Layout, Rows)>,
    /// The largest torrents; none if the client may not see them.
    top: Option<Vec<TopRow>>,
}

/// The page with its figures; without `top`, one that names who may see the largest torrents.
fn html(sample: &Sample, day: DayLine, top: Option<Vec<TopRow>>) -> String {
    let mut rows = tables::tables(sample);
    let tables = LAYOUTS.iter().map(|layout| (layout, rows.remove(layout.id).unwrap_or_default()));
    let page = LivePage {
        version: VERSION,
        head: tables::head(sample),
        figures: tables::figures(sample),
        day,
        clients: client_bar(&sample.store.clients),
        tables: tables.collect(),
        top,
    };
    page.render().unwrap_or_default() // does not fail: all values are strings and numbers
}

#[cfg(test)]
mod tests {
    use super::super::MetricFlow;
    use super::super::sample::Flow;
    use super::*;
    use crate::frontend::stats::Stats;

    fn page_of(sample: &Sample, top: Option<Vec<TopRow>>) -> String {
        html(sample, DayLine::of([(2, 3.0), (8, 4.0)].into_iter(), 9), top)
    }

    fn row(hash: &str, name: &str) -> TopRow {
        TopRow { hash: hash.into(), name: name.into(), counts: ["7", "8", "9"].map(Into::into) }
    }

    fn sample() -> Sample {
        let clients = vec![("<b>\"'&".into(), "<script>alert(1)</script>".into(), 4)];
        Sample {
            host: "<host>".into(),
            state: "</th><img src=x onerror=alert(1)>".into(),
            store: Stats {
                torrents: 1_234_567,
                seeders: [100, 20, 3],
                clients,
                ..Stats::default()
            },
            ..Sample::default()
        }
    }

    #[test]
    fn the_page_shows_what_there_is_and_escapes_all_of_it() {
        let top = vec![row(&"ab".repeat(20), "<i>Debian"), row(&"cd".repeat(20), "")];
        let page = page_of(&sample(), Some(top));
        for part in [
            "<dd id=\"figure-torrents\">1,234,567</dd>",
            "IPv4</th><td class=\"n\">100</td><td class=\"n\">0</td><td class=\"n\">100</td>",
            "&#60;b&#62;&#34;&#39;&#38;</th><td>&#60;script&#62;alert(1)&#60;/script&#62;</td>",
            "&#60;/th&#62;&#60;img src=x onerror=alert(1)&#62;",
            "<span class=\"name\">&#60;i&#62;Debian</span>",
            "<th scope=\"row\"><code class=\"hash\" title=\"cdcdcdcd",
            "abababab\">abababab<span>abab",
            "</span>abab</code></th><td class=\"n\">7</td>",
            "<td colspan=\"4\">Nothing was refused since the start.</td>",
            "<title>&#60;host&#62;: skep</title>",
            "<link rel=\"icon\" href=\"data:image/svg+xml,",
            "<b id=\"peers-now\">123</b>",
            "<rect class=\"f0\" x=\"0\" width=\"1000\" height=\"20\"/>",
            "d=\"M1432 60L1437 0\"",
        ] {
            assert!(page.contains(part), "no {part} in\n{page}");
        }
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains(&format!("data-version=\"{VERSION}\"")));
        assert!(!page.contains("<img") && !page.contains("{{"));
    }

    #[test]
    fn warnings_come_first_and_are_hidden_while_there_is_none() {
        let hidden =
            "<section class=\"w6\" id=\"warnings\" aria-labelledby=\"warnings-title\" hidden>";
        let page = page_of(&sample(), None);
        assert!(page.contains(hidden) && page.matches("-title\" hidden>").count() == 1, "{page}");
        let (name, labels) = ("skep_odd_sources_ratio", vec![("kind", "one_address".into())]);
        let flow = Flow { total: 0.9, per_s: 0.0 };
        let flows = vec![MetricFlow { name, labels, flow }];
        let page = page_of(&Sample { flows, ..sample() }, None);
        let row = "<tr><th scope=\"row\">90 % of the announces come from one address</th><td>let ";
        assert!(!page.contains("-title\" hidden>") && page.contains(row), "{page}");
        assert!(page.find("id=\"warnings\"") < page.find("id=\"errors\""));
    }

    #[test]
    fn who_may_not_see_torrents_is_told_who_may() {
        let page = page_of(&sample(), None);
        assert!(page.contains(NO_TORRENTS) && !page.contains("Completed"));
        assert!(page_of(&sample(), Some(Vec::new())).contains("No torrent has peers."));
    }

    #[test]
    fn the_policy_allows_the_one_style_sheet_and_the_one_script() {
        let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
        let page = page_of(&sample(), None);
        for (tag, directive) in [("style", "style-src"), ("script", "script-src")] {
            let text = inside(&page, tag);
            assert!(text.len() > 500, "{tag}");
            assert_eq!(page.matches(&format!("<{tag}")).count(), 1);
            let allowed = format!("{directive} 'sha256-{}';", hash(text));
            assert!(policy().contains(&allowed), "no {allowed} in {}", policy());
        }
        assert!(policy().starts_with("default-src 'none';"));
        let svg = "http://www.w3.org/2000/svg"; // a name, nothing that is fetched
        let page = page.replace(svg, "");
        for elsewhere in [" style=", "://", "@import", "url("] {
            assert!(!page.contains(elsewhere), "{elsewhere}");
        }
        assert_eq!(inside("<p>", "p"), "", "never closed");
    }

    #[test]
    fn every_element_of_the_page_is_closed() {
        let page = page_of(&sample(), Some(vec![row("ab", "c")]));
        let (before, rest) = page.split_once("<script>").unwrap();
        let (_, after) = rest.split_once("</script>").unwrap();
        let page = format!("{before}{after}");
        let mut open = Vec::new();
        for tag in page.split('<').skip(1).filter_map(|it| it.split('>').next()) {
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "{tag}"),
                None if ["!doctype", "meta", "link"].contains(&name) || tag.ends_with('/') => {}
                None => open.push(name),
            }
        }
        assert_eq!(open, Vec::<&str>::new());
    }
}

//! The statistics pages as a browser shows them: charts, tables, without scripts, in light and
//! dark, on a telephone, without a tracker, after an upgrade.
#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::json;
use skep::protocol::udp::client::Announcement;
use skep::types::{Event, PeerId};

use crate::browser::{Browser, View, has_chromium};
use crate::support::{Client, DEADLINE, Skep, deny_port, eventually, http_get, leecher, seeder};

const WIDE: View = View { width: 1280, height: 900, scheme: "light", scripts: true };
const PHONE: View = View { width: 390, height: 740, scheme: "light", scripts: true };

/// Whether the page says that it is live.
const IS_LIVE: &str = "!!document.querySelector('#status')?.innerText.startsWith('Live')";

/// All hashes on the page, as they are in the cells.
const HASHES: &str = "[...document.querySelectorAll('.hash')].map(it => it.textContent).join()";

/// Whether the chart with this title draws its line of this number.
fn is_drawn(chart: &str, line: usize) -> String {
    format!(
        "[...document.querySelectorAll('#charts figure')].some(it => it.querySelector('h2')\
         .innerText === '{chart}' && it.querySelector('path.l{line}').getAttribute('d') !== '' && \
         it.querySelector('path.l{line}').hasAttribute('d'))"
    )
}

/// The name of this host.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// A tracker with something to show.
fn busy() -> Skep {
    busy_with(&[])
}

/// The same, with further arguments.
fn busy_with(arguments: &[&str]) -> Skep {
    let skep = Skep::start(arguments);
    let clients = [b"-qB5010-", b"-TR4060-", b"-LT20A0-", b"-DE211s-"];
    let mut udp = Client::connect(skep.udp[0]);
    for torrent in 1..=30_u8 {
        for peer in 0..u16::from(torrent) {
            let mut peer_id = PeerId(*b"-qB5010-abcdefghijkl");
            peer_id.0[..8].copy_from_slice(clients[usize::from(peer) % clients.len()]);
            let announcement = if peer % 3 == 0 { seeder } else { leecher };
            udp.announce(&Announcement { peer_id, ..announcement(torrent, 2000 + peer) });
        }
    }
    deny_port(&skep, 25);
    udp.announce_refused(&leecher(1, 25));
    udp.send(b"no datagram of a client at all");
    skep
}

/// Where to leave pictures for people to look at, if asked to.
fn keep(name: &str, picture: &[u8]) {
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000, "{name}");
    if let Some(folder) = std::env::var_os("SKEP_PICTURES") {
        std::fs::write(std::path::Path::new(&folder).join(name), picture).unwrap();
    }
}

#[test]
fn a_browser_shows_it_live_in_light_and_dark() {
    if !has_chromium() {
        return;
    }
    let skep = busy();
    let url = format!("http://{}/stats", skep.admin);
    let mut browser = Browser::start();
    for (scheme, background) in [("light", "rgb(250, 248, 243)"), ("dark", "rgb(23, 21, 15)")] {
        browser.open(&url, View { scheme, ..WIDE });
        let color = browser.value("getComputedStyle(document.body).backgroundColor");
        assert_eq!(color, background);
        browser.wait_for(IS_LIVE);
        browser.wait_for(&is_drawn("Peers", 0));
        browser.wait_for(&is_drawn("Memory", 1));
        assert_eq!(browser.value("document.title").as_str().unwrap(), host_name() + ": skep");
        browser.wait_for("document.querySelector('#peers-now').innerText === '465'");
        // Somebody announces, and the open page follows without being loaded again.
        let (mut client, begun) = (Client::connect(skep.udp[0]), Instant::now());
        let before =
            browser.value("document.querySelector('#requests tbody tr:last-child').innerText");
        while browser
            .value("parseFloat(document.querySelector('#figure-announces').innerText)")
            .as_f64()
            .unwrap()
            < 1.0
        {
            assert!(begun.elapsed() < DEADLINE, "no rate is shown");
            client.announce(&leecher(200, 9000));
            client.announce(&leaver(200, 9000));
        }
        browser.wait_for(&format!(
            "document.querySelector('#requests tbody tr:last-child').innerText !== {before}"
        ));
        let legend = browser.text("#charts figure:nth-child(1) .legend");
        assert!(legend.contains("Announces") && legend.contains("Scrapes"), "{legend}");
        let told = browser.value("document.querySelector('#charts svg title').textContent");
        let told = told.as_str().unwrap();
        assert!(told.starts_with("Responses per second: Announces "), "{told}");
        assert!(browser.text("#clients").contains("qBittorrent"));
        assert!(browser.value(HASHES).as_str().unwrap().contains(&"1e".repeat(20)));
        let picture = browser.picture();
        keep(&format!("{scheme}.png"), &picture);
    }
    assert_eq!(browser.complaints, Vec::<String>::new(), "the policy lets the page work");
}

/// The announce of one that leaves.
fn leaver(torrent: u8, port: u16) -> Announcement {
    Announcement { event: Event::Stopped, ..leecher(torrent, port) }
}

/// Whether nothing sticks out of the page to the right.
const FITS: &str = "document.documentElement.scrollWidth <= innerWidth && \
     document.body.scrollWidth <= innerWidth && \
     [...document.querySelectorAll('section,figure,dl,header')].every(it => \
     it.getBoundingClientRect().right <= innerWidth)";

#[test]
fn a_telephone_shows_all_of_it_without_scrolling_sideways() {
    if !has_chromium() {
        return;
    }
    let skep = busy();
    let url = format!("http://{}/stats", skep.admin);
    let mut browser = Browser::start();
    for scripts in [true, false] {
        browser.open(&url, View { scripts, ..PHONE });
        if scripts {
            browser.wait_for(IS_LIVE);
        }
        assert_eq!(browser.value("innerWidth"), 390, "the page is as wide as the screen");
        assert_eq!(browser.value(FITS), true, "scripts: {scripts}");
        let picture = browser.picture();
        keep(if scripts { "phone.png" } else { "phone_plain.png" }, &picture);
    }
}

#[test]
fn without_scripts_there_are_the_tables() {
    if !has_chromium() {
        return;
    }
    let skep = busy();
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/stats", skep.admin), View { scripts: false, ..WIDE });
    assert_eq!(browser.text("#status"), "Figures from when this page was loaded.");
    assert_eq!(browser.value("document.querySelector('#live').offsetHeight"), 0);
    assert_eq!(browser.text("#peers-now"), "465");
    let peers = browser.text("#peers");
    assert!(peers.contains("IPv4") && peers.contains("465"), "{peers}");
    assert!(browser.value(HASHES).as_str().unwrap().contains(&"1e".repeat(20)));
    assert!(browser.text("#clients").contains("Transmission"));
    keep("plain.png", &browser.picture());
    assert_eq!(http_get(skep.admin, "/metrics").0, 200);
    assert_eq!(skep.metrics().value("skep_stats_viewers"), 0.0, "the script did not run");
}

/// Makes the open page one of another version, which knows fewer figures and columns.
const OLDER: &str = "(() => { window.isOld = true; \
     document.documentElement.dataset.version = 'old'; \
     document.querySelector('#figure-memory').removeAttribute('id'); \
     document.querySelector('#peers-parts').removeAttribute('id'); })()";

#[test]
fn an_open_page_says_that_the_tracker_is_away_and_finds_it_again() {
    if !has_chromium() {
        return;
    }
    let found = try_often(|| {
        let mut skep = Skep::start(&[]);
        let (mut browser, admin) = (Browser::start(), skep.admin);
        browser.open(&format!("http://{admin}/stats"), WIDE);
        browser.wait_for(IS_LIVE);
        end(&mut skep, &mut browser);
        assert_eq!(browser.value("document.querySelector('#status').dataset.state"), "away");
        let _again = start_at(admin)?;
        browser.wait_for(IS_LIVE);
        Some(())
    });
    assert!(found.is_some());
}

#[test]
fn an_open_page_of_another_version_loads_itself_anew_once_and_goes_on_all_the_same() {
    if !has_chromium() {
        return;
    }
    let version = env!("CARGO_PKG_VERSION");
    let found = try_often(|| {
        let mut skep = Skep::start(&[]);
        let (mut browser, admin) = (Browser::start(), skep.admin);
        browser.open(&format!("http://{admin}/stats"), WIDE);
        browser.wait_for(IS_LIVE);
        browser.value(OLDER);
        end(&mut skep, &mut browser);
        skep = start_at(admin)?;
        browser.wait_for("!window.isOld");
        browser.wait_for(IS_LIVE);
        let own = browser.value("document.documentElement.dataset.version");
        assert_eq!(own, version);
        browser.value(OLDER);
        end(&mut skep, &mut browser);
        skep = start_at(admin)?;
        browser.wait_for(IS_LIVE);
        Client::connect(skep.udp[0]).announce(&leecher(1, 1001));
        browser.wait_for("document.querySelector('#peers-now').innerText === '1'");
        assert_eq!(browser.value("window.isOld"), true, "not asked for twice");
        // While one tracker ended and no other was there, the page may have tried to reach one.
        browser.complaints.retain(|complaint| !complaint.contains("WebSocket connection to"));
        assert_eq!(browser.complaints, Vec::<String>::new());
        Some(())
    });
    assert!(found.is_some());
}

/// A tracker's socket that the test plays: `feed` gives the page a message, `cut` ends it.
const PLAYED: &str = "(() => { window.WebSocket = class { constructor() { \
     window.feed = message => this.onmessage({data: JSON.stringify(message)}); \
     window.cut = () => this.onclose({code: 1006}); } close() {} }; })()";

/// A browser whose page has been fed five minutes that end at the full hour: 471 announces a second
/// and a burst, no scrape; 24 hours of seeders; everything else is 0.
fn fed(skep: &Skep) -> Browser {
    const END_S: u32 = 1_800_003_600;
    let columns = [
        "at_s",
        "announces_per_s",
        "scrapes_per_s",
        "connects_per_s",
        "queue_full_per_s",
        "limited_per_s",
        "shed_per_s",
        "bad_per_s",
        "errors_per_s",
        "seeders",
        "leechers",
        "torrents",
        "resident_bytes",
        "store_bytes",
        "busy_ratio",
    ];
    let row = |at_s: u32, announces: f64, seeders: u32| {
        let mut row = vec![json!(at_s), json!(announces)];
        row.extend((0..columns.len() - 2).map(|it| json!(if it == 7 { seeders } else { 0 })));
        row
    };
    let second = |it: u32| {
        let announces = if (100..110).contains(&it) { 98_000.0 } else { 471.0 };
        row(END_S - 299 + it, announces, 3000)
    };
    let seconds: Vec<_> = (0..300).map(second).collect();
    let minutes: Vec<_> = (0..1440).map(|it| row(END_S - 86_400 + 60 * it, 471.0, 2000)).collect();
    let version = env!("CARGO_PKG_VERSION");
    let history = json!({ "type": "history", "version": version, "every_s": 1, "history_s": 300,
        "columns": columns, "rows": seconds });
    let day =
        json!({ "line": "M0 0L1439 0", "area": "M0 0L1439 0L1439 240L0 240Z", "most": "2,000" });
    let minutes = json!({ "type": "minutes", "every_s": 60, "columns": columns, "rows": minutes,
        "day": day });
    let mut browser = Browser::start();
    browser.prepare(PLAYED);
    browser.open(&format!("http://{}/stats", skep.admin), WIDE);
    browser.value(&format!("feed({history})"));
    browser.value(&format!("feed({minutes})"));
    browser
}

/// The first chart's element by a selector.
fn of_first(selector: &str) -> String {
    format!("document.querySelector('#charts figure {selector}')")
}

#[test]
fn a_burst_is_cut_off_and_named_and_what_is_zero_is_not_drawn() {
    if !has_chromium() {
        return;
    }
    let skep = Skep::start(&[]);
    let mut browser = fed(&skep);
    assert_eq!(browser.text("#charts .y"), "1,000", "twice 471, rounded up");
    assert_eq!(browser.text("#charts .spike"), "▲ 98,000");
    let overlap = "document.querySelector('#charts .spike').getBoundingClientRect().top < \
                   document.querySelector('#charts .legend').getBoundingClientRect().bottom";
    assert_eq!(browser.value(overlap), false, "the legend can be read");
    assert_eq!(browser.text("#charts .legend"), "Announces 471\nScrapes 0\nConnects 0");
    let scrapes = browser.value(&(of_first("path.l1") + ".getAttribute('d')"));
    assert_eq!(scrapes, "");
    let ys = browser.value(&(of_first("path.l0") + ".getAttribute('d')"));
    let ys: Vec<f64> = ys.as_str().unwrap()[1..]
        .split('L')
        .map(|it| it.split(' ').nth(1).unwrap().parse().unwrap())
        .collect();
    assert_eq!((ys.len(), ys[0], ys[105]), (300, 79.4, 0.0), "of 150: 471 of 1000, and the burst");
    let empty = "document.querySelector('#charts figure:nth-child(2) .none').offsetHeight > 0";
    assert_eq!(browser.value(empty), true, "nothing was dropped or refused");
    assert_eq!(browser.complaints, Vec::<String>::new());
    keep("burst.png", &browser.picture());
}

#[test]
fn charts_write_numbers_by_the_rules_of_tables() {
    if !has_chromium() {
        return;
    }
    let skep = Skep::start(&[]);
    let mut browser = fed(&skep);
    let columns = "[...'announces scrapes connects queue_full limited shed bad errors'.split(' ')\
                   .map(it => it + '_per_s'), 'seeders', 'leechers', 'torrents', 'busy_ratio', \
                   'store_bytes', 'resident_bytes']";
    // As in the unit tests of `src/frontend/figures.rs`.
    let rates = [
        (0.0, "0"),
        (0.04, "<0.1"),
        (0.05, "0.1"),
        (5.0, "5"),
        (9.94, "9.9"),
        (9.96, "10"),
        (57.3, "57"),
        (1_234_567.8, "1,234,568"),
    ];
    let bytes = [(0.0, "0 B"), (1023.0, "1,023 B"), (1536.0, "1.5 KiB"), (5.0 * GIB, "5 GiB")];
    let all = [(1, &rates[..]), (5, &bytes[..])];
    for (chart, number, expected) in
        all.into_iter().flat_map(|(chart, all)| all.iter().map(move |it| (chart, it.0, it.1)))
    {
        let history = format!(
            "feed({{type: 'history', every_s: 1, columns: ['at_s', ...{columns}], \
             rows: [[1800000000, ...{columns}.map(() => {number})]]}})"
        );
        browser.value(&history);
        let shown = browser.text(&format!("#charts figure:nth-child({chart}) .legend b"));
        assert_eq!(shown, expected, "{number}");
    }
}

/// Bytes of a GiB.
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

#[test]
fn a_crosshair_shows_the_values_of_its_time_in_every_chart() {
    if !has_chromium() {
        return;
    }
    let skep = Skep::start(&[]);
    let mut browser = fed(&skep);
    browser.value(
        "(() => { const svg = document.querySelector('#charts .plot svg'), \
         box = svg.getBoundingClientRect(), x = box.left + box.width * 105 / 300; \
         svg.dispatchEvent(new PointerEvent('pointermove', {clientX: x, bubbles: true})); })()",
    );
    assert_eq!(browser.text("#charts .legend b"), "98,000");
    let shown =
        "[...document.querySelectorAll('#charts .time')].filter(it => it.offsetHeight).length";
    assert_eq!(browser.value(shown), 6);
    let clock = browser.text("#charts .time");
    assert!(clock.len() == 8 && clock.matches(':').count() == 2, "{clock}");
    keep("hover.png", &browser.picture());
    let leave = "document.querySelector('#charts .plot')\
                 .dispatchEvent(new PointerEvent('pointerleave'))";
    browser.value(leave);
    assert_eq!(browser.text("#charts .legend b"), "471", "the latest");
    assert_eq!(browser.value(shown), 0);
}

#[test]
fn a_span_is_chosen_by_a_button_and_kept_in_the_address() {
    if !has_chromium() {
        return;
    }
    let skep = Skep::start(&[]);
    let mut browser = fed(&skep);
    let points = "document.querySelector('#charts path.l0').getAttribute('d').split('L').length";
    for (button, span, rows, labels) in
        [(2, "#1h", 60, 5), (3, "#24h", 1440, 5), (1, "#5m", 300, 4)]
    {
        browser.value(&format!("document.querySelector('.toolbar :nth-child({button})').click()"));
        assert_eq!(browser.value("location.hash"), span);
        assert_eq!(browser.value(points), rows, "{span}");
        let found = browser.value(&(of_first(".plot") + ".querySelectorAll('.x').length"));
        let found = found.as_u64().unwrap();
        assert!((labels..=labels + 2).contains(&found), "{span}: {found}");
        let pressed = browser.text(".toolbar [aria-pressed=true]");
        let names = ["5 minutes", "1 hour", "24 hours"];
        assert_eq!(pressed, names[button - 1]);
    }
    assert_eq!(browser.text("#day-most"), "2,000");
    browser.value(
        "document.querySelector('.day svg').dispatchEvent(new PointerEvent('pointermove', \
         {clientX: document.querySelector('.day svg').getBoundingClientRect().left + 9}))",
    );
    let at = browser.text("#day-at");
    assert!(at.starts_with("; at ") && at.ends_with(": 2,000"), "{at}");
}

#[test]
fn figures_that_are_no_longer_renewed_are_grey() {
    if !has_chromium() {
        return;
    }
    let skep = Skep::start(&[]);
    let mut browser = fed(&skep);
    let filter = "getComputedStyle(document.querySelector('main')).filter";
    assert_eq!(browser.value(filter), "none");
    browser.value("cut()");
    assert_eq!(browser.value(filter), "grayscale(1)");
    let status = browser.text("#status");
    assert!(status.starts_with("Disconnected.") && status.contains(" Figures of "), "{status}");
    keep("disconnected.png", &browser.picture());
}

#[test]
fn a_registered_torrent_has_its_name_and_a_click_copies_its_hash() {
    if !has_chromium() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("skep.toml");
    std::fs::write(&config, "[access]\nmode = \"registered\"\n").unwrap();
    let skep = Skep::start(&["--config", config.to_str().unwrap()]);
    let hash = "07".repeat(20);
    let torrent = json!({ "info_hash": hash, "name": "<b>debian-12.iso" }).to_string();
    assert_eq!(skep.ask(("POST", "/api/v1/torrents"), &torrent).0, 201);
    Client::connect(skep.udp[0]).announce(&leecher(7, 1001));
    assert!(skep.get("/stats").1.contains("<span class=\"name\">&#60;b&#62;debian-12.iso</span>"));
    let mut browser = Browser::start();
    browser.open(&format!("http://{}/stats", skep.admin), WIDE);
    browser.wait_for(IS_LIVE);
    browser.wait_for("!!document.querySelector('#top .hash')");
    assert_eq!(browser.text("#top .name"), "<b>debian-12.iso");
    assert_eq!(browser.value("document.querySelector('#top .hash').title"), *hash);
    let width = "document.querySelector('#top .hash').getBoundingClientRect().width";
    assert!(browser.value(width).as_f64().unwrap() < 150.0, "13 characters are seen");
    browser.value("document.querySelector('#top .hash').click()");
    assert_eq!(browser.value("getSelection().toString()"), *hash);
    assert_eq!(browser.value("'copied' in document.querySelector('#top .hash').dataset"), true);
}

/// Whether the tiles of figures end where the page's other boxes do, and the chart of the day is
/// apart from the text above it, if it is below.
const FILLS: &str = "(() => { \
     const box = it => document.querySelector(it).getBoundingClientRect(); \
     const [now, day] = [box('.now>div:first-child'), box('.day')]; \
     return Math.abs(box('.figures div:last-child').right - box('.now').right) < 1 && \
     (day.left >= now.right || day.top >= now.bottom + 8); })()";

#[test]
fn the_public_page_needs_no_script_and_fits_a_telephone() {
    if !has_chromium() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("skep.toml");
    let settings = "[http]\npublic_stats = true\npublic_name = \"tracker.example.org\"\n";
    std::fs::write(&config, settings).unwrap();
    let skep = busy_with(&["--config", config.to_str().unwrap()]);
    let url = format!("http://{}", skep.tcp[0]);
    let mut browser = Browser::start();
    eventually("the public page has the peers", || {
        http_get(skep.tcp[0], "/stats").1.contains("<b>465</b>")
    });
    for (view, name) in [
        (View { scripts: false, ..WIDE }, "public.png"),
        (View { scripts: false, scheme: "dark", ..WIDE }, "public-dark.png"),
        (View { scripts: false, ..PHONE }, "public-phone.png"),
    ] {
        browser.open(&format!("{url}/stats"), view);
        assert_eq!(browser.value(FITS), true, "{name}");
        assert_eq!(browser.value(FILLS), true, "{name}");
        assert_eq!(browser.text(".now b"), "465");
        let head = browser.text("header");
        assert_eq!(browser.text("#day-most"), "465", "the line has the peers of now");
        assert!(head.starts_with("tracker.example.org\nTracker statistics\nup "), "{head}");
        let line = browser.value("document.querySelector('.day .line').getAttribute('d')");
        assert!(line.as_str().unwrap().starts_with('M'), "{line}");
        assert!(browser.text("#client-parts").contains("qBittorrent"));
        keep(name, &browser.picture());
    }
    browser.open(&format!("{url}/badge.svg"), WIDE);
    assert_eq!(browser.value("document.documentElement.getAttribute('aria-label')"), "peers: 465");
    assert_eq!(browser.complaints, Vec::<String>::new());
}

/// Ends the tracker, and waits until the page says so.
fn end(skep: &mut Skep, browser: &mut Browser) {
    skep.signal("TERM");
    assert!(skep.wait().success());
    browser.wait_for("document.querySelector('#status').innerText.startsWith('Disconnected')");
}

/// Another tracker with the same admin address, unless somebody else has got it meanwhile.
fn start_at(admin: SocketAddr) -> Option<Skep> {
    let is_free = std::net::TcpListener::bind(admin).is_ok();
    is_free.then(|| Skep::start(&["--admin", &admin.to_string()]))
}

/// Tries again where somebody else has got an address that was to be used a second time.
fn try_often<T>(attempt: impl FnMut() -> Option<T>) -> Option<T> {
    const ATTEMPTS_MAX: usize = 5;
    std::iter::repeat_with(attempt).take(ATTEMPTS_MAX).flatten().next()
}

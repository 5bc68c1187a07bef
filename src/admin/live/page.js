"use strict";
// Keeps the page up to date: figures and tables as they come, and charts drawn from rows.
(() => {
  const SILENCE_MS_MAX = 10000, PAUSE_MS_MIN = 1000, PAUSE_MS_MAX = 30000;
  const WIDTH = 600, HEIGHT = 150;

  // Numbers, by the same rules as src/frontend/figures.rs.
  const grouped = number => Math.round(number).toLocaleString("en");
  const tenths = number => number.toFixed(1).replace(/\.0$/, "");
  const rate = number => number <= 0 ? "0" : number < 0.05 ? "<0.1"
    : number < 9.95 ? tenths(number) : grouped(number);
  const bytes = number => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = 0;
    while (number >= 1024 && unit < units.length - 1) { number /= 1024; unit += 1; }
    return (unit ? tenths(number) : grouped(number)) + " " + units[unit];
  };
  const percent = ratio => (ratio * 100).toFixed(1) + " %";

  // Round tops of a scale, which seldom change.
  const roundTop = value => {
    if (!(value > 0)) return 1;
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 5, 10].map(by => by * power).find(top => top >= value);
  };
  const bytesTop = value => 2 ** Math.ceil(Math.log2(Math.max(value, 1 << 20)));
  const percentTop = value => [0.05, 0.1, 0.25, 0.5].find(top => top >= value) || 1;

  const CHARTS = [
    {title: "Responses per second", text: rate, top: roundTop, lines: [
      ["announces_per_s", "Announces"], ["scrapes_per_s", "Scrapes"],
      ["connects_per_s", "Connects"]]},
    {title: "Dropped or refused per second", text: rate, top: roundTop, lines: [
      ["queue_full_per_s", "Queue full"], ["limited_per_s", "Limited"], ["shed_per_s", "Shed"],
      ["bad_per_s", "Not valid"], ["errors_per_s", "Refused"]]},
    {title: "Peers", text: grouped, top: roundTop, lines: [
      ["seeders", "Seeders"], ["leechers", "Leechers"]]},
    {title: "Torrents", text: grouped, top: roundTop, lines: [["torrents", "Torrents"]]},
    {title: "Memory", text: bytes, top: bytesTop, lines: [
      ["resident_bytes", "Whole process"], ["store_bytes", "Torrents and peers"]]},
    {title: "Busiest worker", text: percent, top: percentTop, lines: [["busy_ratio", "Busy"]]},
  ];
  // Each span with the distance of its marks on the time axis.
  const SPANS = [
    {name: "5 minutes", hash: "#5m", s: 300, mark_s: 60},
    {name: "1 hour", hash: "#1h", s: 3600, mark_s: 600},
    {name: "24 hours", hash: "#24h", s: 86400, mark_s: 14400},
  ];

  const find = id => document.getElementById(id);
  const add = (parent, name, text, className) => {
    const element = parent.appendChild(document.createElement(name));
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const draw = (parent, name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    return parent.appendChild(element);
  };
  const put = (id, text) => {
    const element = find(id);
    if (element && element.textContent !== text) element.textContent = text;
  };
  const clock = (at_s, hasSeconds) => {
    const time = new Date(at_s * 1000);
    const parts = [time.getHours(), time.getMinutes()].concat(hasSeconds ? time.getSeconds() : []);
    return parts.map(part => String(part).padStart(2, "0")).join(":");
  };

  // ---- charts ----

  // Rows of seconds and of minutes; at_s is the first column of both.
  let seconds = {columns: [], rows: [], every_s: 1}, minutes = {columns: [], rows: [], every_s: 60};
  let span = SPANS.find(known => known.hash === location.hash) || SPANS[0];
  let cursor = null; // the place of the crosshair: 0 is the left edge, 1 the right one

  const shownRows = () => {
    const latest = seconds.rows[seconds.rows.length - 1], end = latest[0];
    const isShort = span.s <= 300;
    const {columns, rows, every_s} = isShort ? seconds : minutes;
    const shown = rows.filter(row => row[0] > end - span.s && row[0] <= end);
    // The minute that is not over is shown by its latest second.
    if (!isShort) shown.push(columns.map(name => latest[seconds.columns.indexOf(name)]));
    return {columns, rows: shown, every_s, end};
  };

  // The value at the top of the scale. Where the highest value is more than four times as high as
  // the latest and as nine tenths of all, it is a burst that would flatten the rest: then the scale
  // ends at twice the higher of these two, and the burst is cut off.
  const scaleEnd = values => {
    const sorted = [...values].sort((a, b) => a - b), most = sorted[sorted.length - 1];
    const high = sorted[Math.floor(0.9 * (sorted.length - 1))];
    const usual = Math.max(values[values.length - 1], high);
    return usual > 0 && most > 4 * usual ? 2 * usual : most;
  };

  const nearest = (rows, at_s) =>
    rows.reduce((a, b) => Math.abs(b[0] - at_s) < Math.abs(a[0] - at_s) ? b : a);

  const pathOf = (rows, at, {end, every_s}, top) => {
    let path = "", before = -Infinity;
    for (const row of rows) {
      const x = WIDTH * (1 - (end - row[0]) / span.s);
      const y = HEIGHT * (1 - Math.min(row[at] / top, 1));
      path += (row[0] - before > 3 * every_s ? "M" : "L") + x.toFixed(1) + " " + y.toFixed(1);
      before = row[0];
    }
    return path;
  };

  const drawMarks = (chart, end) => {
    chart.marks.replaceChildren();
    chart.labels.forEach(label => label.remove());
    chart.labels = [];
    const shift_s = new Date(end * 1000).getTimezoneOffset() * 60, begin = end - span.s;
    const first = Math.ceil((begin - shift_s) / span.mark_s) * span.mark_s + shift_s;
    for (let at_s = first; at_s < end; at_s += span.mark_s) {
      const place = (at_s - begin) / span.s;
      draw(chart.marks, "line", {x1: WIDTH * place, x2: WIDTH * place, y1: 0, y2: HEIGHT});
      if (place < 0.05 || place > 0.95) continue;
      const label = add(chart.plot, "span", clock(at_s), "x");
      label.style.left = 100 * place + "%";
      chart.labels.push(label);
    }
  };

  const drawChart = (chart, shown) => {
    const {columns, rows, end} = shown;
    const lines = chart.drawn.map(line => ({...line, at: columns.indexOf(line.column)}));
    if (lines.some(line => line.at < 0)) return; // not here yet, or of another version
    const values = rows.map(row => Math.max(...lines.map(line => row[line.at])));
    const most = Math.max(...values), top = chart.top(scaleEnd(values));
    const highest = rows[values.indexOf(most)];
    const place = row => 1 - (end - row[0]) / span.s;
    // The row under the crosshair, else the latest.
    const at_s = end - (1 - cursor) * span.s;
    const row = cursor === null ? rows[rows.length - 1] : nearest(rows, at_s);
    drawMarks(chart, end);
    for (const line of lines) {
      const isZero = rows.every(row => row[line.at] === 0);
      line.path.setAttribute("d", isZero ? "" : pathOf(rows, line.at, shown, top));
      line.item.className = isZero ? "zero" : "";
      line.value.textContent = chart.text(row[line.at]);
    }
    chart.none.hidden = most > 0;
    chart.high.hidden = chart.half.hidden = !(most > 0);
    chart.high.textContent = chart.text(top);
    // A count has no half: "3" beside the middle of 5 would be false.
    const hasHalf = chart.text !== grouped || Number.isInteger(top / 2);
    chart.half.textContent = hasHalf ? chart.text(top / 2) : "";
    chart.spike.hidden = most <= top;
    chart.spike.textContent = "▲ " + chart.text(most);
    chart.spike.style.left = Math.min(Math.max(100 * place(highest), 12), 88) + "%";
    chart.time.hidden = cursor === null;
    const x = WIDTH * place(row);
    chart.cursor.setAttribute("d", cursor === null ? "" : "M" + x + " 0V" + HEIGHT);
    chart.time.textContent = clock(row[0], span.s <= 300);
    chart.time.style.left = 100 * place(row) + "%";
    chart.time.style.transform = "translate(" + (place(row) > 0.5 ? "-105%" : "5%") + ",0)";
    chart.spoken.textContent = chart.title + ": " + lines.map(line =>
      line.name + " " + line.value.textContent).join(", ") + "; at most " + chart.text(most) +
      " in " + span.name;
  };

  const plot = () => {
    if (!seconds.rows.length) return;
    find("live").hidden = false;
    const shown = shownRows();
    for (const chart of CHARTS) drawChart(chart, shown);
  };

  const moveCursor = place => {
    cursor = place === null ? null : Math.min(Math.max(place, 0), 1);
    plot();
  };

  const build = chart => {
    const figure = add(find("charts"), "figure"), caption = add(figure, "figcaption");
    add(caption, "h2", chart.title);
    const legend = add(caption, "ul", undefined, "legend");
    chart.plot = add(figure, "div", undefined, "plot");
    const svg = draw(chart.plot, "svg", {role: "img", tabindex: 0, preserveAspectRatio: "none",
      viewBox: "0 0 " + WIDTH + " " + HEIGHT});
    chart.spoken = draw(svg, "title", {});
    for (const y of [0, HEIGHT / 2, HEIGHT]) draw(svg, "line", {x1: 0, x2: WIDTH, y1: y, y2: y});
    chart.marks = draw(svg, "g", {});
    chart.labels = [];
    chart.drawn = chart.lines.map(([column, name], at) => {
      const item = add(legend, "li");
      add(item, "i", undefined, "l" + at);
      add(item, "span", name + " ");
      const path = draw(svg, "path", {class: "l" + at});
      return {column, name, item, value: add(item, "b"), path};
    });
    chart.cursor = draw(svg, "path", {class: "cursor"});
    chart.high = add(chart.plot, "span", "", "y");
    chart.half = add(chart.plot, "span", "", "y");
    chart.high.style.top = "0";
    chart.half.style.top = "50%";
    chart.spike = add(chart.plot, "span", "", "spike");
    chart.time = add(chart.plot, "span", "", "time");
    chart.none = add(chart.plot, "span", "None in this time.", "none");
    chart.none.hidden = chart.spike.hidden = chart.time.hidden = true;
    const follow = event => {
      const box = svg.getBoundingClientRect();
      moveCursor((event.clientX - box.left) / box.width);
    };
    chart.plot.addEventListener("pointermove", follow);
    chart.plot.addEventListener("pointerdown", follow);
    chart.plot.addEventListener("pointerleave", () => moveCursor(null));
    svg.addEventListener("blur", () => moveCursor(null));
    svg.addEventListener("keydown", event => {
      const step = {ArrowLeft: -0.01, ArrowRight: 0.01}[event.key];
      if (!step) return;
      event.preventDefault();
      moveCursor((cursor === null ? 1 : cursor) + step);
    });
  };
  CHARTS.forEach(build);

  // The line of the day, which the server draws: its value under the pointer.
  const dayLine = document.querySelector(".day svg");
  const showDay = event => {
    const box = dayLine.getBoundingClientRect(), latest = seconds.rows[seconds.rows.length - 1];
    if (!latest || !minutes.rows.length) return;
    const at_s = latest[0] - (1 - (event.clientX - box.left) / box.width) * 86400;
    const row = nearest(minutes.rows, at_s);
    const [seeders, leechers] = ["seeders", "leechers"].map(name => minutes.columns.indexOf(name));
    put("day-at", "; at " + clock(row[0]) + ": " + grouped(row[seeders] + row[leechers]));
  };
  dayLine.addEventListener("pointermove", showDay);
  dayLine.addEventListener("pointerdown", showDay);
  dayLine.addEventListener("pointerleave", () => put("day-at", ""));

  const toolbar = document.querySelector(".toolbar");
  for (const known of SPANS) {
    const button = add(toolbar, "button", known.name);
    button.type = "button";
    button.setAttribute("aria-pressed", known === span);
    button.addEventListener("click", () => {
      span = known;
      for (const other of toolbar.children) other.setAttribute("aria-pressed", other === button);
      history.replaceState(null, "", known.hash); // a page that is loaded again shows the same
      plot();
    });
  }

  // ---- tables ----

  // Cells are changed one by one, so that selection and scroll position stay.
  const fill = (id, wanted) => {
    const body = document.querySelector("#" + id + " tbody");
    if (!body) return;
    if (id === "warnings") body.closest("section").hidden = !wanted.length;
    const heads = document.querySelectorAll("#" + id + " thead th");
    const classes = [...heads].map(cell => cell.className);
    const lines = wanted.length ? wanted : [[body.dataset.empty]];
    while (body.rows.length > lines.length) body.deleteRow(-1);
    lines.forEach((cells, line) => {
      let row = body.rows[line];
      if (!row || row.cells.length !== cells.length) {
        const made = document.createElement("tr");
        cells.forEach((_, at) => {
          const cell = add(made, at || cells.length === 1 ? "td" : "th");
          if (cells.length === 1) cell.colSpan = classes.length;
          else cell.className = classes[at];
          if (!at && cells.length > 1) cell.scope = "row";
        });
        row ? row.replaceWith(made) : body.append(made);
        row = made;
      }
      cells.forEach((text, at) => {
        if (text !== null && row.cells[at].textContent !== text) row.cells[at].textContent = text;
      });
    });
  };

  const makeCopyable = () => {
    for (const code of document.querySelectorAll(".hash")) {
      code.setAttribute("role", "button");
      code.tabIndex = 0;
    }
  };

  // Names and hashes: only a cell whose torrent has changed is made anew.
  const fillTop = torrents => {
    fill("top", torrents.map(({counts}) => [null, ...counts]));
    torrents.forEach(({hash, name}, line) => {
      const row = document.querySelectorAll("#top tbody tr")[line], cell = row && row.cells[0];
      if (!cell || cell.textContent === name + hash) return;
      cell.replaceChildren();
      if (name) add(cell, "span", name, "name");
      const code = add(cell, "code", hash.slice(0, 8), "hash");
      add(code, "span", hash.slice(8, -4));
      code.append(hash.slice(-4));
      code.title = hash;
    });
    makeCopyable();
  };

  const fillClients = parts => {
    const list = find("client-parts"), bar = document.querySelector(".bar");
    const known = JSON.stringify(parts);
    if (!list || list.dataset.known === known) return;
    list.dataset.known = known;
    list.replaceChildren();
    bar.replaceChildren();
    for (const part of parts) {
      const {x, width} = part, color = "f" + part.color, item = add(list, "li");
      draw(bar, "rect", {class: color, x, width, height: 20});
      const swatch = draw(item, "svg", {class: "swatch", viewBox: "0 0 9 9", "aria-hidden": true});
      draw(swatch, "rect", {class: color, width: 9, height: 9, rx: 2});
      item.append(part.name + " ");
      add(item, "b", part.share);
    }
  };

  // Copies a hash. Pages over plain HTTP have no clipboard, but may copy what is selected.
  const copy = code => {
    getSelection().selectAllChildren(code);
    if (navigator.clipboard) navigator.clipboard.writeText(code.title).catch(() => {});
    else document.execCommand("copy");
    code.dataset.copied = "";
    setTimeout(() => delete code.dataset.copied, 1500);
  };
  document.addEventListener("click", event => {
    const code = event.target.closest(".hash");
    if (code) copy(code);
  });
  document.addEventListener("keydown", event => {
    if (event.key === "Enter" && event.target.matches(".hash")) copy(event.target);
  });
  makeCopyable();

  // ---- messages ----

  const status = find("status");
  let pauseMs = PAUSE_MS_MIN, silence = 0;

  const report = (state, text) => {
    if (status.dataset.state !== state || state === "away") status.textContent = text;
    status.dataset.state = state;
    document.body.toggleAttribute("data-stale", state === "away");
  };

  // Another version serves: loads its page, at most once for each version.
  const renew = version => {
    if (!version || version === document.documentElement.dataset.version) return;
    try {
      const asked = JSON.parse(sessionStorage.getItem("skep.asked")) || [];
      if (asked.includes(version)) return;
      sessionStorage.setItem("skep.asked", JSON.stringify([...asked, version]));
    } catch { return; } // no storage: an old page is better than one that reloads for ever
    location.reload();
  };

  const takeSample = message => {
    seconds.rows.push(message.row);
    if (seconds.rows.length > 300) seconds.rows.shift();
    const {state, uptime, peers, parts} = message.head;
    find("state").dataset.state = state;
    put("state", state);
    put("uptime", uptime);
    put("peers-now", peers);
    put("peers-parts", parts);
    for (const {id, value} of message.figures) put("figure-" + id, value);
    for (const id in message.tables) fill(id, message.tables[id]);
    fillClients(message.clients);
  };

  const takeMinutes = ({columns, rows, every_s, day}) => {
    const older = rows.length ? minutes.rows.filter(row => row[0] < rows[0][0]) : minutes.rows;
    minutes = {columns, every_s, rows: [...older, ...rows].slice(-1440)};
    document.querySelector(".day .line").setAttribute("d", day.line);
    document.querySelector(".day .area").setAttribute("d", day.area);
    put("day-most", day.most);
  };

  const take = message => {
    if (message.type === "history") {
      seconds = message;
      renew(message.version);
    }
    if (message.type === "sample") takeSample(message);
    if (message.type === "minutes") takeMinutes(message);
    if (message.type === "top") fillTop(message.rows);
    if (message.type !== "top") plot();
  };

  const connect = () => {
    const url = new URL("stats/live", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    const listen = () => {
      clearTimeout(silence);
      silence = setTimeout(() => socket.close(), SILENCE_MS_MAX);
    };
    listen();
    socket.onmessage = event => {
      listen();
      take(JSON.parse(event.data));
      pauseMs = PAUSE_MS_MIN;
      report("live", "Live, once a second.");
    };
    socket.onclose = event => {
      clearTimeout(silence);
      const waitMs = pauseMs * (0.75 + Math.random() / 2);
      pauseMs = Math.min(2 * pauseMs, PAUSE_MS_MAX);
      const why = event.code === 1001 ? "The tracker is stopping."
        : "The tracker cannot be reached, or too many statistics pages are open.";
      const latest = seconds.rows[seconds.rows.length - 1];
      const since = latest ? " Figures of " + clock(latest[0], true) + "." : "";
      report("away",
        "Disconnected. " + why + since + " Next try in " + Math.ceil(waitMs / 1000) + " s.");
      setTimeout(connect, waitMs);
    };
  };
  connect();
})();

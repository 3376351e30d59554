// The log: all lines in memory, few in the document. It follows the end until the reader scrolls up.
"use strict";
(() => {
  const view = document.getElementById("log"), follow = document.getElementById("follow"), live = document.getElementById("log-live"), strip = document.querySelector(".strip");
  const ROW = 21, LIMIT = 15_000_000, KEPT = 200_000, query = view.dataset.q.toLowerCase();
  const two = (n) => String(n).padStart(2, "0");
  const clock = (us) => { const d = new Date(us / 1000); return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}.${String(d.getMilliseconds()).padStart(3, "0")}`; };
  let lines = [], pool = [], drawn = false, following = true, source = null, lost = 0, tall = null, errors = 0, moved = false;
  follow.parentElement.hidden = false;

  function begin() {
    view.replaceChildren();
    view.classList.add("virtual");
    tall = view.appendChild(document.createElement("div"));
    tall.className = "tall-inner";
  }
  function makeRow() {
    const row = document.createElement("p"), time = document.createElement("time"), mark = document.createElement("i"), text = document.createElement("span");
    row.append(time, mark, text);
    tall.append(row);
    return row;
  }
  function fill(row, line) {
    const [us, stream, version, text] = line;
    row.className = stream === "cut" ? "cut" : stream === "stderr" ? "e" : stream === "build" || stream === "release" ? "b-i" : "";
    row.children[0].textContent = stream === "cut" ? "" : clock(us);
    row.children[1].textContent = stream === "cut" ? "" : stream === "stderr" ? "!" : stream === "build" || stream === "release" ? "›" : "·";
    const body = row.children[2];
    if (!query || stream === "cut") { body.textContent = text; row.title = stream === "cut" ? "" : `version ${version}`; return; }
    body.replaceChildren();
    const low = text.toLowerCase();
    let at = 0;
    for (let hit = low.indexOf(query); hit >= 0; hit = low.indexOf(query, at)) {
      const mark = document.createElement("mark");
      mark.textContent = text.slice(hit, hit + query.length);
      body.append(text.slice(at, hit), mark);
      at = hit + query.length;
    }
    body.append(text.slice(at));
  }
  function draw() { if (!drawn) { drawn = true; requestAnimationFrame(paint); } }
  function paint() {
    drawn = false;
    if (!tall) return;
    const whole = lines.length * ROW, height = Math.min(whole, LIMIT), scale = Math.max(1, whole / LIMIT);
    tall.style.height = `${height}px`;
    if (following) { moved = true; view.scrollTop = height; }
    const top = view.scrollTop, count = Math.ceil(view.clientHeight / ROW) + 2;
    const first = Math.max(0, Math.min(Math.floor((top * scale) / ROW), lines.length - count));
    for (let i = 0; i < count; i++) {
      const row = (pool[i] ??= makeRow()), line = lines[first + i];
      row.hidden = !line;
      if (!line) continue;
      fill(row, line);
      row.style.transform = `translateY(${scale === 1 ? (first + i) * ROW : top + i * ROW}px)`;
    }
    document.getElementById("count").textContent = `${lines.length.toLocaleString()} lines kept${errors ? `, ${errors.toLocaleString()} of them errors` : ""}`;
    if (query) document.getElementById("found").textContent = `${lines.length.toLocaleString()}`;
  }
  let last = 0;
  function take(rows) {
    if (!tall) begin();
    for (const row of rows) {
      if (last && row[2] !== last && row[1] !== "build") lines.push([row[0], "cut", row[2], `Version ${row[2]}`]);
      last = row[2];
      if (row[1] === "stderr") errors++;
      lines.push(row);
    }
    if (lines.length > KEPT) lines = lines.slice(-KEPT);
    draw(); summary();
  }
  // Where lines are, over the time that is kept.
  let due = 0;
  function summary() { if (!due) due = setTimeout(() => { due = 0; density(); }, 400); }
  function density() {
    const svg = document.getElementById("density"), BARS = 160, width = 800 / BARS;
    if (lines.length < 2) return;
    const from = lines[0][0], to = Math.max(lines[lines.length - 1][0], from + 1), all = new Uint32Array(BARS), bad = new Uint32Array(BARS), cuts = [];
    for (const [us, stream, version] of lines) {
      const bar = Math.min(BARS - 1, Math.floor(((us - from) / (to - from)) * BARS));
      if (stream === "cut") { cuts.push([bar, version]); continue; }
      all[bar]++;
      if (stream === "stderr") bad[bar]++;
    }
    const most = Math.max(...all, 1), shapes = [];
    const add = (name, attributes) => { const shape = document.createElementNS("http://www.w3.org/2000/svg", name); for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value); shapes.push(shape); };
    all.forEach((count, i) => { if (count) { const h = Math.max(2, (34 * Math.log1p(count)) / Math.log1p(most)); add("rect", { class: "d", x: i * width + 0.6, y: 36 - h, width: width - 1.2, height: h }); } });
    bad.forEach((count, i) => { if (count) add("rect", { class: "de", x: i * width, y: 0, width, height: 4 }); });
    for (const [bar] of cuts) add("path", { class: "dm", d: `M${bar * width} 0V36` });
    svg.replaceChildren(...shapes);
    strip.hidden = false;
    document.getElementById("span").replaceChildren(...[clock(from).slice(0, 8), ...cuts.slice(-4).map(([, version]) => `version ${version}`), clock(to).slice(0, 8)].map((text) => Object.assign(document.createElement("span"), { textContent: text })));
  }
  document.getElementById("density").addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect(), from = lines[0]?.[0], to = lines[lines.length - 1]?.[0];
    if (from === undefined) return;
    const us = from + ((event.clientX - box.left) / box.width) * (to - from);
    const index = lines.findIndex((line) => line[0] >= us);
    setFollow(false);
    view.scrollTop = (Math.max(0, index) / lines.length) * tall.clientHeight;
  });
  function setFollow(on) { following = follow.checked = on; if (on) draw(); }
  follow.addEventListener("change", () => setFollow(follow.checked));
  view.addEventListener("scroll", () => {
    if (moved) moved = false;
    else { const end = view.scrollTop + view.clientHeight >= view.scrollHeight - 2 * ROW; if (end !== following) { following = follow.checked = end; } }
    draw();
  }, { passive: true });
  addEventListener("resize", draw);
  addEventListener("keydown", (event) => { if (event.key === "f" && !event.ctrlKey && !event.metaKey && !event.target.closest?.("input, textarea, select")) setFollow(!following); });
  function mark(state, text) { live.dataset.is = state; live.textContent = text; }
  function open() {
    if (source || document.hidden) return;
    source = new EventSource(view.dataset.src);
    source.onopen = () => { lost = 0; mark("live", "following"); };
    source.addEventListener("lines", (event) => take(JSON.parse(event.data)));
    source.addEventListener("done", () => { close(); mark("off", "the builder is gone"); });
    source.onerror = () => {
      lost ||= Date.now();
      mark("late", `not live since ${clock(lost * 1000).slice(0, 8)}, tries again`);
      // A stream that was refused is not tried again by the browser.
      if (source.readyState === EventSource.CLOSED) { close(); setTimeout(reopen, 4000); }
    };
  }
  function close() { source?.close(); source = null; }
  // A new stream begins at the beginning: what is there goes.
  function reopen() { if (document.hidden) return; lines = []; pool = []; errors = 0; last = 0; if (tall) begin(); open(); }
  open();
  document.addEventListener("visibilitychange", () => { if (document.hidden) close(); else reopen(); });
  addEventListener("pagehide", close);
  view.dataset.ready = "1";
})();

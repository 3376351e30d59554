// The log: all lines in memory, a window of them in the document. It follows the end until the reader scrolls up.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const view = $("log"), follow = $("follow"), live = $("log-live"), strip = document.querySelector(".strip");
  const ROWS = 1000, STEP = 250, KEPT = 200_000, query = view.dataset.q.toLowerCase();
  const two = (n) => String(n).padStart(2, "0");
  const time = (us) => { const d = new Date(us / 1000); return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`; };
  const make = (name, text, className = "") => Object.assign(document.createElement(name), { textContent: text, className });
  const SERIOUS = { error: "e", warning: "w" }, MARKS = { build: "›", release: "›", stderr: "∶" };
  // Lines are [microseconds, stream, version, text, level]; those from `from` on, before `to`, are in the document.
  let lines = [], from = 0, to = 0, begun = false, drawn = false, following = true, touched = 0, source = null, lost = 0, errors = 0, last = 0, due = 0;
  follow.parentElement.hidden = false;

  function row([us, stream, version, text, level]) {
    if (stream === "cut") return make("p", text, "cut");
    const row = make("p", "", SERIOUS[level] || (MARKS[stream] === "›" ? "b-i" : "")), mark = make("i", level in SERIOUS ? "!" : MARKS[stream] || "·"), body = make("span", "");
    const clock = make("time", time(us)), low = query ? text.toLowerCase() : "";
    clock.append(make("small", `.${String(Math.floor(us / 1000) % 1000).padStart(3, "0")}`));
    clock.title = `version ${version}`; mark.title = level || stream;
    let at = 0;
    for (let hit = query ? low.indexOf(query) : -1; hit >= 0; hit = low.indexOf(query, at)) {
      at = hit + query.length;
      body.append(text.slice(body.textContent.length, hit), make("mark", text.slice(hit, at)));
    }
    body.append(text.slice(at));
    row.append(clock, mark, body);
    return row;
  }
  const rows = (first, end) => lines.slice(first, end).map(row);
  function append(count) {
    const end = Math.min(lines.length, to + count);
    view.append(...rows(to, end)); to = end;
    const over = to - from - ROWS;
    if (over <= 0) return;
    const height = view.scrollHeight;
    for (let i = 0; i < over; i++) view.firstChild.remove();
    from += over;
    if (!following) view.scrollTop -= height - view.scrollHeight;
  }
  function prepend() {
    const first = Math.max(0, from - STEP), height = view.scrollHeight;
    view.prepend(...rows(first, from)); from = first;
    view.scrollTop += view.scrollHeight - height;
    while (to - from > ROWS) { view.lastChild.remove(); to--; }
  }
  function show(first) { from = Math.max(0, first); to = Math.min(lines.length, from + ROWS); view.replaceChildren(...rows(from, to)); }
  function draw() { if (!drawn) { drawn = true; requestAnimationFrame(paint); } }
  function paint() {
    drawn = false;
    if (following) {
      if (lines.length - to > ROWS || from > to) show(lines.length - ROWS); else append(lines.length - to);
      view.scrollTop = view.scrollHeight;
    } else if (to - from < ROWS) append(ROWS - to + from);
    $("count").textContent = `${lines.length.toLocaleString()} ${lines.length === 1 ? "line" : "lines"} kept${errors ? `, ${errors.toLocaleString()} of them ${errors === 1 ? "an error" : "errors"}` : ""}`;
    if (query) $("found").textContent = lines.length.toLocaleString();
  }
  function take(fresh) {
    if (!begun) { begun = true; view.replaceChildren(); }
    for (const line of fresh) {
      if (last && line[2] !== last && line[1] !== "build") lines.push([line[0], "cut", line[2], `Version ${line[2]}`, ""]);
      last = line[2];
      if (line[4] === "error") errors++;
      lines.push(line);
    }
    const over = lines.length - KEPT;
    if (over > 0) {
      lines = lines.slice(over);
      if (over >= to) { from = to = 0; view.replaceChildren(); } else { for (let i = from; i < over; i++) view.firstChild.remove(); from = Math.max(0, from - over); to -= over; }
    }
    draw();
    if (!due) due = setTimeout(() => { due = 0; density(); }, 400);
  }
  // Where lines are, over the time that is kept.
  function density() {
    const svg = $("density"), BARS = 160, width = 800 / BARS;
    if (lines.length < 2) return;
    const begin = lines[0][0], end = Math.max(lines[lines.length - 1][0], begin + 1), all = new Uint32Array(BARS), bad = { error: new Uint32Array(BARS), warning: new Uint32Array(BARS) }, cuts = [];
    for (const [us, stream, version, , level] of lines) {
      const bar = Math.min(BARS - 1, Math.floor(((us - begin) / (end - begin)) * BARS));
      if (stream === "cut") { cuts.push([bar, version]); continue; }
      all[bar]++;
      if (bad[level]) bad[level][bar]++;
    }
    const most = Math.max(...all, 1), shapes = [];
    const add = (name, attributes) => { const shape = document.createElementNS("http://www.w3.org/2000/svg", name); for (const [key, value] of Object.entries(attributes)) shape.setAttribute(key, value); shapes.push(shape); };
    all.forEach((count, i) => { if (count) { const h = Math.max(2, (34 * Math.log1p(count)) / Math.log1p(most)); add("rect", { class: "d", x: i * width + 0.6, y: 36 - h, width: width - 1.2, height: h }); } });
    for (const [level, name] of [["warning", "dh"], ["error", "de"]]) bad[level].forEach((count, i) => { if (count) add("rect", { class: name, x: i * width, y: 0, width, height: 4 }); });
    for (const [bar] of cuts) add("path", { class: "dm", d: `M${bar * width} 0V36` });
    svg.replaceChildren(...shapes);
    strip.hidden = false;
    $("span").replaceChildren(...[time(begin), ...cuts.slice(-4).map(([, version]) => `version ${version}`), time(end)].map((text) => make("span", text)));
  }
  $("density").addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect(), begin = lines[0]?.[0], end = lines[lines.length - 1]?.[0];
    if (begin === undefined) return;
    const us = begin + ((event.clientX - box.left) / box.width) * (end - begin), index = Math.max(0, lines.findIndex((line) => line[0] >= us));
    setFollow(false);
    if (index < from || index >= to) show(index - STEP);
    const row = view.children[index - from];
    view.scrollTop += row.getBoundingClientRect().top - view.getBoundingClientRect().top;
  });
  function setFollow(on) { following = follow.checked = on; if (on) draw(); }
  follow.addEventListener("change", () => setFollow(follow.checked));
  // New lines move the view, too: only the reader's own hand ends the following.
  for (const kind of ["wheel", "touchmove", "pointerdown", "keydown"]) view.addEventListener(kind, () => { touched = Date.now(); }, { passive: true });
  view.addEventListener("scroll", () => {
    const below = view.scrollHeight - view.scrollTop - view.clientHeight, end = below < 40 && to === lines.length;
    if (!begun || (following && (end || Date.now() - touched > 1000))) return;
    if (end !== following) setFollow(end);
    if (view.scrollTop < 400 && from > 0) prepend();
    else if (below < 400 && to < lines.length) append(STEP);
  }, { passive: true });
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
      mark("late", `not live since ${time(lost * 1000)}, tries again`);
      // A stream that was refused is not tried again by the browser.
      if (source.readyState === EventSource.CLOSED) { close(); setTimeout(reopen, 4000); }
    };
  }
  function close() { source?.close(); source = null; }
  // A new stream begins at the beginning: what is there goes.
  function reopen() { if (document.hidden) return; lines = []; from = to = errors = last = 0; begun = false; open(); }
  view.scrollTop = view.scrollHeight;
  open();
  document.addEventListener("visibilitychange", () => { if (document.hidden) close(); else reopen(); });
  addEventListener("pagehide", close);
  view.dataset.ready = "1";
})();

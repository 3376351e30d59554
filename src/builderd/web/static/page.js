// The script of every page: times in the reader's zone, live regions, palette, keys, dialogs. Everything can be read and done without it.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const builder = document.body.dataset.builder || "", builderName = document.body.dataset.name || "";

  // Times
  const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const moment = new Intl.DateTimeFormat([], { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false });
  const span = (s) => (s >= 172800 ? `${Math.floor(s / 86400)} days` : s >= 3600 ? `${Math.floor(s / 3600)} h` : s >= 60 ? `${Math.floor(s / 60)} min` : `${s} s`);
  const ago = (time) => { const s = Math.round((Date.now() - time) / 1000); return Math.abs(s) < 2 ? "now" : s > 0 ? `${span(s)} ago` : `in ${span(-s)}`; };
  const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  function times(root = document) {
    for (const t of $$("time[data-ago]", root)) say(t, ago(Date.parse(t.dateTime)));
    for (const t of $$("time[data-since]", root)) say(t, span(Math.max(0, Math.round((Date.now() - Date.parse(t.dateTime)) / 1000))));
    for (const t of $$("time[data-clock]", root)) say(t, clock.format(Date.parse(t.dateTime)));
    for (const t of $$("time[data-moment]", root)) say(t, moment.format(Date.parse(t.dateTime)));
  }

  // Live regions: the stream says that something happened, and the regions that show it are asked for anew.
  // Of many open pages each asks at a moment of its own, and one that the service refuses asks again.
  const shown = $("#live"), due = new Map();
  let timer = 0, asked = 0;
  function isDue(region, change) {
    if (!change) return true;
    if (builder && change.builder !== builder) return false;
    const kinds = region.dataset.live;
    return kinds === "*" || kinds.split(",").some((kind) => change.type.startsWith(kind));
  }
  function happened(change) {
    for (const region of $$("[data-live]")) if (isDue(region, change)) due.set(region.id, true);
    if (due.size && !timer) timer = setTimeout(refresh, Math.max(150 + 200 * Math.random(), asked + 1000 - Date.now()));
  }
  function later(name, answer) {
    const seconds = Math.min(Number(answer.headers.get("Retry-After")) || 2, 30);
    due.set(name, true);
    timer ||= setTimeout(refresh, seconds * 1000 * (1 + Math.random()));
  }
  async function refresh() {
    timer = 0; asked = Date.now();
    const names = [...due.keys()];
    due.clear();
    for (const name of names) await region(name);
  }
  // To morph an open dialog would close it under the reader's hands: the region waits until it is closed.
  function waits(element, name) {
    const open = $("dialog[open]", element);
    open?.addEventListener("close", () => { due.set(name, true); timer ||= setTimeout(refresh, 150); }, { once: true });
    return Boolean(open);
  }
  async function region(name) {
    const url = new URL(location.href);
    url.searchParams.set("part", name);
    url.searchParams.delete("done");
    url.hash = "";
    const element = document.getElementById(name);
    if (!element || waits(element, name)) return;
    try {
      const answer = await fetch(url, { headers: { "HX-Request": "true" }, redirect: "error" });
      if (answer.status === 401) return signedOut();
      if (answer.status === 429 || answer.status === 503) return later(name, answer);
      if (!answer.ok) return;
      const text = await answer.text(), was = element.dataset.state;
      // It may have been opened since; the swap begins in this same turn.
      if (waits(element, name)) return;
      await htmx.swap({ target: element, swap: "outerMorph", text, sourceElement: element });
      const fresh = document.getElementById(name);
      if (fresh) { times(fresh); if (was && fresh.dataset.state !== was) happenedTo(fresh); }
    } catch { /* The stream says when the service is away. */ }
  }
  function happenedTo(element) { if (element.dataset.reload === "state") location.reload(); else if (element.dataset.toast) toast(element.dataset.toast); }

  function mark(state, text) { if (shown) { shown.dataset.is = state; say(shown, text); } document.body.dataset.stream = state; }
  function signedOut() { mark("late", "signed out"); toast("You are signed out: sign in again.", "/sign-in"); stop(); }
  const channel = "BroadcastChannel" in window ? new BroadcastChannel("builderd-live") : null;
  let source = null, lost = 0, release = null;
  function take(message) {
    if (message.kind === "open") { mark("live", "live"); if (message.again) happened(null); }
    else if (message.kind === "lost") mark("late", message.full ? "not live: too many of your pages are open" : `not live since ${clock.format(message.since)}, tries again`);
    else if (message.kind === "ended") signedOut();
    else if (message.kind === "reset") happened(null);
    else happened(message.change);
  }
  function tell(message) { take(message); channel?.postMessage(message); }
  if (channel) channel.onmessage = (event) => { if (!document.hidden) take(event.data); };
  function open() {
    if (source || document.hidden) return;
    let again = lost > 0;
    source = new EventSource("/live");
    source.onopen = () => { lost = 0; tell({ kind: "open", again }); again = true; };
    source.addEventListener("change", (event) => tell({ kind: "change", change: JSON.parse(event.data) }));
    source.addEventListener("reset", () => tell({ kind: "reset" }));
    source.onerror = () => {
      lost ||= Date.now();
      if (source.readyState !== EventSource.CLOSED) return tell({ kind: "lost", since: lost });
      source.close(); source = null;
      fetch("/live/state", { headers: { "HX-Request": "true" } }).then(
        (answer) => {
          if (answer.status === 401) return tell({ kind: "ended" });
          tell({ kind: "lost", since: lost, full: answer.status === 429 });
          setTimeout(open, answer.status === 429 ? 10000 * (1 + Math.random()) : 4000);
        },
        () => { tell({ kind: "lost", since: lost }); setTimeout(open, 4000); });
    };
  }
  function stop() { source?.close(); source = null; release?.(); release = null; }
  // Browsers open six connections to a host for all tabs together: one visible tab has the stream and tells the others.
  function start() {
    if (document.hidden || release) return;
    if (!navigator.locks || !channel) { release = () => {}; return open(); }
    const gone = new AbortController();
    let held = null;
    release = () => { gone.abort(); held?.(); };
    mark("live", "live");
    navigator.locks.request("builderd-live", { signal: gone.signal }, () => new Promise((done) => { held = done; open(); })).catch(() => {});
  }
  if (shown) {
    start();
    document.addEventListener("visibilitychange", () => { if (document.hidden) stop(); else { start(); happened(null); times(); } });
    addEventListener("pagehide", stop);
    addEventListener("pageshow", (event) => { if (event.persisted) { start(); happened(null); } });
  }

  // Toasts: what ended elsewhere.
  function toast(text, href) {
    const box = document.createElement("div"), words = document.createElement("span"), close = document.createElement("button");
    box.className = "toast"; words.textContent = text; close.textContent = "Close"; close.type = "button";
    close.addEventListener("click", () => box.remove());
    box.append(document.createElement("span"), words);
    if (href) { const link = document.createElement("a"); link.href = href; link.textContent = "Sign in"; box.append(link); } else box.append(close);
    $("#toasts")?.append(box);
    if (!href) setTimeout(() => box.remove(), 8000);
  }

  // Palette
  const palette = $("#palette"), list = $("#palette-list"), box = palette && $("input", palette);
  let entries = null, found = [], at = 0;
  const places = [["Builders", "/builders", "g b"], ["Deploy a new builder", "/new", ""], ["Activity", "/activity", ""], ["Spending", "/spending", ""], ["Tokens", "/tokens", ""], ["Credentials", "/credentials", ""], ["Webhooks", "/webhooks", ""], ["Sessions", "/sessions", ""]].filter(([, href]) => href === "/new" || $(`.side a[href="${href}"]`));
  const tabs = [["overview", "", "o"], ["logs", "/logs", "l"], ["metrics", "/metrics", "m"], ["versions", "/versions", "v"], ["review", "/review", ""], ["QA", "/qa", ""], ["files", "/files", "f"], ["terminal", "/terminal", "t"], ["backups", "/backups", ""], ["settings", "/settings", "s"]];
  async function openPalette() {
    if (!palette || palette.open) return;
    palette.showModal(); box.value = ""; draw();
    if (!entries) { try { entries = await (await fetch("/palette")).json(); } catch { entries = []; } draw(); }
  }
  function matches() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean), all = [];
    if (builderName) for (const [text, path, key] of tabs) all.push([`${builderName}: ${text}`, `/builders/${builderName}${path}`, key && `g ${key}`]);
    for (const place of places) all.push(place);
    for (const [name, state] of entries || []) all.push([name, `/builders/${name}`, state]);
    if (words.length) for (const [name] of entries || []) for (const [text, path] of tabs.slice(1)) all.push([`${name}: ${text}`, `/builders/${name}${path}`, ""]);
    return all.filter(([text]) => words.every((word) => text.toLowerCase().includes(word))).slice(0, 12);
  }
  function draw() {
    found = matches(); at = 0;
    list.replaceChildren(...found.map(([text, , note], index) => {
      const row = document.createElement("li"), name = document.createElement("span"), side = document.createElement(note && note.startsWith("g ") ? "kbd" : "span");
      row.role = "option"; row.id = `palette-${index}`; name.textContent = text; side.textContent = note;
      row.append(name, side);
      row.addEventListener("click", () => { location.href = found[index][1]; });
      return row;
    }));
    choose(0);
  }
  function choose(index) {
    at = Math.max(0, Math.min(found.length - 1, index));
    [...list.children].forEach((row, i) => row.setAttribute("aria-selected", String(i === at)));
    box.setAttribute("aria-activedescendant", found.length ? `palette-${at}` : "");
    list.children[at]?.scrollIntoView({ block: "nearest" });
  }
  box?.addEventListener("input", draw);
  box?.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); choose(at + (event.key === "ArrowDown" ? 1 : -1)); }
    else if (event.key === "Enter" && found[at]) { event.preventDefault(); location.href = found[at][1]; }
  });
  for (const button of $$("[data-palette]")) { button.hidden = false; button.addEventListener("click", openPalette); }

  // Keys. Single ones can be switched off (WCAG 2.1.4).
  const single = $("#single-keys");
  const kept = (() => { try { return localStorage.getItem("single-keys") !== "off"; } catch { return true; } })();
  if (single) { single.checked = kept; single.addEventListener("change", () => { try { localStorage.setItem("single-keys", single.checked ? "on" : "off"); } catch { /* private window */ } }); }
  let going = 0;
  addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") { event.preventDefault(); return openPalette(); }
    const typing = event.target.closest?.("input, textarea, select, [contenteditable], .xterm, dialog[open]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || (single && !single.checked)) return;
    if (Date.now() - going < 1500) {
      going = 0;
      if (event.key === "b") location.href = "/builders";
      const tab = builderName && tabs.find(([, , key]) => key === event.key);
      if (tab) location.href = `/builders/${builderName}${tab[1]}`;
      return;
    }
    if (event.key === "g") going = Date.now();
    else if (event.key === "?") $("#keys")?.showModal();
    else if (event.key === "/") { const find = $("main [type=search]"); if (find) { event.preventDefault(); find.focus(); } }
  });

  // Dialogs, for browsers that do not know commandfor; the name that is typed before something is destroyed; copying.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[commandfor]");
    if (button && !("commandForElement" in HTMLButtonElement.prototype)) {
      const dialog = document.getElementById(button.getAttribute("commandfor"));
      if (button.getAttribute("command") === "close") dialog?.close(); else dialog?.showModal();
    }
    const copy = event.target.closest?.("[data-copy]");
    if (copy) navigator.clipboard?.writeText(copy.dataset.copy || $(copy.dataset.copyFrom)?.textContent || "").then(() => toast("Copied."));
  });
  for (const input of $$("[data-typed]")) {
    const end = $("button.go", input.form);
    end.disabled = true;
    input.addEventListener("input", () => { end.disabled = input.value !== input.dataset.typed; });
  }
  // The chosen one of a row that is wider than the page comes into view.
  for (const chosen of $$(".tabs [aria-current], .seg [aria-current]")) chosen.parentElement.scrollLeft = chosen.offsetLeft - (chosen.parentElement.clientWidth - chosen.offsetWidth) / 2;
  for (const select of $$("[data-submit]")) select.addEventListener("change", () => select.form.requestSubmit());
  if (location.search.includes("done=")) { const url = new URL(location.href); url.searchParams.delete("done"); history.replaceState(null, "", url); }

  times();
  setInterval(() => { if (!document.hidden) times(); }, 1000);
  window.builderd = { toast, times, happened };
})();

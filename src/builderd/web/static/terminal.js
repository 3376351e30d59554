// The terminal: xterm.js over a WebSocket. Bytes both ways; sizes and the exit code as JSON.
"use strict";
(() => {
  const place = document.getElementById("terminal"), live = document.getElementById("term-live"), again = document.getElementById("again");
  // xterm measures a cell on a canvas, which knows no variable fonts: Recursive would be measured in its proportional form.
  const face = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
  const term = new Terminal({ scrollback: 10_000, fontSize: 13, fontFamily: face, cursorBlink: false, screenReaderMode: false, theme: { background: "#12191d", foreground: "#e8e6df", cursor: "#e8e6df", selectionBackground: "#33506e" } });
  const fit = new FitAddon.FitAddon(), bytes = new TextEncoder();
  term.loadAddon(fit); term.open(place); fit.fit();
  window.builderdTerminal = term;
  let socket = null;
  const send = (data) => { if (socket?.readyState === WebSocket.OPEN) socket.send(data); };
  const size = () => send(JSON.stringify({ type: "resize", columns: term.cols, rows: term.rows }));
  function mark(state, text) { live.dataset.is = state; live.textContent = text; }
  function open() {
    again.hidden = true; mark("off", "connecting");
    const url = new URL(place.dataset.src, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.search = `columns=${term.cols}&rows=${term.rows}`;
    socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { mark("live", "connected, keeps the builder awake"); size(); term.focus(); };
    socket.onmessage = (event) => {
      if (typeof event.data !== "string") return term.write(new Uint8Array(event.data));
      const message = JSON.parse(event.data);
      if (message.type === "exit") term.write(`\r\n[ended with code ${message.exit_code}]\r\n`);
    };
    socket.onclose = (event) => { mark("late", event.code === 1000 ? "ended" : event.code === 1008 ? "signed out" : "not connected: the builder may not run"); again.hidden = false; };
  }
  term.onData((text) => send(bytes.encode(text)));
  term.onBinary((text) => send(Uint8Array.from(text, (c) => c.charCodeAt(0))));
  term.onResize(size);
  term.attachCustomKeyEventHandler((event) => {
    if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "e") { if (event.type === "keydown") { (again.hidden ? document.querySelector(".tabs a[aria-current]") : again).focus(); } return false; }
    return true;
  });
  new ResizeObserver(() => fit.fit()).observe(place);
  again.addEventListener("click", () => { term.reset(); open(); });
  addEventListener("pagehide", () => socket?.close());
  open();
})();

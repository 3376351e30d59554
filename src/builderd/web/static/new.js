// Deploying: what of a folder or an archive would be sent is shown first; then the service looks at it, and at Deploy it is sent again, to be kept.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id), drop = $("drop"), another = $("another");
  if (another) {
    another.hidden = false;
    another.addEventListener("click", () => {
      const rows = document.querySelectorAll(".paste"), fresh = rows[rows.length - 1].cloneNode(true);
      for (const field of fresh.querySelectorAll("input, textarea")) field.value = "";
      rows[rows.length - 1].after(fresh);
    });
  }
  if (!drop) return;
  const { next, own, git, settings, settingsScript } = drop.dataset, always = new Set(drop.dataset.always.split(" ")), ARCHIVE = /\.(zip|tar|tgz|tar\.gz|tar\.zst)$/i, ENV = ".env", SHOWN = 200;
  const say = (id, text) => { const where = $(id); if (where) { where.hidden = !text; where.textContent = text; } };
  const size = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : n >= 1e3 ? `${Math.ceil(n / 1e3)} kB` : `${n} B`), count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
  // What is sent: the files of a folder or one archive, its name, and the variables of .env, which stay here until they are in the form.
  let chosen = null;
  drop.hidden = false;
  $("choose-folder").addEventListener("click", () => $("folder").click());
  $("choose-archive").addEventListener("click", () => $("archive").click());
  $("folder").addEventListener("change", (event) => takeFiles([...event.target.files].map((file) => [file.webkitRelativePath || file.name, file])));
  $("archive").addEventListener("change", (event) => event.target.files[0] && takeArchive(event.target.files[0]));
  $("look").addEventListener("click", () => look(new URLSearchParams({ name: chosen.name, look: "" })));
  for (const kind of ["dragover", "dragenter"]) document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => drop.classList.remove("over"));
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean), first = event.dataTransfer.files[0];
    if (!drop.isConnected) return;
    if (entries.length === 1 && entries[0].isFile && ARCHIVE.test(entries[0].name)) return takeArchive(first);
    const found = [];
    for (const entry of entries) await walk(entry, "", found);
    takeFiles(found);
  });
  async function walk(entry, above, found) {
    const path = above ? `${above}/${entry.name}` : entry.name;
    if (entry.isFile) return void found.push([path, await new Promise((done, fail) => entry.file(done, fail))]);
    if (always.has(entry.name)) return void found.push([`${path}/`, null]);
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (!some.length) return;
      for (const one of some) await walk(one, path, found);
    }
  }

  // Rules of a file as https://git-scm.com/docs/gitignore has them, as client/folders.py reads them for the command line.
  const PARTS = /\*\*\/|\/\*\*$|\*\*|\*|\?|\[!?\]?[^\]]*\]|\\.|./gs, FIXED = { "**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]" };
  const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
  function part(text) {
    if (text in FIXED) return FIXED[text];
    if (text.length > 2 && text.startsWith("[")) {
      const inner = text.slice(1, -1).replaceAll("\\", "\\\\"), not = inner.startsWith("!");
      return `[${not ? "^" : ""}${(not ? inner.slice(1) : inner).replaceAll("[", "\\[").replace(/^\]/, "\\]")}]`;
    }
    return escaped(text.startsWith("\\") && text.length === 2 ? text[1] : text);
  }
  function rule(line) {
    const text = line.trimEnd();
    if (!text || text.startsWith("#")) return [];
    const negated = text.startsWith("!"), glob = (negated ? text.slice(1) : text).replace(/^\\(?=[#!])/, ""), bare = glob.replace(/\/+$/, "");
    try {
      const pattern = new RegExp(`^${bare.includes("/") ? "" : "(?:.*/)?"}${(bare.replace(/^\//, "").match(PARTS) || []).map(part).join("")}$`, "s");
      return [{ text, negated, pattern, folders: glob.endsWith("/") }];
    } catch { return []; }
  }
  /** Return a function that says why a path is left out: "" if it is not. `files` are pairs of path and File. */
  async function judge(files) {
    const read = async (base, name) => ({ base, name: base + name, rules: (await files.get(base + name)?.text() ?? "").split(/\r?\n/).flatMap(rule) });
    const mine = await read("", own), known = new Map(), ignored = new Map();
    for (const path of files.keys()) if (path === git || path.endsWith(`/${git}`)) { const base = path.slice(0, -git.length); ignored.set(base, await read(base, git)); }
    const of = (path, isFolder) => {
      const at = path.lastIndexOf("/") + 1, name = path.slice(at), rules = [mine];
      if (always.has(name)) return `always: ${name}`;
      if (path === settings) return "settings of the command line";
      if (!isFolder && name === ENV) return ENV;
      for (let base = path.slice(0, at); ; base = base.slice(0, base.lastIndexOf("/", base.length - 2) + 1)) { if (ignored.has(base)) rules.push(ignored.get(base)); if (!base) break; }
      for (const { base, name: file, rules: lines } of rules) {
        const found = lines.findLast((one) => (isFolder || !one.folders) && one.pattern.test(path.slice(base.length)));
        if (found) return found.negated ? "" : `${file}: ${found.text}`;
      }
      return "";
    };
    return (path) => {
      for (let at = path.indexOf("/"); at >= 0; at = path.indexOf("/", at + 1)) {
        const folder = path.slice(0, at);
        if (!known.has(folder)) known.set(folder, of(folder, true));
        if (known.get(folder)) return [`${folder}/`, known.get(folder)];
      }
      return [path, of(path, false)];
    };
  }
  async function takeFiles(found) {
    // One folder around everything is the folder that was chosen.
    const first = found[0]?.[0].split("/")[0], inside = found.every(([path]) => path.startsWith(`${first}/`));
    const files = new Map(found.map(([path, file]) => [inside ? path.slice(first.length + 1) : path, file]));
    const why = await judge(files), kept = [], left = new Map();
    for (const [path, file] of files) { const [what, reason] = why(path); if (reason || !file) left.set(what, reason); else kept.push([path, file]); }
    if (!kept.length) { chosen = null; say("plan", ""); return say("fault", "There is no file in it that would be sent."); }
    const hasForm = next === "/new", variables = hasForm && files.get(ENV) ? variablesOf(await files.get(ENV).text()) : [];
    chosen = { kept, variables, name: inside ? first : "" };
    const told = [], envs = [...left].filter(([, reason]) => reason === ENV).map(([path]) => path), others = [...left].filter(([, reason]) => reason !== ENV);
    if (others.length) told.push(list(`Left out: ${others.slice(0, 6).map(([path]) => path).join(", ")}${others.length > 6 ? ` and ${others.length - 6} more` : ""}`, others.map(([path, reason]) => `${path}  (${reason})`)));
    if (envs.length) told.push(`${envs.join(", ")} is not sent as a file. ${variables.length ? `Variables of .env are filled in under Environment, for you to look at: ${variables.map(([name]) => name).join(", ")}.` : hasForm ? "Set its variables under Environment." : "The app keeps its environment, which is under Settings."}`);
    plan(`${count(kept.length, "file")}, ${size(kept.reduce((sum, [, file]) => sum + file.size, 0))}`, [list("Files to be sent", kept.map(([path]) => path)), ...told]);
  }
  function takeArchive(file) {
    chosen = { archive: file, variables: [], name: file.name.replace(ARCHIVE, "") };
    plan(`${file.name}, ${size(file.size)}`, ["An archive is sent as it is, also what lies in it of .env, .git or node_modules. Of a folder these are left out."]);
  }
  function plan(title, parts) {
    say("fault", ""); say("plan-what", title);
    $("plan-kept").replaceChildren(...parts.map((one) => (typeof one === "string" ? Object.assign(document.createElement("p"), { textContent: one }) : one)));
    $("plan").hidden = false; $("look").disabled = false;
    $("plan").scrollIntoView({ block: "nearest" }); $("look").focus({ preventScroll: true });
  }
  function list(title, lines) {
    const made = document.createElement("details"), all = document.createElement("ul");
    all.className = "difflist m q";
    for (const line of [...lines.slice(0, SHOWN), ...(lines.length > SHOWN ? [`and ${lines.length - SHOWN} more`] : [])]) all.append(Object.assign(document.createElement("li"), { textContent: line }));
    made.append(Object.assign(document.createElement("summary"), { textContent: title }), all);
    return made;
  }
  const unquoted = (text) => { const found = /^(["'])([^]*)\1/.exec(text); return found ? found[2] : text.replace(/\s+#.*$/, "").trim(); };
  const variablesOf = (text) => [...text.matchAll(/^[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)[ \t]*=[ \t]*("[^"]*"|'[^']*'|[^\n]*)/gm)].map(([, name, value]) => [name, unquoted(value)]);

  // A file in a tar archive, its path in a header of its own (pax): https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html
  const utf8 = new TextEncoder();
  function header(name, length, type) {
    const block = new Uint8Array(512), put = (at, text) => block.set(utf8.encode(text), at);
    put(0, name); put(100, "0000644"); put(108, "0000000"); put(116, "0000000"); put(124, length.toString(8).padStart(11, "0")); put(136, "00000000000"); put(148, "        "); put(156, type); put(257, "ustar\u000000");
    put(148, `${block.reduce((sum, byte) => sum + byte, 0).toString(8).padStart(6, "0")}\0 `);
    return block;
  }
  function entry(path, file) {
    const rest = utf8.encode(` path=${path}\n`), pad = (length) => new Uint8Array((512 - (length % 512)) % 512);
    let length = rest.length + 1;
    while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
    return [header("pax", length, "x"), String(length), rest, pad(length), header("file", file.size, "0"), file, pad(file.size)];
  }
  async function packed() {
    if (chosen.archive) return chosen.archive;
    const whole = new Blob([...chosen.kept.flatMap(([path, file]) => entry(`code/${path}`, file)), new Uint8Array(1024)]);
    return "CompressionStream" in window ? new Response(whole.stream().pipeThrough(new CompressionStream("gzip"))).blob() : whole;
  }
  /** Send the code, and then the fields of the form; return the answer. */
  async function send(fields) {
    const archive = await packed(), headers = { Accept: "application/json", "Content-Type": "application/octet-stream" };
    say("sending", `Sending ${size(archive.size)} …`);
    // What was sent before and not deployed makes room.
    const sent = await fetch(`/new/archive?instead=${sessionStorage.getItem("upload") || ""}`, { method: "POST", headers, body: archive }), body = await sent.json().catch(() => ({}));
    if (!sent.ok) throw new Error(body.message || `The service answered ${sent.status}.`);
    sessionStorage.setItem("upload", body.upload_id);
    fields.set("upload", body.upload_id);
    return fetch(next, { method: "POST", body: fields });
  }
  /** Show the page that answers these fields in place of this one, which keeps the code. */
  async function look(fields) {
    say("fault", ""); say("sending", "Packing …");
    for (const button of document.querySelectorAll("main button")) button.disabled = true;
    try {
      const answer = await send(fields);
      if (answer.redirected) return void (location.href = answer.url);
      show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch (error) {
      for (const button of document.querySelectorAll("main button")) button.disabled = false;
      say("sending", ""); ($("fault") ? say("fault", error.message) : alert(error.message));
    }
  }
  function show(answer) {
    const told = $("plan-kept") ?? $("sent"), status = $("sending"), fault = $("fault"), form = answer.getElementById("new");
    document.querySelector("main").replaceWith(document.adoptNode(answer.querySelector("main")));
    // Without a form, the page says why the code cannot be taken, and begins again.
    if (!form) return restart();
    if (told.id === "plan-kept" && chosen.kept) told.firstChild.remove();  // The page lists the files.
    $("sent").append(...told.childNodes);
    status.hidden = fault.hidden = true; $("deploy").parentElement.after(status, fault);
    fill();
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      look(new URLSearchParams(new FormData(form, event.submitter)));
    });
    if ($("envs")) document.body.append(Object.assign(document.createElement("script"), { src: settingsScript }));
    scrollTo(0, 0);
  }
  function restart() {
    const again = Object.assign(document.createElement("p"), { className: "acts" }), link = Object.assign(document.createElement("a"), { href: next, className: "b", textContent: "Choose again" });
    again.append(link); $("drop").replaceWith(again); $("plan").remove();
  }
  // Variables of .env become rows of the form, once.
  function fill() {
    const rows = $("envs"), { variables } = chosen;
    if (!rows || !variables.length) return;
    chosen.variables = [];
    for (const [name, value] of variables) {
      const row = rows.lastElementChild.cloneNode(true), [first, second] = row.querySelectorAll("input");
      first.value = name; second.value = value;
      rows.lastElementChild.before(row);
    }
    rows.closest("details").open = true;
  }
})();

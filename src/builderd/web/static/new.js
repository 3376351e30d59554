// Deploying: a folder or an archive that was dropped or chosen, or the pasted files, sent as the API takes them.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const form = $("new"), drop = $("drop"), button = $("deploy"), isNew = !form.dataset.target;
  const LEFT_OUT = /(^|\/)(\.git|\.venv|venv|node_modules|__pycache__|\.mypy_cache|\.pytest_cache|\.DS_Store)(\/|$)/;
  const ARCHIVE = /\.(zip|tar|tgz|tar\.gz|tar\.zst)$/i, LIMIT = 20_000_000, FILES = 2000;
  let files = null, archive = null;
  const size = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : n >= 1e3 ? `${(n / 1e3).toFixed(0)} kB` : `${n} bytes`);
  function fault(text) { $("fault").hidden = !text; $("fault").textContent = text; }

  drop.hidden = false;
  if ($("another")) {
    $("another").hidden = false;
    $("another").addEventListener("click", () => {
      const rows = document.querySelectorAll(".paste"), fresh = rows[rows.length - 1].cloneNode(true);
      for (const field of fresh.querySelectorAll("input, textarea")) field.value = "";
      rows[rows.length - 1].after(fresh);
    });
  }
  $("choose-folder").addEventListener("click", () => $("folder").click());
  $("choose-archive").addEventListener("click", () => $("archive").click());
  $("folder").addEventListener("change", (event) => takeFiles([...event.target.files].map((file) => [file.webkitRelativePath || file.name, file])));
  $("archive").addEventListener("change", (event) => event.target.files[0] && takeArchive(event.target.files[0]));
  $("forget").addEventListener("click", () => { files = archive = null; show(); });
  for (const kind of ["dragover", "dragenter"]) document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => drop.classList.remove("over"));
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    if (entries.length === 1 && entries[0].isFile && ARCHIVE.test(entries[0].name)) return takeArchive(event.dataTransfer.files[0]);
    const found = [];
    for (const entry of entries) await walk(entry, "", found);
    takeFiles(found.length ? found : [...event.dataTransfer.files].map((file) => [file.name, file]));
  });
  async function walk(entry, above, found) {
    const path = above ? `${above}/${entry.name}` : entry.name;
    if (LEFT_OUT.test(path) || found.length > FILES) return;
    if (entry.isFile) return void found.push([path, await new Promise((done, fail) => entry.file(done, fail))]);
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (!some.length) return;
      for (const one of some) await walk(one, path, found);
    }
  }
  function takeFiles(found) {
    let kept = found.filter(([path]) => !LEFT_OUT.test(path));
    // One folder around everything is the folder that was chosen.
    const first = kept[0]?.[0].split("/")[0];
    const inside = kept.length && kept.every(([path]) => path.startsWith(`${first}/`));
    if (inside) kept = kept.map(([path, file]) => [path.slice(first.length + 1), file]);
    const bytes = kept.reduce((sum, [, file]) => sum + file.size, 0);
    fault(bytes > LIMIT ? `The files have ${size(bytes)}; at most ${size(LIMIT)} go in one request. Send an archive instead.` : kept.length > FILES ? `There are ${kept.length} files; at most ${FILES} are taken.` : "");
    archive = null; files = kept.length ? { name: inside ? first : `${kept.length} files`, bytes, list: kept } : null;
    show();
  }
  function takeArchive(file) { files = null; archive = file; fault(""); show(); }
  function show() {
    const chosen = files || archive;
    drop.hidden = Boolean(chosen); $("chosen").hidden = !chosen;
    if ($("pasted")) $("pasted").hidden = Boolean(chosen);
    if (!isNew) button.disabled = !chosen;
    if (!chosen) { $("folder").value = $("archive").value = ""; return; }
    $("chosen-name").textContent = chosen.name;
    $("chosen-size").textContent = files ? `${files.list.length} file${files.list.length === 1 ? "" : "s"}, ${size(files.bytes)}` : size(archive.size);
    const names = files ? files.list.map(([path]) => path) : [];
    $("chosen-files").replaceChildren(...names.slice(0, 12).concat(names.length > 12 ? [`… and ${names.length - 12} more`] : []).map((name) => Object.assign(document.createElement("li"), { textContent: name })));
    if (isNew && !form.elements.name.value) form.elements.name.value = chosen.name.toLowerCase().replace(ARCHIVE, "").replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 40);
    if (isNew && !form.elements.entrypoint.value && names.length && !names.includes("Procfile")) {
      const entry = [["main.py", "python3 main.py"], ["app.py", "python3 app.py"], ["server.js", "node server.js"], ["index.js", "node index.js"], ["package.json", "npm start"], ["index.html", "python3 -m http.server $PORT"]].find(([name]) => names.includes(name));
      if (entry) form.elements.entrypoint.value = entry[1];
    }
  }

  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  async function contents() {
    const all = {};
    for (const [path, file] of files.list) {
      const bytes = new Uint8Array(await file.arrayBuffer());
      try { all[path] = text.decode(bytes); if (all[path].includes("\0")) throw 0; } catch {
        let binary = "";
        for (let i = 0; i < bytes.length; i += 32768) binary += String.fromCharCode(...bytes.subarray(i, i + 32768));
        all[path] = { content: btoa(binary), encoding: "base64" };
      }
    }
    return all;
  }
  const number = (value) => (value.trim() !== "" && Number.isFinite(Number(value)) ? Number(value) : value);
  function settings() {
    if (!isNew) return {};
    // As builder_form.py does of a form that is posted: fields that the kind does not have are left out.
    const fields = form.elements, ticked = (name) => Boolean(fields[name]?.checked), kind = fields.job_type.value;
    const all = (name) => [...form.querySelectorAll(`[name=${name}]`)], values = all("env-value");
    const asked = {
      name: fields.name.value.trim(), resources: { cpu: number(fields.cpu.value), memory: number(fields.memory.value), disk: number(fields.disk.value) },
      env: Object.fromEntries(all("env-name").map((field, i) => [field.value.trim(), values[i].value]).filter(([name]) => name)),
      credentials: all("credential").filter((box) => box.checked).map((box) => box.value), backup_interval_hours: number(fields.hours.value || "0"),
    };
    for (const name of ["require_qa", "skip_review", "skip_qa", "install_scripts"]) asked[name] = ticked(name);
    if (kind !== "always_on") asked.job_type = kind;
    if (["always_on", "static", "sandbox"].includes(kind)) {
      asked.port = number(fields.port.value); asked.protocol = fields.protocol.value;
      asked.visibility = (kind === "sandbox" ? !ticked("public") : ticked("private")) ? "private" : "public";
      asked.auto_stop_interval = ticked("sleeps") ? number(fields.minutes.value) : 0;
    }
    for (const name of ["entrypoint", "build", "release", "root", "env_file", "isolation"]) if (fields[name].value.trim()) asked[name] = fields[name].value.trim();
    return asked;
  }
  async function answerOf(answer) {
    const body = await answer.json().catch(() => ({}));
    if (answer.ok) return body;
    const fields = Object.entries(body.errors || {}).map(([name, why]) => `${name} ${why.join(", ")}`);
    throw new Error([body.message || `The service answered ${answer.status}.`, ...fields].join(" "));
  }
  form.addEventListener("submit", async (event) => {
    if (!files && !archive) return;
    event.preventDefault();
    fault(""); button.disabled = true; $("sending").hidden = false;
    const headers = { Accept: "application/json" };
    try {
      const asked = settings();
      if (archive) asked.source = { upload_id: (await answerOf(await fetch("/new/archive", { method: "POST", headers: { ...headers, "Content-Type": "application/octet-stream" }, body: archive }))).upload_id };
      else asked.files = await contents();
      const made = await answerOf(await fetch(form.dataset.target || "/new/send", { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(asked) }));
      location.href = made.location;
    } catch (error) { fault(error.message); button.disabled = false; $("sending").hidden = true; }
  });
  if (isNew) form.addEventListener("input", (event) => {
    const { memory, job_type: kind } = form.elements;  // A static site needs a tenth of an app's.
    if (event.target.name === "job_type" && ["1", "0.125"].includes(memory.value)) memory.value = kind.value === "static" ? "0.125" : "1";
    const d = form.dataset, part = (name) => Number(form.elements[name].value) * Number(d[`rate${name[0].toUpperCase()}${name.slice(1)}`]);
    const stopped = part("disk"), frozen = stopped + part("memory"), show = (id, sum) => { if (Number.isFinite(sum)) $(id).textContent = d.sign + sum.toFixed(4); };
    show("rate", frozen + part("cpu")); show("rate-frozen", frozen); show("rate-stopped", stopped);
  });
})();

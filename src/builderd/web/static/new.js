// Deploying: a folder or an archive that was dropped or chosen is sent, and the next page shows what it is.
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
  const names = new Set(drop.dataset.leftOut.split(" ")), ARCHIVE = /\.(zip|tar|tgz|tar\.gz|tar\.zst)$/i, left = new Set();
  const say = (id, text) => { $(id).hidden = !text; $(id).textContent = text; };
  const size = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : `${Math.ceil(n / 1e3)} kB`);
  drop.hidden = false;
  $("choose-folder").addEventListener("click", () => $("folder").click());
  $("choose-archive").addEventListener("click", () => $("archive").click());
  $("folder").addEventListener("change", (event) => takeFiles([...event.target.files].map((file) => [file.webkitRelativePath || file.name, file])));
  $("archive").addEventListener("change", (event) => event.target.files[0] && send(event.target.files[0], event.target.files[0].name));
  for (const kind of ["dragover", "dragenter"]) document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => drop.classList.remove("over"));
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean), first = event.dataTransfer.files[0];
    if (entries.length === 1 && entries[0].isFile && ARCHIVE.test(entries[0].name)) return send(first, first.name);
    const found = [];
    for (const entry of entries) await walk(entry, "", found);
    takeFiles(found);
  });
  async function walk(entry, above, found) {
    if (names.has(entry.name)) return void left.add(entry.name);
    const path = above ? `${above}/${entry.name}` : entry.name;
    if (entry.isFile) return void found.push([path, await new Promise((done, fail) => entry.file(done, fail))]);
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((done, fail) => reader.readEntries(done, fail));
      if (!some.length) return;
      for (const one of some) await walk(one, path, found);
    }
  }
  async function takeFiles(found) {
    const kept = found.filter(([path]) => !path.split("/").some((part) => names.has(part) && left.add(part)));
    if (!kept.length) return say("fault", "There is no file in it.");
    // One folder around everything is the folder that was chosen.
    const first = kept[0][0].split("/")[0], inside = kept.every(([path]) => path.startsWith(`${first}/`));
    const parts = kept.flatMap(([path, file]) => entry(`code/${inside ? path.slice(first.length + 1) : path}`, file));
    const packed = new Blob([...parts, new Uint8Array(1024)]), zips = "CompressionStream" in window;
    say("sending", `Packing ${kept.length} files …`);
    try { await send(zips ? await new Response(packed.stream().pipeThrough(new CompressionStream("gzip"))).blob() : packed, inside ? first : ""); } catch (error) { ended(error); }
  }
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
  async function send(archive, name) {
    say("fault", ""); say("sending", `Sending ${size(archive.size)} …`);
    for (const button of drop.querySelectorAll("button")) button.disabled = true;
    drop.querySelector("progress").hidden = false;
    try {
      // What was sent before and not deployed makes room.
      const instead = sessionStorage.getItem("upload") || "", headers = { Accept: "application/json", "Content-Type": "application/octet-stream" };
      const answer = await fetch(`/new/archive?instead=${instead}`, { method: "POST", headers, body: archive }), body = await answer.json().catch(() => ({}));
      if (!answer.ok) throw new Error(body.message || `The service answered ${answer.status}.`);
      sessionStorage.setItem("upload", body.upload_id);
      location.href = `${drop.dataset.next}?${new URLSearchParams({ upload: body.upload_id, name: name.replace(ARCHIVE, ""), left: [...left].join() })}`;
    } catch (error) { ended(error); }
  }
  function ended(error) {
    say("fault", error.message); say("sending", "");
    for (const button of drop.querySelectorAll("button")) button.disabled = false;
    drop.querySelector("progress").hidden = true; $("folder").value = $("archive").value = ""; left.clear();
  }
})();

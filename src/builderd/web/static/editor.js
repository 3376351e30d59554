// A textarea with line numbers: the numbers follow its scrolling, Tab indents, Ctrl S saves, leaving with changes asks.
"use strict";
(() => {
  for (const area of document.querySelectorAll("[data-editor]")) {
    const gutter = area.parentElement.querySelector(".gutter"), form = area.form, dirty = form.querySelector("[data-dirty]");
    const was = area.value;
    let lines = 0, sending = false;
    function count() {
      const now = area.value.split("\n").length;
      if (now !== lines) { lines = now; gutter.textContent = Array.from({ length: lines }, (_, i) => i + 1).join("\n"); }
      if (dirty) dirty.hidden = area.value === was;
    }
    area.addEventListener("input", count);
    area.addEventListener("scroll", () => { gutter.scrollTop = area.scrollTop; }, { passive: true });
    let leave = false;
    area.addEventListener("keydown", (event) => {
      if (event.key === "s" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
      // Esc, then Tab, leaves the field: a keyboard must not be caught in it (WCAG 2.1.2).
      if (event.key === "Escape") leave = true;
      else if (event.key === "Tab" && !event.shiftKey && !leave && !area.readOnly) { event.preventDefault(); area.setRangeText("    ", area.selectionStart, area.selectionEnd, "end"); count(); }
      else if (event.key !== "Tab") leave = false;
    });
    form.addEventListener("submit", () => { sending = true; });
    addEventListener("beforeunload", (event) => { if (!sending && area.value !== was && !area.readOnly) event.preventDefault(); });
    count();
  }
  const upload = document.querySelector("[data-upload]"), chooser = document.querySelector("[data-upload-file]");
  if (upload && chooser) {
    upload.hidden = false;
    upload.addEventListener("click", () => chooser.click());
    chooser.addEventListener("change", async () => {
      for (const file of chooser.files) {
        const folder = upload.dataset.folder, path = (folder ? `${folder}/` : "") + file.name;
        const answer = await fetch(`${upload.dataset.upload}/${path.split("/").map(encodeURIComponent).join("/")}`, { method: "POST", headers: { Accept: "application/json", "Content-Type": "application/octet-stream" }, body: file });
        if (!answer.ok) { const body = await answer.json().catch(() => ({})); builderd.toast(body.message || `The service answered ${answer.status}.`); return; }
      }
      location.reload();
    });
  }
})();

// The environment's rows: removed by a button, and a new one once the last is used; the price of the size, where it is shown.
"use strict";
(() => {
  const rows = document.getElementById("envs");
  for (const button of rows.querySelectorAll("[data-remove]")) { button.hidden = false; button.addEventListener("click", () => button.parentElement.remove()); }
  rows.addEventListener("input", () => {
    const last = rows.lastElementChild;
    if (!last.querySelector("input").value) return;
    const fresh = last.cloneNode(true);
    for (const input of fresh.querySelectorAll("input")) input.value = "";
    last.after(fresh);
  });
  const form = document.getElementById("new"), d = form?.dataset;
  form?.addEventListener("change", (event) => {
    const { memory, job_type: kind } = form.elements;  // A static site needs a tenth of an app's.
    if (event.target === kind && ["1", "0.125"].includes(memory.value)) memory.value = kind.value === "static" ? "0.125" : "1";
  });
  if (d?.sign) form.addEventListener("input", () => {
    const part = (name) => Number(form.elements[name].value) * Number(d[`rate${name[0].toUpperCase()}${name.slice(1)}`]);
    const stopped = part("disk"), frozen = stopped + part("memory"), show = (id, sum) => { if (Number.isFinite(sum)) document.getElementById(id).textContent = d.sign + sum.toFixed(4); };
    show("rate", frozen + part("cpu")); show("rate-frozen", frozen); show("rate-stopped", stopped);
  });
})();

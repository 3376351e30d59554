// The environment's rows: removed by a button, and a new one once the last is used.
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
})();

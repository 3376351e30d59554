// Charts by uPlot, in the colours of the page; asked for anew each minute while they are seen.
"use strict";
(async () => {
  const panels = document.getElementById("panels"), charts = new Map(), watched = new Set();
  const colour = (name) => { const probe = document.createElement("i"); probe.className = name; panels.append(probe); const value = getComputedStyle(probe).color; probe.remove(); return value; };
  const bytes = (n) => { if (n == null) return "–"; let i = 0; while (n >= 1000 && i < 4) { n /= 1024; i++; } return `${n >= 100 || i === 0 ? Math.round(n) : n.toFixed(1)} ${["B", "kB", "MB", "GB", "TB"][i]}`; };
  const plain = (n) => (n == null ? "–" : n >= 100 ? Math.round(n).toLocaleString() : String(Math.round(n * 100) / 100));
  const time = (s) => (s == null ? "–" : s >= 1 ? `${plain(s)} s` : `${plain(s * 1000)} ms`);
  const two = (n) => String(n).padStart(2, "0"), clock = (s) => { const d = new Date(s * 1000); return `${two(d.getHours())}:${two(d.getMinutes())}`; };
  const KINDS = { requests: [[6, "s1"], [7, "s4"]], times: [[9, "s1"], [8, "s2"]], cpu: [[1, "s1"]], memory: [[2, "s1"]], disk: [[3, "s1"]], network: [[5, "s1"], [4, "s2"]] };
  // Sizes are told in powers of 1024: their lines are at round ones.
  const POWERS = Array.from({ length: 46 }, (_, power) => 2 ** power);
  // A value between two gaps is no line: without points, a builder that just started would have empty charts.
  const isSparse = (values) => values.filter((value) => value != null).length < 3;
  function draw(key, columns, limits) {
    const box = document.getElementById(`c-${key}`), isBytes = ["memory", "disk", "network"].includes(key), show = isBytes ? bytes : key === "times" ? time : plain, limit = limits[key];
    const data = [columns[0], ...KINDS[key].map(([column]) => columns[column])];
    const latest = data[1].findLast((value) => value != null);
    document.getElementById(`v-${key}`).textContent = show(latest);
    if (charts.has(key)) return charts.get(key).setData(data);
    const ink = colour("c-text"), line = colour("c-grid");
    const axis = { stroke: ink, font: "12px Recursive, sans-serif", grid: { stroke: line, width: 1 }, ticks: { show: false } };
    charts.set(key, new uPlot({
      width: box.clientWidth, height: 170, cursor: { y: false, points: { size: 6 } }, legend: { show: false },
      scales: { y: { range: (_, low, high) => [0, Math.max(limit && high > limit / 4 ? limit : 0, high || 0, key === "cpu" ? 0.1 : key === "times" ? 0.01 : 1) * 1.05] } },
      axes: [{ ...axis, size: 28, values: (_, all) => all.map(clock) }, { ...axis, size: 62, values: (_, all) => all.map(show), ...(isBytes ? { incrs: POWERS } : {}) }],
      series: [{}, ...KINDS[key].map(([, name], index) => ({ stroke: colour(`c-${name}`), width: 1.5, dash: index && ["network", "times"].includes(key) ? [3, 2] : undefined, fill: index ? undefined : colour(`c-${name}-wash`), points: { show: (plot, at) => isSparse(plot.data[at]), size: 5 }, spanGaps: false }))],
      hooks: { setCursor: [(plot) => { const at = plot.cursor.idx, value = at == null ? latest : plot.data[1][at]; document.getElementById(`v-${key}`).textContent = at == null ? show(latest) : `${show(value)} at ${clock(plot.data[0][at])}`; }] },
    }, data, box));
    if (!watched.has(box)) { watched.add(box); new ResizeObserver(() => charts.get(key)?.setSize({ width: box.clientWidth, height: 170 })).observe(box); }
  }
  async function load() {
    try {
      const answer = await fetch(panels.dataset.src, { headers: { Accept: "application/json" } });
      if (!answer.ok) return;
      const { columns, limits } = await answer.json();
      if (columns.length) for (const key of Object.keys(KINDS)) draw(key, columns, limits);
      panels.dataset.ready = "1";
    } catch { /* The page's own stream says when the service is away. */ }
  }
  await document.fonts.ready;
  await load();
  // Colours are the canvas's own: they are taken anew when the system goes from light to dark.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const chart of charts.values()) chart.destroy(); charts.clear(); load(); });
  setInterval(() => { if (!document.hidden) load(); }, 60_000);
})();

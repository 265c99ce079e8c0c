"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const K = D.categories.length, P = D.pairs.length;
const COLOURS = ["#0b5cad", "#c0392b", "#2e8b57", "#8e44ad", "#c77c02", "#16808c", "#7f5a3a", "#d6457e"];

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.map((c) => (c instanceof Node ? c : document.createTextNode(String(c)))));
  return element;
}
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((c) => (c instanceof Node ? c : document.createTextNode(String(c)))));
  return element;
}
function number(value) {
  if (value === "inf") return Infinity;
  if (value === "-inf") return -Infinity;
  return typeof value === "number" ? value : NaN;
}
function shown(value) {
  const x = number(value);
  if (Number.isNaN(x)) return "";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "-∞";
  if (Number.isInteger(x) && Math.abs(x) < 1e6) return String(x);
  return Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(1) : String(Number(x.toPrecision(3)));
}
function brief(value) { // two digits: what a cell of the heat map has room for; its title has three
  const x = number(value);
  if (!Number.isFinite(x) || x === 0 || Number.isInteger(x) && Math.abs(x) < 1000) return shown(x);
  if (Math.abs(x) >= 1000 || Math.abs(x) < 0.01) return x.toExponential(0).replace("+", "");
  return String(Number(x.toPrecision(2))).replace(/^(-?)0\./, "$1.");
}
function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
}

// ---- data by number

const statistic = (site, kpi, category, name) => {
  const cell = D.cells[site][kpi * K + category], at = D.statistics.indexOf(name);
  return cell && at >= 0 ? number(cell[at]) : NaN;
};
const effect = (site, kpi, pair, name) => {
  const cell = D.effects[site][kpi * P + pair], at = D.contrast.indexOf(name);
  return cell && at >= 0 ? number(cell[at]) : NaN;
};
const pairName = (pair) => `${D.pairs[pair][0]} against ${D.pairs[pair][1]}`;

function strongest(site, kpi) {
  let best = NaN;
  for (let p = 0; p < P; p++) {
    const g = effect(site, kpi, p, "g");
    if (!Number.isNaN(g) && (Number.isNaN(best) || Math.abs(g) > Math.abs(best))) best = g;
  }
  return best;
}

// ---- heat map

const kinds = [...new Set(D.sites.map((s) => s[1]))];
const layers = [...new Set(D.sites.map((s) => s[2]).filter((l) => l !== null))].sort((a, b) => a - b);
const columns = D.sites.some((s) => s[2] === null) ? [null, ...layers] : layers;
const siteAt = new Map(D.sites.map((s, i) => [`${s[1]} ${s[2]}`, i]));
let chosen = null;

function value(site, kpi, show) {
  if (show === "strongest") return strongest(site, kpi);
  const [what, index, name] = show.split(" ");
  return what === "pair" ? effect(site, kpi, Number(index), name) : statistic(site, kpi, Number(index), "mean");
}

function paint(x, scale, middle) {
  if (Number.isNaN(x)) return "transparent";
  const share = Math.max(-1, Math.min(1, (x - middle) / (scale || 1)));
  return `rgba(var(${share < 0 ? "--low" : "--high"}), ${(0.06 + 0.84 * Math.abs(share)).toFixed(3)})`;
}

function drawHeat() {
  const kpi = Number($("kpi").value), show = $("show").value;
  const values = D.sites.map((_, site) => value(site, kpi, show));
  const middle = show.endsWith("auroc") ? 0.5 : 0;
  const finite = values.filter(Number.isFinite).map((x) => Math.abs(x - middle)).sort((a, b) => a - b);
  const scale = finite.length ? finite[Math.floor(0.98 * (finite.length - 1))] || finite[finite.length - 1] : 1;
  const head = make("tr", {}, make("th", { scope: "col" }, "site"),
    ...columns.map((l) => make("th", { scope: "col" }, l === null ? "–" : l)));
  const rows = kinds.map((kind) => make("tr", {}, make("th", { scope: "row" }, kind), ...columns.map((layer) => {
    const site = siteAt.get(`${kind} ${layer}`);
    if (site === undefined) return make("td");
    const x = values[site], strong = Math.abs((x - middle) / (scale || 1)) > 0.62;
    const button = make("button", { type: "button", title: `${D.sites[site][0]}: ${shown(x) || "no figure"}`,
      "aria-label": `${D.sites[site][0]}, ${shown(x) || "no figure"}`, "aria-pressed": String(chosen === site) }, brief(x));
    button.style.background = paint(x, scale, middle);
    if (strong) button.style.color = "#fff";
    button.dataset.site = site;
    button.addEventListener("click", () => choose(site, kpi));
    return make("td", {}, button);
  })));
  $("heat").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
  const texts = [...$("show").options].find((o) => o.value === show);
  $("map-note").textContent = `${D.kpis[kpi]}: ${texts ? texts.text : ""}. Columns are layers, “–” is outside the layers.`;
  $("scale").textContent = `Blue is below ${middle}, red above; full colour from ${shown(scale)} away. ` +
    `${values.filter(Number.isNaN).length} of ${values.length} sites have no figure.`;
}

$("heat").addEventListener("keydown", (event) => {
  const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  const cell = event.target.closest("td"), move = moves[event.key];
  if (!cell || !move) return;
  event.preventDefault();
  const row = cell.parentElement.rowIndex, column = cell.cellIndex, table = $("heat");
  for (let k = 1; k < 1000; k++) {
    const next = table.rows[row + k * move[1]], target = next && next.cells[column + k * move[0]];
    if (!target) return;
    const button = target.querySelector("button");
    if (button) { button.focus(); return; }
  }
});

// ---- one site

function choose(site, kpi) {
  chosen = site;
  for (const button of $("heat").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.site) === site));
  }
  $("detail-hint").hidden = true;
  const body = [make("h3", {}, `${D.sites[site][0]}, ${D.kpis[kpi]}`), strips(site, kpi)];
  const own = ["category", ...D.statistics];
  body.push(grid(own, D.categories.map((c, i) => [c, ...D.statistics.map((s) => statistic(site, kpi, i, s))])));
  if (P) {
    body.push(make("h3", {}, "Contrasts"), grid(["a", "b", ...D.contrast],
      D.pairs.map((p, i) => [...p, ...D.contrast.map((s) => effect(site, kpi, i, s))])));
  }
  $("detail-body").replaceChildren(...body);
}

function grid(header, rows) {
  const numeric = (j) => rows.some((row) => typeof row[j] === "number");
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...header.map((h, j) => make("th", { scope: "col", class: numeric(j) ? "number" : "" }, h)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((x, j) =>
      make("td", { class: numeric(j) ? "number" : "" }, typeof x === "number" ? shown(x) : x)))))));
}

function strips(site, kpi) {
  const get = (c, name) => statistic(site, kpi, c, name);
  const ends = D.categories.flatMap((_, c) => ["min", "max", "mean"].map((n) => get(c, n))).filter(Number.isFinite);
  const low = Math.min(...ends), high = Math.max(...ends), left = 170, width = 760, row = 26;
  const height = row * K + 34;
  const x = (v) => left + ((v - low) / (high - low || 1)) * (width - left - 20);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img",
    "aria-label": `Distribution of ${D.kpis[kpi]} over examples, by category; the table below has the numbers` });
  D.categories.forEach((category, c) => {
    const y = row * c + 16, colour = COLOURS[c % COLOURS.length];
    const label = category.length > 24 ? `${category.slice(0, 23)}…` : category;
    picture.append(svg("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, label));
    const line = (a, b, w, o) => {
      if (Number.isFinite(get(c, a)) && Number.isFinite(get(c, b))) picture.append(svg("line",
        { x1: x(get(c, a)), x2: x(get(c, b)), y1: y, y2: y, stroke: colour, "stroke-width": w, "stroke-opacity": o }));
    };
    line("min", "max", 1, 0.6); line("q05", "q95", 5, 0.35); line("q25", "q75", 11, 0.55);
    if (Number.isFinite(get(c, "q50"))) picture.append(svg("line",
      { x1: x(get(c, "q50")), x2: x(get(c, "q50")), y1: y - 8, y2: y + 8, stroke: "currentColor", "stroke-width": 2 }));
    if (Number.isFinite(get(c, "mean"))) picture.append(svg("circle", { cx: x(get(c, "mean")), cy: y, r: 3.5, fill: colour,
      stroke: "currentColor" }));
  });
  const base = row * K + 8;
  picture.append(svg("line", { class: "axis", x1: left, x2: width - 20, y1: base, y2: base }));
  [low, (low + high) / 2, high].forEach((v, i) => picture.append(svg("text",
    { class: "soft", x: x(v), y: base + 16, "text-anchor": ["start", "middle", "end"][i] }, shown(v))));
  return make("figure", {}, ends.length ? picture : make("p", { class: "note" }, "No finite figure here."),
    make("figcaption", { class: "note" }, "Line: least to largest; bars: 5–95 % and 25–75 % of examples; tick: median; dot: mean."));
}

// ---- ranking

let sortBy = null, descending = true, most = 50;

function drawRanking() {
  const names = D.ranking.columns, g = names.indexOf("g");
  const text = $("filter-site").value.toLowerCase(), kpi = $("filter-kpi").value, least = Number($("filter-g").value || 0);
  let rows = D.ranking.rows.filter((r) => r[0].toLowerCase().includes(text) && (!kpi || r[1] === kpi) &&
    (!least || Math.abs(number(r[g])) >= least));
  if (sortBy !== null) {
    const key = (r) => (typeof r[sortBy] === "string" && Number.isNaN(number(r[sortBy])) ? r[sortBy] : number(r[sortBy]));
    rows = [...rows].sort((p, q) => {
      const a = key(p), b = key(q), sign = descending ? -1 : 1;
      if (typeof a === "string" || typeof b === "string") return sign * String(a).localeCompare(String(b));
      return Number.isNaN(a) ? 1 : Number.isNaN(b) ? -1 : sign * (a - b);
    });
  }
  const head = names.map((name, j) => {
    const button = make("button", { type: "button" }, name + (sortBy === j ? (descending ? " ▾" : " ▴") : ""));
    button.addEventListener("click", () => { descending = sortBy === j ? !descending : true; sortBy = j; drawRanking(); });
    return make("th", { scope: "col", class: j > 3 ? "number" : "",
      "aria-sort": sortBy === j ? (descending ? "descending" : "ascending") : "none" }, button);
  });
  const body = rows.slice(0, most).map((r) => {
    const row = make("tr", { tabindex: 0 }, ...r.map((x, j) => make("td", { class: j > 3 ? "number" : "" }, j > 3 ? shown(x) : x)));
    const open = () => {
      const site = D.sites.findIndex((s) => s[0] === r[0]), at = D.kpis.indexOf(r[1]);
      if (site < 0 || at < 0) return;
      $("kpi").value = String(at); drawHeat(); choose(site, at);
      $("detail").scrollIntoView({ block: "nearest" });
    };
    row.addEventListener("click", open);
    row.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); open(); } });
    return row;
  });
  $("ranking").replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  const of = D.ranking.of > D.ranking.rows.length ? ` (the first ${D.ranking.rows.length} of ${D.ranking.of} are here)` : "";
  $("ranking-note").textContent = D.ranking.rows.length
    ? `${Math.min(most, rows.length)} of ${rows.length} rows shown${of}.` : "There is nothing to rank: no two categories to compare.";
  $("more").hidden = rows.length <= most;
}

// ---- curves, examples, facts

function drawCurve() {
  const parts = D.curves.filter((c) => c.name === $("curve").value);
  const points = parts.flatMap((c) => c.steps.map((s, i) => [s, number(c.values[i])])).filter((p) => Number.isFinite(p[1]));
  const width = 820, height = 300, left = 70, bottom = 30;
  const [x0, x1] = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  const [y0, y1] = [Math.min(...points.map((p) => p[1])), Math.max(...points.map((p) => p[1]))];
  const x = (s) => left + ((s - x0) / (x1 - x0 || 1)) * (width - left - 10);
  const y = (v) => height - bottom - ((v - y0) / (y1 - y0 || 1)) * (height - bottom - 12);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img",
    "aria-label": `${$("curve").value} over steps, by category` });
  picture.append(svg("line", { class: "axis", x1: left, x2: width - 10, y1: height - bottom, y2: height - bottom }),
    svg("line", { class: "axis", x1: left, x2: left, y1: 8, y2: height - bottom }),
    svg("text", { class: "soft", x: left - 6, y: 16, "text-anchor": "end" }, shown(y1)),
    svg("text", { class: "soft", x: left - 6, y: height - bottom, "text-anchor": "end" }, shown(y0)),
    svg("text", { class: "soft", x: left, y: height - 10 }, `step ${x0}`),
    svg("text", { class: "soft", x: width - 10, y: height - 10, "text-anchor": "end" }, x1));
  parts.forEach((c, i) => {
    const at = c.steps.map((s, j) => [s, number(c.values[j])]).filter((p) => Number.isFinite(p[1]));
    picture.append(svg("polyline", { fill: "none", stroke: COLOURS[i % COLOURS.length], "stroke-width": 1.8,
      points: at.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" ") }));
  });
  const legend = make("ul", { class: "note" }, ...parts.map((c, i) => {
    const item = make("li", {}, c.category + (c.every > 1 ? ` (one step in ${c.every})` : ""));
    item.style.color = COLOURS[i % COLOURS.length];
    return item;
  }));
  $("curve-body").replaceChildren(make("figure", {}, picture, legend));
}

function start() {
  options($("kpi"), D.kpis.map((k, i) => [i, k]));
  const shows = P > 1 ? [["strongest", "effect size g, strongest of all pairs"]] : [];
  D.pairs.forEach((_, p) => shows.push([`pair ${p} g`, `effect size g, ${pairName(p)}`]));
  D.pairs.forEach((_, p) => shows.push([`pair ${p} difference`, `difference of means, ${pairName(p)}`]));
  if (D.contrast.includes("auroc")) D.pairs.forEach((_, p) => shows.push([`pair ${p} auroc`, `AUROC, ${pairName(p)}`]));
  D.categories.forEach((c, i) => shows.push([`mean ${i}`, `mean of ${c}`]));
  options($("show"), shows);
  options($("filter-kpi"), [["", "all"], ...D.kpis.map((k) => [k, k])]);
  $("summary").textContent = `${D.sites.length} sites, ${D.kpis.length} key figures, ` +
    `${D.categories.length} ${D.categories.length === 1 ? "category" : "categories"}.`;
  if (D.ranking.rows.length) $("kpi").value = String(Math.max(0, D.kpis.indexOf(D.ranking.rows[0][1])));
  $("kpi").addEventListener("change", () => { drawHeat(); if (chosen !== null) choose(chosen, Number($("kpi").value)); });
  $("show").addEventListener("change", drawHeat);
  for (const id of ["filter-site", "filter-kpi", "filter-g"]) $(id).addEventListener("input", () => { most = 50; drawRanking(); });
  $("more").addEventListener("click", () => { most += 200; drawRanking(); });
  if (D.sites.length) drawHeat();
  drawRanking();
  if (D.curves.length) {
    options($("curve"), [...new Set(D.curves.map((c) => c.name))].map((n) => [n, n]));
    $("curve").addEventListener("change", drawCurve);
    $("curves").hidden = false;
    drawCurve();
  }
  if (D.examples.rows.length) {
    $("examples").hidden = false;
    $("examples-note").textContent = `${D.examples.rows.length} of ${D.examples.of}.`;
    $("example-table").replaceChildren(
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "category"), make("th", { scope: "col" }, "text"))),
      make("tbody", {}, ...D.examples.rows.map(([c, t]) => make("tr", {}, make("td", {}, c), make("td", { class: "text", dir: "auto" }, t)))));
  }
  const facts = Object.entries(D.facts);
  if (facts.length) {
    $("facts").hidden = false;
    $("fact-table").replaceChildren(make("tbody", {}, ...facts.map(([k, v]) =>
      make("tr", {}, make("th", { scope: "row" }, k), make("td", { class: "text" }, v)))));
  }
}
start();
})();

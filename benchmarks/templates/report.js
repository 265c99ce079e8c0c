"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const STATES = ["good", "fair", "poor", "bad", "none"];

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// ---- one dialog for whatever is opened: details as names and texts, then programs

function open(title, details, programs) {
  $("detail-title").textContent = title;
  const list = make("dl", {}, ...details.flatMap(([name, text]) => [make("dt", {}, name), make("dd", { dir: "auto" }, text)]));
  const codes = programs.flatMap((key) => [make("h3", {}, key), make("pre", { tabIndex: 0 }, make("code", {}, D.programs[key]))]);
  $("detail-body").replaceChildren(...(details.length ? [list] : []), ...codes);
  $("detail").showModal();
  $("detail").scrollTop = 0;
}
$("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
document.addEventListener("click", (event) => {
  const button = event.target.closest("button.code");
  if (button) open(button.textContent, [], [button.dataset.program]);
});

// ---- tables: headers sort, words and choices filter

const FIGURE = /^[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?/i;
function figure(text) { // what a text begins with: `1.04 [1.02, 1.07]` is 1.04
  if (/^[-+]?(inf|∞)/i.test(text)) return text.startsWith("-") ? -Infinity : Infinity;
  if (/^nan/i.test(text)) return NaN;
  const found = FIGURE.exec(text);
  return found ? Number(found[0].replaceAll(",", "")) : null;
}

function sheet(box) {
  const table = box.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
  const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent.trim()));
  const heads = [...table.tHead.rows[0].cells];
  const numeric = heads.map((_, c) => texts.some((t) => t[c] && t[c] !== "—") && texts.every((t) => !t[c] || t[c] === "—" || figure(t[c]) !== null));
  const name = (head) => head.querySelector("button").textContent;
  let sorted = null, direction = "";

  heads.forEach((head, c) => {
    const button = make("button", { type: "button" }, head.textContent.trim() || "—");
    head.replaceChildren(button, make("span", { class: "printed", ariaHidden: "true" }, button.textContent)); // a button is not repeated on each page
    button.addEventListener("click", () => {
      const first = numeric[c] ? "descending" : "ascending", second = numeric[c] ? "ascending" : "descending";
      direction = sorted !== c ? first : direction === first ? second : "";
      sorted = direction ? c : null;
      heads.forEach((h, i) => (i === sorted ? h.setAttribute("aria-sort", direction) : h.removeAttribute("aria-sort")));
      const sign = direction === "descending" ? -1 : 1;
      const key = (r) => (numeric[c] ? figure(texts[r][c]) : texts[r][c].toLowerCase());
      const absent = (r) => texts[r][c] === "" || texts[r][c] === "—" || Number.isNaN(key(r));
      const order = rows.map((_, r) => r);
      if (sorted !== null) {
        order.sort((a, b) => absent(a) - absent(b) || (absent(a) ? a - b :
          numeric[c] ? sign * (key(a) - key(b) || 0) : sign * key(a).localeCompare(key(b), "en", { numeric: true })) || a - b);
      }
      body.append(...order.map((r) => rows[r]));
    });
  });
  if (rows.length < 5) return;
  const words = make("input", { type: "search", size: 18 });
  const controls = make("p", { class: "controls" }, make("label", {}, "Filter ", words));
  const selects = [];
  heads.forEach((head, c) => {
    const kinds = [...new Set(texts.map((t) => t[c]))];
    if (rows.length < 12 || numeric[c] || kinds.length < 2 || kinds.length > 14 || kinds.length * 2 > rows.length || kinds.some((k) => k.length > 40) || selects.length > 3) return;
    const select = make("select", {}, make("option", { value: "" }, "all"), ...kinds.sort().map((k) => make("option", { value: "=" + k }, k || "(none)")));
    selects.push([c, select]);
    controls.append(make("label", {}, name(head) + " ", select));
  });
  const count = make("span", { class: "count", role: "status" });
  controls.append(count);
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, r) => {
      const all = texts[r].join(" ").toLowerCase();
      row.hidden = !wanted.every((w) => all.includes(w)) || selects.some(([c, s]) => s.value && s.value !== "=" + texts[r][c]);
      shown += !row.hidden;
    });
    count.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
  };
  controls.addEventListener("input", apply);
  apply();
  box.prepend(controls);
}

// ---- maps

const broken = (name) => name.split("_").flatMap((part, i) => (i ? ["_", make("wbr"), part] : [part])); // may break after _

function heat(figure) {
  const H = D.heats[Number(figure.dataset.heat)], table = figure.querySelector("table"), controls = figure.querySelector(".controls");
  const choices = H.axes.length - 2, at = H.cells.map((cell) => cell[0]);
  const selects = H.axes.slice(0, choices).map((name, i) => {
    const select = make("select", {}, ...H.names[i].map((text, n) => make("option", { value: n }, text)));
    controls.append(make("label", {}, name + " ", select));
    return select;
  });
  controls.hidden = !choices;

  function draw() {
    const mine = H.cells.filter((_, i) => selects.every((select, c) => at[i][c] === Number(select.value)));
    const rows = [...new Set(mine.map((cell) => cell[0][choices]))].sort((a, b) => a - b);
    const columns = [...new Set(mine.map((cell) => cell[0][choices + 1]))].sort((a, b) => a - b);
    const found = new Map(mine.map((cell) => [`${cell[0][choices]} ${cell[0][choices + 1]}`, cell]));
    const [rowNames, columnNames] = [H.names[choices], H.names[choices + 1]];
    const head = make("tr", {}, make("th", { scope: "col" }, H.axes[choices]), ...columns.map((c) => make("th", { scope: "col" }, ...broken(columnNames[c]))));
    table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows.map((r) => make("tr", {}, make("th", { scope: "row" }, rowNames[r]),
      ...columns.map((c) => {
        const cell = found.get(`${r} ${c}`);
        if (!cell) return make("td");
        const name = `${rowNames[r]}, ${columnNames[c]}`, shown = H.texts[cell[2]];
        const button = make("button", { type: "button", class: STATES[cell[1]], title: `${name}: ${shown || "not applicable"}`, tabIndex: -1,
          "aria-label": `${name}: ${shown || "not applicable"}` }, shown);
        button.addEventListener("click", () => {
          const pairs = [];
          for (let i = 0; i < cell[3].length; i += 2) pairs.push([H.texts[cell[3][i]], H.texts[cell[3][i + 1]]]);
          const chosen = H.axes.slice(0, choices).map((axis, i) => [axis, H.names[i][cell[0][i]]]);
          open(name, [...chosen, ...pairs], cell[4].map((i) => H.texts[i]));
        });
        return make("td", {}, button);
      })))));
    const first = table.querySelector("td button");
    if (first) first.tabIndex = 0; // one stop for Tab; arrows go on from there
  }

  table.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    const cell = event.target.closest("td"), move = moves[event.key];
    if (!cell || !move) return;
    event.preventDefault();
    let [row, column] = [cell.parentElement.rowIndex, cell.cellIndex];
    for (;;) {
      [row, column] = [row + move[1], column + move[0]];
      const next = table.rows[row] && table.rows[row].cells[column];
      if (!next || next.tagName !== "TD") return;
      const button = next.querySelector("button");
      if (!button) continue;
      event.target.tabIndex = -1;
      button.tabIndex = 0;
      button.focus();
      return;
    }
  });
  table.addEventListener("focusin", (event) => {
    for (const button of table.querySelectorAll('td button[tabindex="0"]')) button.tabIndex = -1;
    if (event.target.matches("td button")) event.target.tabIndex = 0;
  });
  controls.addEventListener("input", draw);
  draw();
}

function charts(figure) {
  const select = figure.querySelector("select.choose");
  if (!select) return;
  const groups = [...figure.querySelectorAll(".panels")];
  select.addEventListener("input", () => { for (const group of groups) group.hidden = group.dataset.choice !== select.value; });
}

document.querySelectorAll(".sheet").forEach(sheet);
document.querySelectorAll("figure.heat").forEach(heat);
document.querySelectorAll("figure.charts").forEach(charts);
})();

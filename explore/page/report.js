// The page of a report: the table of all runs, the details of a run, and the state of the page in its address.
"use strict";

const doc = JSON.parse(document.getElementById("data").textContent);
const INPUTS = { q: "filter", x: "x", loss: "loss", lines: "lines", smooth: "smooth", logx: "logx", logy: "logy" };
const FIRST_STATE = {
  q: "", sort: "", cols: "", run: "", other: "",
  x: "steps", loss: doc.firstLoss, lines: "means", smooth: "0", logx: "", logy: "", zoom: "",
};
const state = { ...FIRST_STATE, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) };
const byId = (id) => document.getElementById(id);
const UNITS = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e8, "M"]];
const valueAt = (column, i) => (column.values ? column.values[i] : column.value) ?? null;
const indexOf = (id) => doc.runs.findIndex((run) => run.id === id);

function text(value) {
  if (typeof value !== "number") return value ?? "–";
  const [unit, letter] = UNITS.find(([least]) => Math.abs(value) >= least) ?? [1, ""];
  if (letter) return `${Number((value / (letter === "M" ? 1e6 : unit)).toPrecision(4))} ${letter}`;
  const rounded = Number.isInteger(value) ? value : Number(value.toPrecision(5));
  return Math.abs(rounded) >= 1e4 ? rounded.toLocaleString("en") : String(rounded);
}

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function saveState() {
  const changed = Object.entries(state).filter(([name, value]) => value !== FIRST_STATE[name]);
  try {
    history.replaceState(null, "", "#" + new URLSearchParams(changed));
  } catch { /* a page in a notebook has no address of its own */ }
}

function download(url, name) {
  element("a", { href: url, download: name }).click();
}

// ---- tables: they sort by the column whose header is clicked; once more, the other way around

function valueOf(row, column) {
  const cell = row.cells[column];
  const shown = cell.dataset.v ?? cell.textContent;
  const number = shown.trim() === "" ? NaN : Number(shown);
  return Number.isNaN(number) ? shown : number;
}

// Numbers before text, and what is missing last.
function compared(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return typeof a === "number" ? -1 : 1;
}

function sortBy(header, down) {
  const body = header.closest("table").tBodies[0];
  for (const other of header.parentNode.cells) other.ariaSort = "none";
  header.ariaSort = down ? "descending" : "ascending";
  const rows = [...body.rows].map((row) => [valueOf(row, header.cellIndex), row]);
  rows.sort(([a], [b]) => (down ? compared(b, a) : compared(a, b)));
  body.append(...rows.map(([, row]) => row));
}

function sortable(header) {
  header.tabIndex = 0;
  header.onclick = () => {
    const down = header.ariaSort === "ascending";
    sortBy(header, down);
    if (header.dataset.name) setState({ sort: (down ? "-" : "") + header.dataset.name });
  };
  header.onkeydown = (event) => event.key === "Enter" && header.onclick();
}

// ---- all runs

const chosenColumns = () => doc.columns.filter((column) => (state.cols ? state.cols.split(",").includes(column.name) : column.shown));

function drawTable() {
  const columns = chosenColumns();
  const isNumber = (column) => typeof (column.values?.find((value) => value !== null) ?? column.value) === "number";
  const head = element("tr", {}, ...[...columns, { name: "ended", title: "ended" }, { name: "run", title: "run" }].map((column) =>
    element("th", { scope: "col", className: isNumber(column) ? "n" : "", textContent: column.title, title: column.name })));
  [...head.cells].forEach((cell) => { cell.dataset.name = cell.title; sortable(cell); });
  const rows = doc.runs.map((run, i) => {
    const cells = columns.map((column) => {
      const value = valueAt(column, i);
      const cell = element("td", { className: isNumber(column) ? "n" : "", textContent: text(value) });
      if (typeof value === "number") cell.dataset.v = value;
      return cell;
    });
    const ends = [run.ended, run.id].map((shown) => element("td", { textContent: shown }));
    const row = element("tr", { onclick: (event) => choose(i, event.shiftKey) }, ...cells, ...ends);
    row.dataset.run = i;
    return row;
  });
  byId("runs").replaceChildren(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  const sorted = [...head.cells].find((cell) => cell.dataset.name === state.sort.replace(/^-/, ""));
  if (sorted) sortBy(sorted, state.sort.startsWith("-"));
}

function matches(i) {
  return state.q.split(/\s+/).filter(Boolean).every((term) => {
    const [, name, operator, wanted] = term.match(/^(.+?)(!=|<=|>=|=|<|>)(.+)$/) ?? [];
    const column = doc.columns.find((one) => one.name === name || one.title === name);
    if (!column) {
      const searched = doc.columns.filter((one) => one.shown || chosenColumns().includes(one));
      const shown = [...searched.map((one) => text(valueAt(one, i))), doc.runs[i].ended, doc.runs[i].id];
      return shown.join(" ").toLowerCase().includes(term.toLowerCase());
    }
    const value = valueAt(column, i), number = Number(wanted);
    const same = value === number || String(value) === wanted;
    if (operator.endsWith("=") && same) return operator !== "!=";
    if (operator === "=" || operator === "!=") return operator === "!=";
    return typeof value === "number" && (operator[0] === "<" ? value < number : value > number);
  });
}

let visible = new Set();
function filterRuns() {
  visible = new Set(doc.runs.map((_, i) => i).filter(matches));
  for (const row of byId("runs").querySelectorAll("tbody tr")) {
    row.hidden = !visible.has(Number(row.dataset.run));
    row.ariaSelected = [state.run, state.other].includes(doc.runs[row.dataset.run].id);
  }
  byId("count").textContent = `${visible.size} of ${doc.runs.length} runs`;
}

function drawColumns() {
  const chosen = new Set(chosenColumns());
  byId("columns").replaceChildren(...doc.columns.map((column) => {
    const box = element("input", { type: "checkbox", checked: chosen.has(column) });
    box.onchange = () => {
      chosen[box.checked ? "add" : "delete"](column);
      setState({ cols: doc.columns.filter((one) => chosen.has(one)).map((one) => one.name).join(",") || "," });
      drawTable();
      filterRuns();
    };
    return element("label", {}, box, ` ${column.title}`);
  }));
}

// A spreadsheet would run a text that begins like a formula.
function csvCell(value) {
  const shown = value === null ? "" : String(value).replace(/\r\n?/g, "\n");
  const safe = typeof value === "string" && /^[=+\-@\t\n]/.test(shown) ? `'${shown}` : shown;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function csvText() {
  const lines = [...visible].map((i) => [doc.runs[i].id, doc.runs[i].ended, ...doc.columns.map((column) => valueAt(column, i))]);
  return [["run", "ended", ...doc.columns.map((column) => column.name)], ...lines].map((line) => line.map(csvCell).join(",") + "\n").join("");
}

// ---- the details of a run, and two runs side by side

function choose(i, asOther) {
  const id = doc.runs[i].id;
  setState(asOther && state.run && state.run !== id ? { other: id } : { run: state.run === id ? "" : id, other: "" });
  filterRuns();
  drawDetails();
  redraw((figure) => figure.part !== undefined); // the chosen run stands out
}

// Texts that several runs share are kept once: a run then has the index of the text.
function told(i, name) {
  const value = doc.runs[i][name] ?? null;
  return typeof value === "number" ? doc.texts[value] : value;
}

// Of one run: the values that differ from the default. Of two: the values that differ between them.
function detailLines(runs) {
  const isTold = (values, column) => values.some((value) => value !== (column.default ?? null));
  const differ = (values) => values.length === 2 && values[0] !== values[1];
  const known = doc.columns.map((column) => [column, runs.map((i) => valueAt(column, i))]);
  const fields = known.filter(([column, values]) => (runs.length === 2 ? differ(values) : isTold(values, column)));
  const origin = ["ended", "commit", "versions", "command", "folder"].map((name) => [name, ...runs.map((i) => told(i, name) ?? "–"), ""]);
  return [
    ...fields.map(([column, values]) => [column.title, ...values.map(text), "default" in column ? text(column.default) : ""]),
    ...origin.filter(([, ...values]) => runs.length === 1 || differ(values.slice(0, 2))),
  ];
}

function tableOf(titles, lines) {
  const head = element("tr", {}, ...titles.map((title) => element("th", { textContent: title })));
  const rows = lines.map((line) => element("tr", {}, ...line.map((cell) => element("td", { textContent: cell }))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}

function otherRuns() {
  const options = doc.runs.map(({ id }) => element("option", { value: id, textContent: id, selected: id === state.other }));
  const choice = element("select", { id: "beside" }, element("option", { value: "", textContent: "no other run" }), ...options);
  choice.onchange = () => {
    setState({ other: choice.value });
    filterRuns();
    drawDetails();
  };
  return choice;
}

function drawDetails() {
  const box = byId("detail"), runs = [state.run, state.other].map(indexOf).filter((i) => i >= 0);
  drop(box.querySelector("figure"));
  if (runs.length === 0) return box.replaceChildren();
  const two = runs.length === 2, ids = runs.map((i) => doc.runs[i].id), quoted = ids.map((id) => JSON.stringify(id));
  const heading = (textContent) => element("h3", { textContent }), block = (textContent) => element("pre", { textContent });
  const code = two ? `print(model_explorer.diff(${quoted}))`
    : `lm, dataset, train_stats, params = model_explorer.get_model_by_timestamp(${quoted})`;
  const figure = element("figure", {}, element("figcaption", { textContent: two ? "The curves of both runs." : "The curve of the run." }));
  const close = element("button", { textContent: "Close", onclick: () => choose(runs[0], false) });
  box.replaceChildren(
    heading(two ? "Two runs: where they differ" : `Run ${ids[0]}: what differs from the default, and what was measured`),
    element("div", { className: "tools" }, element("label", {}, "side by side with ", otherRuns()), close),
    element("div", { className: "wide" }, tableOf(["", ...ids, "default"], detailLines(runs))),
    figure,
    ...runs.filter((i) => told(i, "sample")).flatMap((i) => [heading(`Sample of ${doc.runs[i].id}`), block(told(i, "sample"))]),
    ...runs.filter((i) => told(i, "diff")).map((i) =>
      element("details", {}, element("summary", { textContent: `Difference of ${doc.runs[i].id} from its commit` }), block(told(i, "diff")))),
    heading("Open it in Python"), block(`import model_explorer\n\n${code}`));
  draw(figure, { chart: "curves", runs, tokens: { "@groups": ids, "@colors": ["@c1", "@c2"].slice(0, runs.length) } });
}

function drawOrigin() {
  const entries = ["commit", "versions", "command"].flatMap((name) => {
    const counts = new Map();
    for (const run of doc.runs) if (name in run) counts.set(run[name], (counts.get(run[name]) ?? 0) + 1);
    return [...counts].slice(0, 20).flatMap(([place, n]) => [
      element("dt", { textContent: `${name} (${n} run${n > 1 ? "s" : ""})` }),
      element("dd", { textContent: doc.texts[place] }),
    ]);
  });
  byId("origin").replaceChildren(entries.length ? element("dl", {}, ...entries) : "Not recorded.");
}

// ---- the state of the page, and its start

function setState(changes) {
  Object.assign(state, changes);
  saveState();
}

function onInput(name, input) {
  input[input.type === "checkbox" ? "checked" : "value"] = state[name];
  input[input.tagName === "SELECT" ? "onchange" : "oninput"] = () => {
    const isView = name !== "q" && name !== "smooth";
    setState({ [name]: input.type === "checkbox" ? (input.checked ? "1" : "") : input.value, ...(isView ? { zoom: "" } : {}) });
    if (name === "q") filterRuns();
    redraw((figure) => figure.chart === "curves");
  };
}

// Steps are kept as differences, which are shorter.
function decodeSteps() {
  for (const series of doc.curves.flatMap((curve) => [curve.val, curve.train, curve.clock]).filter(Boolean)) {
    let step = 0;
    series.s = series.s.map((more) => (step += more));
  }
}

async function start() {
  decodeSteps();
  drawTable();
  filterRuns();
  drawColumns();
  drawOrigin();
  for (const header of document.querySelectorAll("main > section th, body > section th")) if (!header.onclick) sortable(header);
  for (const [name, id] of Object.entries(INPUTS)) onInput(name, byId(id));
  byId("csv").onclick = () => download(URL.createObjectURL(new Blob([csvText()], { type: "text/csv" })), "runs.csv");
  drawDetails();
  for (const box of document.querySelectorAll("figure[data-figure]")) {
    await new Promise((done) => setTimeout(done)); // the page answers between two charts
    draw(box, doc.figures[box.dataset.figure]);
  }
  matchMedia("(prefers-color-scheme: dark)").onchange = () => redraw();
  addEventListener("beforeprint", () => { document.documentElement.style.colorScheme = "light"; redraw(); });
  addEventListener("afterprint", () => { document.documentElement.style.colorScheme = ""; redraw(); });
  keepFresh();
  document.documentElement.dataset.ready = "yes";
}

// While runs train, the page is written anew. It loads itself again, and keeps its state and its place.
function keepFresh() {
  if (!doc.refresh) return;
  const place = sessionStorage.getItem("place");
  if (place !== null) scrollTo(0, Number(place));
  setTimeout(() => {
    sessionStorage.setItem("place", scrollY);
    location.reload();
  }, doc.refresh * 1000);
}

start();

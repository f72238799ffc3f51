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

function setState(changes) {
  Object.assign(state, changes);
  const changed = Object.entries(state).filter(([name, value]) => value !== FIRST_STATE[name]);
  try {
    history.replaceState(null, "", "#" + new URLSearchParams(changed));
  } catch { /* a page in a notebook has no address of its own */ }
}

const download = (href, name) => element("a", { href, download: name }).click();

// ---- tables: they sort by the column whose header is clicked; once more, the other way around

function valueOf(row, column) {
  const { dataset, textContent } = row.cells[column], shown = dataset.v ?? textContent;
  return shown.trim() === "" || Number.isNaN(Number(shown)) ? shown : Number(shown);
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
  if (header.textContent) header.replaceChildren(element("button", { className: "sort", textContent: header.textContent }));
  header.ariaSort = "none";
  header.onclick = () => {
    const down = header.ariaSort === "ascending";
    sortBy(header, down);
    if (header.dataset.name) setState({ sort: (down ? "-" : "") + header.dataset.name });
    filterRuns(); // the Tab key stops at the first row
  };
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
    const row = element("tr", { id: run.id, onclick: (event) => choose(i, event.shiftKey), onfocus: () => stopAt(row) }, ...cells, ...ends);
    row.dataset.run = i;
    return row;
  });
  const aria = { role: "grid", ariaLabel: "All runs", ariaMultiSelectable: "true" };
  byId("runs").replaceChildren(element("table", aria, element("thead", {}, head), element("tbody", {}, ...rows)));
  const sorted = [...head.cells].find((cell) => cell.dataset.name === state.sort.replace(/^-/, ""));
  if (sorted) sortBy(sorted, state.sort.startsWith("-"));
  filterRuns();
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
    row.ariaSelected = [state.run, state.other].includes(row.id);
  }
  const rows = visibleRows(), open = chosenRuns().length;
  stopAt(rows.find((row) => row === document.activeElement || row.ariaSelected === "true") ?? rows[0]);
  byId("count").textContent = `${visible.size} of ${doc.runs.length} runs${open ? `, ${open} in detail below` : ""}`;
}

const visibleRows = () => [...byId("runs").querySelectorAll("tbody tr:not([hidden])")];

// The Tab key stops at one row only. From there, arrows lead to the others.
function stopAt(row) {
  for (const other of byId("runs").querySelectorAll("tbody tr")) other.tabIndex = other === row ? 0 : -1;
}

function onKey(event) {
  const row = event.target.closest("#runs tbody tr"), rows = visibleRows(), at = rows.indexOf(row);
  const next = rows[{ ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key]];
  if (event.key === "Escape" && state.run) closeDetails();
  else if (row && (event.key === "Enter" || event.key === " ")) choose(Number(row.dataset.run), event.shiftKey);
  else if (row && next) next.focus();
  else return;
  event.preventDefault();
}

function drawColumns() {
  const chosen = new Set(chosenColumns());
  byId("columns").replaceChildren(...doc.columns.map((column) => {
    const box = element("input", { type: "checkbox", checked: chosen.has(column) });
    box.onchange = () => {
      chosen[box.checked ? "add" : "delete"](column);
      setState({ cols: doc.columns.filter((one) => chosen.has(one)).map((one) => one.name).join(",") || "," });
      drawTable();
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

const chosenRuns = () => [state.run, state.other].map(indexOf).filter((i) => i >= 0);

function show(run, other = "") {
  setState({ run, other });
  filterRuns();
  drawDetails();
  redraw((figure) => figure.part !== undefined); // the chosen run stands out
}

function choose(i, asOther) {
  const id = doc.runs[i].id, isBeside = asOther && state.run && state.run !== id;
  show(...(isBeside ? [state.run, id] : [state.run === id ? "" : id]));
}

function closeDetails() {
  const id = state.run;
  show("");
  byId(id)?.focus();
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

const block = (textContent) => element("pre", { textContent });
const heading = (textContent) => element("h3", { textContent });
const folded = (title, body) => element("details", {}, element("summary", { textContent: title }), block(body));

function otherRuns() {
  const options = doc.runs.map(({ id }) => element("option", { value: id, textContent: id, selected: id === state.other }));
  const choice = element("select", { id: "beside" }, element("option", { value: "", textContent: "no other run" }), ...options);
  choice.onchange = () => {
    show(state.run, choice.value);
    byId("beside").focus();
  };
  return choice;
}

function codeOf(runs) {
  const labels = runs.map((i) => told(i, "code"));
  if (labels[0] && labels[0] === labels[1]) return [element("p", {}, "The same code trained both runs.")];
  return doc.changes.filter((change) => labels.every((label) => change.slice(0, 2).includes(label)))
    .map(([one, other, diff]) => folded(`Difference of the code, from “${one}” to “${other}”`, diff));
}

function drawDetails() {
  const box = byId("detail"), runs = chosenRuns();
  drop(box.querySelector("figure"));
  if (runs.length === 0) return box.replaceChildren();
  const two = runs.length === 2, ids = runs.map((i) => doc.runs[i].id), quoted = ids.map((id) => JSON.stringify(id));
  const code = two ? `print(model_explorer.diff(${quoted}))`
    : `lm, dataset, train_stats, params = model_explorer.get_model_by_timestamp(${quoted})`;
  const figure = element("figure", {}, element("figcaption", { textContent: two ? "The curves of both runs." : "The curve of the run." }));
  box.replaceChildren(
    heading(two ? "Two runs: where they differ" : `Run ${ids[0]}: what differs from the default, and what was measured`),
    element("div", { className: "tools" }, element("label", {}, "side by side with ", otherRuns()), element("button", { textContent: "Close", onclick: closeDetails })),
    ...(two ? [element("p", {}, partingOf(runs))] : []),
    element("div", { className: "wide" }, tableOf(["", ...ids, "default"], detailLines(runs))),
    ...(two ? codeOf(runs) : []),
    figure,
    ...runs.filter((i) => told(i, "sample")).flatMap((i) => [heading(`Sample of ${doc.runs[i].id}`), block(told(i, "sample"))]),
    ...runs.filter((i) => told(i, "diff")).map((i) => folded(`Difference of ${doc.runs[i].id} from its commit`, told(i, "diff"))),
    heading("Open it in Python"), block(`import model_explorer\n\n${code}`));
  draw(figure, { chart: "curves", runs, tokens: { "@groups": ids, "@colors": ["@c1", "@c2"].slice(0, runs.length) } });
}

// ---- the start of the page

function onInput(name, input) {
  input[input.type === "checkbox" ? "checked" : "value"] = state[name];
  input[input.tagName === "SELECT" ? "onchange" : "oninput"] = () => {
    const isView = name !== "q" && name !== "smooth";
    setState({ [name]: input.type === "checkbox" ? (input.checked ? "1" : "") : input.value, ...(isView ? { zoom: "" } : {}) });
    if (name === "q") filterRuns();
    redraw((figure) => figure.chart === "curves");
  };
}

async function start() {
  decodeSteps();
  drawTable();
  drawColumns();
  for (const header of document.querySelectorAll("main > section th, body > section th")) if (!header.onclick) sortable(header);
  for (const [name, id] of Object.entries(INPUTS)) onInput(name, byId(id));
  byId("csv").onclick = () => download(URL.createObjectURL(new Blob([csvText()], { type: "text/csv" })), "runs.csv");
  byId("runs").onkeydown = byId("detail").onkeydown = onKey;
  drawDetails();
  if (doc.refresh) byId(sessionStorage.focus)?.focus();
  await drawFigures();
  keepFresh();
  document.documentElement.dataset.ready = "yes";
}

// While runs train, the page is written anew. It loads itself again, and keeps its state, its place and what has the focus.
function keepFresh() {
  if (!doc.refresh) return;
  const { place } = sessionStorage;
  if (place !== undefined) scrollTo(0, Number(place));
  setTimeout(() => {
    Object.assign(sessionStorage, { place: scrollY, focus: document.activeElement.id });
    location.reload();
  }, doc.refresh * 1000);
}

start();

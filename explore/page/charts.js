// The charts of a report: their data from the document of the page, values under the mouse, and saving as SVG or PNG.
"use strict";

const OTHERS = "all other runs";
const RUNNING = "training"; // the group of runs that train
const MAX_DRAWN = 40_000; // points of a chart
const NEAR = 30; // pixels between the mouse and the point that it shows
const views = new Map(); // view and figure by the element of the figure

// ---- loss curves

// Steps are kept as differences, which are shorter.
function decodeSteps() {
  for (const series of doc.curves.flatMap((curve) => [curve.val, curve.train, curve.clock]).filter(Boolean)) {
    let step = 0;
    series.s = series.s.map((more) => (step += more));
  }
}

function xOf(i, step) {
  const curve = doc.curves[i], clock = curve.clock;
  if (state.x === "steps") return step;
  if (state.x !== "seconds" || !clock || clock.s.length < 2) return curve[state.x] === undefined ? null : step * curve[state.x];
  const k = Math.min(clock.s.length - 1, Math.max(1, clock.s.findIndex((s) => s >= step) + 1 || Infinity));
  const share = (step - clock.s[k - 1]) / (clock.s[k] - clock.s[k - 1] || 1);
  return Math.max(0, clock.v[k - 1] + share * (clock.v[k] - clock.v[k - 1]));
}

function smoothed(values) {
  let mean = 0, weight = 0;
  const kept = Number(state.smooth);
  return values?.map((value) => {
    if (value === null) return null;
    [mean, weight] = [kept * mean + (1 - kept) * value, kept * weight + (1 - kept)];
    return mean / weight;
  });
}

// The lowest and the highest of neighboring points.
function thinned(rows, n) {
  if (rows.length <= n) return rows;
  const size = Math.ceil((2 * rows.length) / n), kept = [];
  for (let start = 0; start < rows.length; start += size) {
    const part = rows.slice(start, start + size).sort((a, b) => a.y - b.y);
    kept.push(...[part[0], part.at(-1)].sort((a, b) => a.x - b.x));
  }
  return kept;
}

// Points far outside the zoom are left out, so that more of those inside are drawn.
function zoomedRange(figure) {
  const [low, high] = figure.part === 0 && state.zoom ? state.zoom.split(",").map(Number) : [-Infinity, Infinity];
  return [low - (high - low || 0), high + (high - low || 0)].map((end, i) => (Number.isFinite(end) ? end : [-Infinity, Infinity][i]));
}

const lineOfRun = (i, group) => ({ ...doc.curves[i][state.loss], runs: [i], name: doc.runs[i].id, group });

// The lines of a chart: the runs of the details, all runs of a part, or means with the chosen runs and those that train.
function linesOf(figure) {
  const withCurve = (i) => doc.curves[i][state.loss];
  if (figure.runs) return figure.runs.filter(withCurve).map((i) => lineOfRun(i, doc.runs[i].id));
  const part = doc.parts[figure.part];
  const isHere = (i) => part.groups[i] || doc.runs[i].running || doc.parts.length === 1;
  const runs = [...visible].filter((i) => withCurve(i) && isHere(i) && (state.lines === "runs" || doc.runs[i].running || isChosen(i)));
  const means = part.means.filter((mean) => mean.loss === state.loss && mean.runs.some((i) => visible.has(i)));
  const lines = runs.map((i) => lineOfRun(i, doc.runs[i].running ? RUNNING : (part.groups[i] ?? OTHERS)));
  return state.lines === "runs" ? lines : [...means, ...lines];
}

const isChosen = (i) => doc.runs[i].id === state.run || doc.runs[i].id === state.other;

function curveRows(figure) {
  const lines = linesOf(figure), [from, to] = zoomedRange(figure), isOther = (line) => line.group === OTHERS;
  const isDrawn = ({ x, y }) => y !== null && x !== null && x >= from && x <= to && (!state.logx || x > 0) && (!state.logy || y > 0);
  const isThin = (line) => isOther(line) || (state.lines === "runs" && lines.length > 20);
  lines.sort((a, b) => isOther(b) - isOther(a));
  return lines.flatMap((line, key) => {
    const [ys, lows, highs] = [line.v, line.low, line.high].map(smoothed), run = line.runs[0];
    const width = !figure.runs && line.runs.length === 1 && isChosen(run) ? 3 : isThin(line) ? 1 : 1.8;
    const own = { key, name: line.name, group: line.group, run, width };
    const rows = ys.map((y, k) => ({ x: xOf(run, line.s[k]), y, low: lows?.[k], high: highs?.[k], ...own }));
    return thinned(rows.filter(isDrawn), Math.max(20, MAX_DRAWN / lines.length));
  });
}

function rangeOf(figure, rows) {
  if (figure.ranges && !state.logy) return figure.ranges[state.loss];
  const lows = rows.map((row) => (row.low > 0 || !state.logy ? row.low : undefined) ?? row.y), highs = rows.map((row) => row.high ?? row.y);
  const [low, high] = [lows.reduce((a, b) => Math.min(a, b), Infinity), highs.reduce((a, b) => Math.max(a, b), -Infinity)];
  return low < high ? [low, high] : [0.5, 1];
}

// Runs are sorted by their training losses. Two of them part at the first step at which any neighbors between them do.
function partingOf(runs) {
  const [from, to] = runs.map((i) => doc.partings.findIndex(([run]) => run === i)).sort((a, b) => a - b);
  if (from < 0) return "The training losses of both runs at every step are not known.";
  const last = Math.min(doc.partings[from][1], doc.partings[to][1]);
  const step = Math.min(...doc.partings.slice(from, to).map((entry) => entry[2] ?? Infinity));
  return step <= last ? `Their training losses first differ at step ${step}.` : `All training losses that both runs have are equal, up to step ${last}.`;
}

// ---- charts

const probe = element("i", { hidden: true });
document.body.append(probe);
function color(name) {
  probe.style.color = `var(--${name.slice(1)})`;
  return getComputedStyle(probe).color;
}

function specOf(figure) {
  const isCurves = figure.chart === "curves", log = (state.logx && "x") + (state.logy && "y");
  const tokens = { ...figure.tokens };
  if (isCurves && figure.part !== undefined && doc.runs.some((run) => run.running)) {
    tokens["@groups"] = [...tokens["@groups"], RUNNING];
    tokens["@colors"] = [...tokens["@colors"], "@accent"];
  }
  if (isCurves) Object.assign(tokens, { "@x": doc.axes[state.x], "@y": `${state.loss === "val" ? "validation" : "training"} loss` });
  if (figure.reversed) Object.assign(tokens, { "@low": color("@high"), "@high": color("@low") });
  if (tokens["@colors"]) tokens["@colors"] = tokens["@colors"].map(color);
  const spec = doc.charts[isCurves && log ? `curves-${log}` : figure.chart];
  return JSON.parse(JSON.stringify(spec), (_, value) => {
    if (typeof value === "string" && value.startsWith("@")) return Object.hasOwn(tokens, value) ? tokens[value] : color(value);
    return Array.isArray(value) && value.length === 1 && Object.values(tokens).includes(value[0]) && Array.isArray(value[0]) ? value[0] : value;
  });
}

const expanded = ({ columns, rows }) => rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));

function heatRows(figure) {
  const [a, b, loss] = [figure.tokens["@x"], figure.tokens["@y"], "loss"].map((name) => figure.pairs.columns.indexOf(name));
  return figure.labels[figure.tokens["@y"]].flatMap((labelB, placeB) => figure.labels[figure.tokens["@x"]].map((labelA, placeA) => {
    const found = figure.pairs.rows.filter((row) => row[a] === placeA && row[b] === placeB).map((row) => row[loss]);
    return { a: labelA, b: labelB, runs: found.length, loss: found.length ? found.reduce((sum, x) => sum + x, 0) / found.length : null };
  }));
}

function dataOf(figure) {
  if (figure.chart === "curves") return { curves: curveRows(figure), hover: [] };
  if (figure.chart === "heat") return { heat: heatRows(figure) };
  return Object.fromEntries(Object.entries(figure.data).map(([name, table]) => [name, expanded(table)]));
}

function drop(box) {
  views.get(box)?.view.finalize();
  views.delete(box);
}

function draw(box, figure) {
  drop(box);
  if (!box.querySelector(".view")) addTools(box, figure);
  const data = dataOf(figure), container = box.querySelector(".view");
  container.replaceChildren();
  const runtime = vega.parse(specOf(figure), null, { ast: true });
  const view = new vega.View(runtime, { expr: vega.expressionInterpreter, renderer: "svg", container, hover: true });
  views.set(box, { view, figure });
  view.tooltip((_, event, __, value) => showTip(event, value));
  for (const [name, rows] of Object.entries(data)) view.data(name, rows);
  for (const [name, value] of Object.entries(figure.signals ?? {})) view.signal(name, value);
  if (figure.chart === "curves") {
    view.signal("yrange", rangeOf(figure, data.curves));
    followMouse(view, data.curves);
  }
  view.run();
  openLegend(view);
  if (figure.part === 0) keepZoom(view, box, figure, data.curves);
}

async function drawFigures() {
  for (const box of document.querySelectorAll("figure[data-figure]")) {
    await new Promise((done) => setTimeout(done)); // the page answers between two charts
    draw(box, doc.figures[box.dataset.figure]);
  }
  matchMedia("(prefers-color-scheme: dark)").onchange = () => redraw();
  addEventListener("beforeprint", () => { document.documentElement.style.colorScheme = "light"; redraw(); });
  addEventListener("afterprint", () => { document.documentElement.style.colorScheme = ""; redraw(); });
}

// The entries of a legend are reached and clicked by keyboard, too.
async function openLegend(view) {
  await view.runAsync(); // the legend is drawn
  const labels = [...view.container().querySelectorAll(".group_legend_labels text")];
  if (labels.length === 0) return;
  const isHidden = (label) => (view.signal("hidden")?.group ?? []).includes(label.__data__.datum.value);
  for (const label of labels) {
    Object.assign(label, { role: "button", ariaPressed: String(!isHidden(label)) });
    label.setAttribute("tabindex", 0);
    label.onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      label.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    };
    for (let box = label; box !== view.container(); box = box.parentNode) box.removeAttribute("aria-hidden");
  }
  view.addSignalListener("hidden", () => labels.forEach((label) => { label.ariaPressed = String(!isHidden(label)); }));
}

function redraw(isDue = () => true) {
  for (const [box, { figure }] of [...views]) if (isDue(figure)) draw(box, figure);
}

function addTools(box, figure) {
  const tools = element("div", { className: "tools" });
  if (figure.chart === "heat") {
    for (const axis of ["@x", "@y"]) {
      const names = figure.pairs.columns.slice(0, -1);
      const option = (name) => element("option", { value: name, textContent: name, selected: name === figure.tokens[axis] });
      const choice = element("select", {}, ...names.map(option));
      choice.onchange = () => { figure.tokens[axis] = choice.value; draw(box, figure); };
      tools.append(element("label", {}, axis === "@x" ? "across " : "down ", choice));
    }
  }
  for (const kind of ["svg", "png"]) {
    const save = async () => download(await views.get(box).view.toImageURL(kind, 2), `${figure.chart}.${kind}`);
    const title = `Save the chart as ${kind.toUpperCase()}`, className = kind === "svg" ? "save end" : "save";
    tools.append(element("button", { className, title, textContent: kind.toUpperCase(), onclick: save }));
  }
  box.prepend(tools, element("div", { className: "view" }));
}

function showTip(event, value) {
  const tip = byId("tip");
  tip.hidden = value === null || value === undefined || value === "";
  if (tip.hidden) return;
  tip.textContent = typeof value === "object" ? Object.entries(value).map(([name, shown]) => `${name}: ${shown}`).join("\n") : value;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8))}px`;
}

// Vega knows only the first point of a line under the mouse, so look for the nearest point of all lines.
function followMouse(view, rows) {
  let near = null;
  view.addEventListener("pointermove", (event) => {
    const frame = view.container().querySelector("svg").getBoundingClientRect(), [left, top] = view.origin();
    const [x, y] = [view.scale("x"), view.scale("y")], hidden = view.signal("hidden")?.group ?? [];
    const [atX, atY] = [event.clientX - frame.left - left, event.clientY - frame.top - top];
    const before = near;
    let least = NEAR ** 2;
    near = null;
    for (const row of rows) {
      const distance = (x(row.x) - atX) ** 2 + (y(row.y) - atY) ** 2;
      if (distance < least && !hidden.includes(row.group)) [near, least] = [row, distance];
    }
    if (near === before && near === null) return;
    view.data("hover", near ? [near] : []).run();
    const known = near && { "": near.name, [doc.axes[state.x]]: text(near.x), loss: text(near.y) };
    if (near?.low !== undefined && near.low !== null) known["95 % interval"] = `${text(near.low)} to ${text(near.high)}`;
    showTip(event, known);
  });
  view.addEventListener("pointerout", (event) => { near = null; showTip(event, null); });
  view.addEventListener("click", (event, item) => near && !item?.mark?.name?.startsWith("group_legend") && choose(near.run, event.shiftKey));
}

// The first chart of losses has its zoom in the address of the page.
async function keepZoom(view, box, figure, rows) {
  await view.runAsync(); // the selection follows its signals only after the first run
  const zoom = state.zoom.split(",").map(Number);
  if (zoom.length === 4 && zoom.every(Number.isFinite)) {
    await view.signal("zoom_x", zoom.slice(0, 2)).signal("zoom_y", zoom.slice(2)).runAsync();
  }
  let timer;
  const save = () => {
    const ends = [view.signal("zoom_x"), view.signal("zoom_y")];
    setState({ zoom: ends.every(Boolean) ? ends.flat().map((end) => Number(end.toPrecision(6))).join(",") : "" });
    clearTimeout(timer);
    timer = setTimeout(() => {
      rows.length = 0;
      for (const row of curveRows(figure)) rows.push(row);
      if (views.get(box)?.view === view) view.data("curves", rows).run();
    }, 300);
  };
  for (const name of ["zoom_x", "zoom_y"]) view.addSignalListener(name, save);
}

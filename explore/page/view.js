// What is seen and done: small pictures of all heads, one of them large, and the text colored by it.

// ---- the parts of the page

// A width for T cells in this room: whole pixels for each, unless that would leave much of the room empty.
function fitting(room, largestCell) {
  const whole = T * Math.min(largestCell, Math.floor(room / T));
  return T <= 20 || whole > 0.95 * room ? whole : Math.min(room, T * largestCell);
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const pictures = heads.map((_, i) => {
  const canvas = make("canvas");
  const button = make("button", { ariaLabel: nameOf(i) }, canvas, make("small"));
  button.onclick = (event) => choose({ heads: event.shiftKey ? toggled(i) : [i] });
  button.onpointermove = (event) => tell([i], ...cellAt(event, canvas), event.clientX, event.clientY);
  button.onpointerleave = leave;
  return button;
});

// The chosen heads with this one, or without it if it is one of them.
function toggled(head) {
  const others = view.heads.filter((i) => i !== head);
  return others.length < view.heads.length && others.length ? others : [...others, head];
}

const inSight = new Set(); // the pictures that are scrolled into view: only they are painted
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) {
      inSight.delete(target);
      continue;
    }
    inSight.add(target);
    paintPicture(target);
  }
});

function paintPicture(button) {
  const canvas = button.firstChild;
  paint(canvas, [pictures.indexOf(button)], Math.round(canvas.clientWidth * devicePixelRatio));
}

const chips = tokens.map((token, i) => {
  const chip = make("button", {}, make("bdi", { textContent: token }));
  chip.onclick = () => choose({ token: view.token === i ? null : i });
  chip.onpointermove = (event) => {
    if (view.token !== null) tell(view.heads, ...cellWith(i), event.clientX, event.clientY);
  };
  chip.onpointerleave = leave;
  return chip;
});
const labels = { queries: [], keys: [] };

// ---- from `view` to the screen

function choose(change, isFollowing = false) {
  Object.assign(view, change);
  if ("step" in change || "values" in change) inSight.forEach(paintPicture);
  if ("step" in change || "order" in change || "least" in change) arrange();
  if (view.token !== null) bringIntoView(chips[view.token]);
  render();
  if (isFollowing) return;
  if (partner !== null) partner.postMessage(viewAsText(), "*");
  else if (self === top) keepInUrl();
}

let keeping = null; // the timer of the next change of the URL, as browsers allow only so many

function keepInUrl() {
  clearTimeout(keeping);
  keeping = setTimeout(() => history.replaceState(null, "", `#${viewAsText()}`), 100);
}

let partner = null; // the page around this one, if it shows another beside it

function follow(event) {
  if (event.source !== parent || typeof event.data !== "string") return;
  if (event.data === "follow") partner = event.source;
  else if (codes) choose({ ...viewFrom(event.data), token: view.token, step: view.step }, true);
}

// Moves the text alone: the browser's own way would move the notebook around the page, too.
function bringIntoView(chip) {
  const text = byId("text");
  const lowest = chip.offsetTop + chip.offsetHeight - text.clientHeight;
  text.scrollTop = Math.max(lowest, Math.min(chip.offsetTop, text.scrollTop));
}

// [query, key] of the chosen token and another.
function cellWith(other) {
  return view.from ? [view.token, other] : [other, view.token];
}

function render() {
  const step = page.steps[view.step];
  byId("when").textContent = step === null ? "" : `step ${step.toLocaleString("en")}`;
  byId("step").value = view.step;
  pictures.forEach((button, i) => pressed(button, view.heads.includes(i), i === view.heads[0]));
  byId("order").value = view.order;
  byId("least").value = view.least;
  byId("values").checked = view.values;
  document.querySelector(`#way [value=${view.from ? "from" : "to"}]`).checked = true;
  chips.forEach((chip, i) => pressed(chip, i === view.token, i === (view.token ?? 0)));
  renderPlot();
  renderText();
}

function pressed(button, isPressed, takesTab) {
  button.ariaPressed = isPressed;
  button.tabIndex = takesTab ? 0 : -1;
}

function renderPlot() {
  const plot = byId("plot");
  const pattern = byId("pattern");
  byId("name").textContent = nameOfAll(view.heads);
  pattern.ariaLabel = `${nameOfAll(view.heads)}: a row for each query; arrow keys read single weights`;
  const [width, height] = [plot.clientWidth - 104, plot.clientHeight];
  const isCrowded = Math.min(width, height - 104) / T < 8; // there is no room for the names of tokens
  const size = fitting(Math.max(160, Math.min(width, height - (isCrowded ? 40 : 104))), 40);
  paint(pattern, view.heads, Math.round(size * devicePixelRatio));
  plot.style.setProperty("--size", `${size}px`);
  plot.style.setProperty("--cell", `${size / T}px`);
  plot.classList.toggle("crowded", isCrowded);
  around(byId("chosen"), view.from, view.token);
}

// Puts a frame around a row of the large picture, or a column; null hides it.
function around(frame, isRow, token) {
  frame.hidden = token === null;
  frame.className = isRow ? "row" : "column";
  frame.style.setProperty("--at", token);
}

function renderText() {
  const weights = chips.map((_, i) => (view.token === null ? 0 : codeOf(view.heads, ...cellWith(i))));
  chips.forEach((chip, i) => {
    const [query, key] = cellWith(i);
    const color = view.token === null ? 0 : colorOf(weights[i], inFuture(query, key));
    chip.style.background = color ? css(color) : "";
    chip.style.color = color ? inkOn(color) : "";
    chip.classList.toggle("blank", view.token !== null && !color);
  });
  const most = byId("most");
  most.textContent = "Click a token to see what it attends to, a small picture to enlarge it; with Shift, to average several.";
  if (view.token === null) return;
  most.replaceChildren(make("bdi", { textContent: tokens[view.token] }), ` (${view.token}) `);
  most.append(view.from ? "attends most to " : "is attended to most by ");
  const largest = [...weights.keys()].filter((i) => weights[i] !== 0);
  largest.sort((a, b) => Math.abs(weights[b]) - Math.abs(weights[a]));
  for (const i of largest.slice(0, 8)) {
    const weight = make("b", { textContent: written(weightOf(weights[i])) });
    most.append(make("bdi", { textContent: tokens[i] }), ` (${i}) `, weight, "\u2003");
  }
}

// ---- single weights, by the pointer or by arrow keys

function cellAt(event, canvas) {
  const box = canvas.getBoundingClientRect();
  const offsets = [event.clientY - box.top, event.clientX - box.left];
  return offsets.map((offset) => Math.max(0, Math.min(T - 1, Math.floor((offset / box.width) * T))));
}

function tell(selected, query, key, x, y) {
  const code = codeOf(selected, query, key);
  const isFuture = inFuture(query, key);
  const tip = byId("tip");
  const weight = written(weightOf(code)) + (isFuture ? " on the future" : "");
  tip.replaceChildren(make("b", { textContent: isFuture && code === 0 ? "the future" : weight }));
  if (selected.length === 1 && !view.heads.includes(selected[0])) tip.append(`  ${nameOf(selected[0])}`);
  tip.append(`\nquery ${query} `, make("bdi", { textContent: tokens[query] }));
  tip.append(`\nkey ${key} `, make("bdi", { textContent: tokens[key] }));
  tip.classList.toggle("alarm", isFuture && code !== 0);
  tip.hidden = false;
  const [left, top] = [x + 14, y + 14];
  tip.style.left = `${left + tip.offsetWidth > innerWidth ? x - 14 - tip.offsetWidth : left}px`;
  tip.style.top = `${top + tip.offsetHeight > innerHeight ? y - 14 - tip.offsetHeight : top}px`;
  point(query, key);
}

function leave() {
  byId("tip").hidden = true;
  point(null, null);
}

// Frames this row and this column of the large picture, and names them beside it.
function point(query, key) {
  around(byId("query"), true, query);
  around(byId("key"), false, key);
  labels.queries.forEach((label, i) => label.classList.toggle("on", i === query));
  labels.keys.forEach((label, i) => label.classList.toggle("on", i === key));
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
let cursor = [0, 0]; // the query and the key where arrow keys have come to

function moveCursor(event) {
  if (event.key === "Enter") choose({ token: cursor[view.from ? 0 : 1] });
  if (!(event.key in ARROWS)) return;
  event.preventDefault();
  cursor = cursor.map((at, i) => Math.max(0, Math.min(T - 1, at + ARROWS[event.key][i])));
  const box = byId("pattern").getBoundingClientRect();
  const [y, x] = cursor.map((at) => ((at + 0.5) * box.width) / T);
  tell(view.heads, ...cursor, box.left + x, box.top + y);
}

// Arrow keys go from one button to the next; `placeOf` says in which row and column it stands.
function arrowsMove(buttons, placeOf) {
  return (event) => {
    if (!(event.key in ARROWS)) return;
    event.preventDefault();
    const [row, column] = placeOf(buttons.indexOf(event.target)).map((at, i) => at + ARROWS[event.key][i]);
    const next = buttons.find((_, i) => placeOf(i)[0] === row && placeOf(i)[1] === column);
    next?.focus();
    next?.click();
  };
}

// ---- steps of training

let film = null; // the timer of what plays

function play() {
  if (film !== null) return pause();
  if (view.step === page.steps.length - 1) choose({ step: 0 });
  byId("play").textContent = "⏸";
  film = setInterval(() => {
    choose({ step: view.step + 1 });
    if (view.step === page.steps.length - 1) pause();
  }, 350);
}

function pause() {
  clearInterval(film);
  film = null;
  byId("play").textContent = "▶";
}

// ---- once, at the beginning

let places = new Map(); // [row, column] of the shown heads

// Puts the small pictures into the grid. In the order of a score, each has its name and its score below it.
function arrange() {
  byId("heads").replaceChildren();
  const byLayer = view.order === "layer";
  if (byLayer) labelLayers();
  const shown = shownHeads();
  places = placesOf(shown);
  for (const [i, [row, column]] of places) {
    pictures[i].lastChild.textContent = byLayer ? "" : `${heads[i].layer}.${heads[i].head}: ${scoreOf(i).toFixed(2)}`;
    place(pictures[i], row + 2, column + 2);
  }
  byId("filter").hidden = byLayer;
  byId("count").textContent = `${shown.length} of ${heads.length}, from ${(view.least * (byLayer ? 0 : largestScore())).toFixed(2)}`;
}

function labelLayers() {
  const label = (properties, row, column) => place(make("span", properties), row, column);
  label({ className: "layer", textContent: "head" }, 1, 1);
  [...new Set(heads.map(({ head }) => head))].forEach((head) => label({ textContent: head }, 1, head + 2));
  page.layers.forEach(([layer], row) => label({ className: "layer", textContent: `layer ${layer}` }, row + 2, 1));
}

function build() {
  arrange();
  byId("text").append(...chips);
  for (const score of SCORES) byId("order").append(make("option", { value: score, textContent: score }));
  byId("values").disabled = !hasValues;
  for (const axis of ["queries", "keys"]) {
    labels[axis] = tokens.map((token, i) => make("span", { textContent: token, style: `--at: ${i}` }));
    byId(axis).append(...labels[axis]);
  }
  byId("film").hidden = page.steps.length === 1;
  byId("step").max = page.steps.length - 1;
  byId("title").textContent = page.name;
  byId("about").textContent = page.about;
  explainColors();
  warn();
}

function place(element, row, column) {
  element.style.gridArea = `${row} / ${column}`;
  byId("heads").append(element);
}

function explainColors() {
  for (const weight of [0, 0.1, 0.25, 0.5, 1]) {
    const tick = make("span", { textContent: weight });
    tick.style.left = `${Math.sqrt(weight) * 100}%`;
    byId("ramp").append(tick);
  }
  for (const [kind, meaning] of [["negative", "below 0"], ["future", "on the future"], ["nan", "not a number"]]) {
    if (!page.kinds.includes(kind)) continue;
    byId("legend").append(make("span", {}, make("i", { className: kind }), meaning));
  }
}

function warn() {
  for (const [i] of page.leaks) pictures[i].classList.add("leaks");
  const named = page.leaks.slice(0, 5).map(([i, weight]) => `${nameOf(i)} (up to ${written(weight)})`);
  const others = page.leaks.length > 5 ? `; and ${page.leaks.length - 5} other heads` : "";
  byId("alarm").textContent = `The future is seen by ${named.join("; ")}${others}.`;
  byId("alarm").hidden = page.leaks.length === 0;
}

function layOut() {
  const widest = Math.max(...page.layers.map(([, n]) => n));
  const share = T < 80 ? 0.5 : 0.38; // long texts need a larger large picture
  const room = Math.floor((document.body.clientWidth * share - 90) / widest) - 6;
  byId("heads").style.setProperty("--small", `${fitting(Math.max(24, Math.min(128, room)), 24)}px`);
  inSight.forEach(paintPicture);
  renderPlot();
}

function dress(isDark) {
  document.documentElement.style.colorScheme = isDark ? "dark" : "light";
  ramps = {};
  for (const [kind, stops] of Object.entries(isDark ? PALETTES.dark : PALETTES.light)) ramps[kind] = ramp(stops);
  const scale = new ImageData(new Uint8ClampedArray(ramps.past.buffer), 256, 1);
  byId("scale").getContext("2d").putImageData(scale, 0, 0);
  for (const patch of document.querySelectorAll("#legend i")) patch.style.background = css(ramps[patch.className][128]);
  inSight.forEach(paintPicture);
  render();
}

function listen() {
  const pattern = byId("pattern");
  pattern.onpointermove = (event) => tell(view.heads, ...cellAt(event, pattern), event.clientX, event.clientY);
  pattern.onpointerleave = pattern.onblur = leave;
  pattern.onkeydown = moveCursor;
  pattern.onclick = (event) => choose({ token: cellAt(event, pattern)[view.from ? 0 : 1] });
  byId("heads").onkeydown = arrowsMove(pictures, (i) => places.get(i) ?? []);
  byId("order").onchange = (event) => choose({ order: event.target.value, least: 0 });
  byId("least").oninput = (event) => choose({ least: Number(event.target.value) });
  byId("mean").onclick = () => choose({ heads: shownHeads() });
  byId("values").onchange = (event) => choose({ values: event.target.checked });
  byId("save").onclick = saveDrawing;
  window.onhashchange = () => choose(viewFrom(location.hash.slice(1)));
  byId("text").onkeydown = arrowsMove(chips, (i) => [0, i]);
  byId("way").onchange = (event) => choose({ from: event.target.value === "from" });
  byId("step").oninput = (event) => choose({ step: Number(event.target.value) });
  byId("play").onclick = play;
  byId("theme").onclick = () => dress(document.documentElement.style.colorScheme === "light");
  document.onkeydown = (event) => {
    if (event.key === "Escape") choose({ token: null });
  };
  window.onresize = layOut;
}

async function begin() {
  window.onmessage = follow; // the page around this one may greet it while the weights are unpacked
  codes = await inflated(byId("weights").textContent);
  if (self === top && location.hash) Object.assign(view, viewFrom(location.hash.slice(1)));
  build();
  listen();
  const darkness = matchMedia("(prefers-color-scheme: dark)");
  darkness.onchange = () => dress(darkness.matches);
  dress(darkness.matches);
  layOut();
  pictures.forEach((button) => sight.observe(button));
}

begin();

// Hover and arrow keys name a cell of a heat map and its value.
"use strict";

const byId = (id) => document.getElementById(id);
const { center, limit, one_sided } = JSON.parse(byId("data").textContent);
const cells = [...document.querySelectorAll("tbody td")];
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function namesOf(cell) {
  const head = cell.closest("table").tHead.rows[0];
  return [cell.parentElement.cells[0], head.cells[cell.cellIndex]];
}

function tell(cell) {
  leave();
  const tip = byId("tip");
  const value = document.createElement("b");
  value.textContent = cell.dataset.v;
  tip.replaceChildren(value);
  if (cell.textContent) tip.append("  ", cell.firstChild.cloneNode(true));
  for (const name of namesOf(cell)) {
    name.classList.add("on");
    if (name.textContent) tip.append("\n", name.querySelector("bdi").cloneNode(true));
  }
  tip.hidden = false;
  const box = cell.getBoundingClientRect();
  const fits = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(0, Math.min(box.left, innerWidth - tip.offsetWidth))}px`;
  tip.style.top = `${fits ? box.bottom + 6 : Math.max(0, box.top - 6 - tip.offsetHeight)}px`;
}

function leave() {
  byId("tip").hidden = true;
  for (const name of document.querySelectorAll("th.on")) name.classList.remove("on");
}

function explainColors() {
  const written = (x) => String(Number(x.toPrecision(3)));
  const part = (kind) => Object.assign(document.createElement("i"), { className: kind });
  const scale = byId("scale");
  if (!one_sided) scale.append(written(center - limit), part("low"));
  else scale.append(written(center));
  scale.append(part("high"), written(center + limit));
  if (!one_sided && center !== 0) scale.append(` (center: ${written(center)})`);
}

document.onpointerover = (event) => {
  const cell = event.target.closest("tbody td");
  if (cell) tell(cell);
  else leave();
};
document.onkeydown = (event) => {
  const cell = document.activeElement.closest("tbody td");
  if (!cell || !(event.key in ARROWS)) return;
  event.preventDefault();
  const [down, right] = ARROWS[event.key];
  const rows = [...cell.closest("tbody").rows];
  rows[rows.indexOf(cell.parentElement) + down]?.cells[cell.cellIndex + right]?.focus();
};
document.addEventListener("focusin", (event) => {
  if (event.target.matches("tbody td")) tell(event.target);
});
for (const cell of cells) cell.tabIndex = cell.cellIndex === 1 && cell.parentElement.rowIndex === 1 ? 0 : -1;
explainColors();

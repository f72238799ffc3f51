// Tables sort by the column whose header is clicked; once more, the other way around.
"use strict";

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent;
  const number = text.trim() === "" ? NaN : Number(text);
  return Number.isNaN(number) ? text : number;
}

// Numbers before text, and what is missing last.
function compared(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return typeof a === "number" ? -1 : 1;
}

function sort(header) {
  const body = header.closest("table").tBodies[0];
  const down = header.ariaSort === "ascending";
  for (const other of header.parentNode.cells) other.ariaSort = "none";
  header.ariaSort = down ? "descending" : "ascending";
  const rows = [...body.rows].map((row) => [valueOf(row, header.cellIndex), row]);
  rows.sort(([a], [b]) => (down ? compared(b, a) : compared(a, b)));
  body.append(...rows.map(([, row]) => row));
}

for (const header of document.querySelectorAll("th")) {
  header.tabIndex = 0;
  header.onclick = () => sort(header);
  header.onkeydown = (event) => {
    if (event.key === "Enter") sort(header);
  };
}
document.documentElement.dataset.ready = "yes";

// Which heads are shown, in which order, and the view as text in the URL.

const SCORES = ["induction", "previous token", "duplicate token", "sink", "entropy"];

function scoreOf(head) {
  return page.scores[view.step][view.order][head];
}

function largestScore() {
  return Math.max(1e-9, ...page.scores[view.step][view.order]);
}

// All heads that pass the filter, as they are ordered.
function shownHeads() {
  const all = heads.map((_, i) => i);
  if (view.order === "layer") return all;
  const least = view.least * largestScore();
  return all.filter((i) => scoreOf(i) >= least).sort((a, b) => scoreOf(b) - scoreOf(a) || a - b);
}

// [row, column] of each shown head in the grid.
function placesOf(shown) {
  if (view.order === "layer") return new Map(shown.map((i) => [i, [heads[i].row, heads[i].head]]));
  const n = Math.max(...page.layers.map(([, n]) => n));
  return new Map(shown.map((i, rank) => [i, [Math.floor(rank / n), rank % n]]));
}

function nameOf(head) {
  return `layer ${heads[head].layer}, head ${heads[head].head}`;
}

function nameOfAll(selected) {
  if (selected.length === 1) return nameOf(selected[0]);
  const named = selected.map((i) => `${heads[i].layer}.${heads[i].head}`);
  const others = named.length > 8 ? ` and ${named.length - 8} more` : "";
  return `mean of ${selected.length} heads: ${named.slice(0, 8).join(", ")}${others}`;
}

// ---- the view as text, and back

function viewAsText() {
  const parts = { heads: view.heads.map((i) => `${heads[i].layer}.${heads[i].head}`).join(" ") };
  if (view.token !== null) parts.token = view.token;
  if (!view.from) parts.way = "to";
  if (view.step) parts.step = page.steps[view.step];
  if (view.order !== "layer") parts.order = view.order;
  if (view.least) parts.least = view.least;
  if (view.values) parts.values = 1;
  return new URLSearchParams(parts).toString();
}

// Returns what a text says about the view, without what does not exist on this page.
function viewFrom(text) {
  const parts = new URLSearchParams(text);
  const named = (parts.get("heads") ?? "").split(" ");
  const selected = heads.map((_, i) => i).filter((i) => named.includes(`${heads[i].layer}.${heads[i].head}`));
  const token = parts.has("token") ? Number(parts.get("token")) : null;
  const step = page.steps.indexOf(Number(parts.get("step")));
  const least = Number(parts.get("least"));
  return {
    heads: selected.length ? selected : [0],
    token: Number.isInteger(token) && token >= 0 && token < T ? token : null,
    from: parts.get("way") !== "to",
    step: parts.has("step") && step >= 0 ? step : 0,
    order: SCORES.includes(parts.get("order")) ? parts.get("order") : "layer",
    least: least > 0 && least <= 1 ? least : 0,
    values: parts.get("values") === "1" && hasValues,
  };
}

// ---- one head or a mean of heads as a file

const XML = { "<": "&lt;", ">": "&gt;", "&": "&amp;", '"': "&quot;" };
const CELL = 14; // of the drawing

function drawing() {
  const escaped = (text) => text.replace(/[<>&"]/g, (character) => XML[character]);
  const size = T * CELL;
  const left = 8 + 7.3 * Math.max(...tokens.map((token) => token.length));
  const marks = [];
  for (let query = 0; query < T; query++) {
    for (let key = 0; key < T; key++) {
      const code = codeOf(view.heads, query, key);
      const color = colorOf(code, inFuture(query, key));
      if (!color) continue;
      const title = `${tokens[query]} → ${tokens[key]}: ${written(weightOf(code))}`;
      const place = `x="${left + key * CELL}" y="${24 + query * CELL}" width="${CELL}" height="${CELL}"`;
      marks.push(`<rect ${place} fill="${css(color)}"><title>${escaped(title)}</title></rect>`);
    }
  }
  tokens.forEach((token, i) => {
    const middle = (i + 0.75) * CELL;
    marks.push(`<text x="${left - 4}" y="${24 + middle}" text-anchor="end">${escaped(token)}</text>`);
    const [x, y] = [left + middle, 28 + size];
    marks.push(`<text transform="translate(${x} ${y}) rotate(-90)" text-anchor="end">${escaped(token)}</text>`);
  });
  const title = `<text x="${left}" y="14">${escaped(nameOfAll(view.heads))}</text>`;
  const box = `width="${left + size + 8}" height="${28 + size + left}"`;
  const text = `<svg ${box} font-family="monospace" font-size="12" fill="#888">${title}${marks.join("")}</svg>`;
  // The parser and the serializer add the namespace, and make the file well-formed.
  const parsed = new DOMParser().parseFromString(text, "text/html").querySelector("svg");
  return new XMLSerializer().serializeToString(parsed);
}

function saveDrawing() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([drawing()], { type: "image/svg+xml" }));
  link.download = `${nameOfAll(view.heads).replace(/[^\w.]+/g, "-")}.svg`;
  link.click();
  URL.revokeObjectURL(link.href);
}

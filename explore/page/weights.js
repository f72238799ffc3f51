// Weights, from the bytes in the page to numbers, colors and pictures. view.js makes a page of them.
"use strict";

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("data").textContent);
const tokens = page.tokens;
const T = tokens.length;
const heads = page.layers.flatMap(([layer, n], row) => Array.from({ length: n }, (_, head) => ({ layer, head, row })));
// All that can be chosen; what is seen follows from it. The large picture is the mean of `heads`.
const view = { step: 0, heads: [0], token: null, from: true, order: "layer", least: 0, values: false };
const hasValues = page.norms.every((ofStep) => ofStep.every((norms) => norms !== null));
let codes; // the bytes of all weights, see encode_weights in html.py

// ---- numbers

async function inflated(base64) {
  const text = atob(base64);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function codeOfHead(head, query, key) {
  const n = heads.length * T * T;
  const at = view.step * 2 * n + (head * T + query) * T + key;
  return ((codes[at] << 24) >> 16) | codes[at + n];
}

const NOT_A_NUMBER = -32768;

// The code of the mean weight of heads, each times the relative norm of its value if the view says so.
function codeOf(selected, query, key) {
  if (selected.length === 1 && !view.values) return codeOfHead(selected[0], query, key);
  let sum = 0;
  for (const head of selected) {
    const code = codeOfHead(head, query, key);
    if (code === NOT_A_NUMBER) return code;
    sum += weightOf(code) * (view.values ? page.norms[view.step][head][key] : 1);
  }
  const mean = sum / selected.length;
  return Math.sign(mean) * Math.sqrt(Math.abs(mean)) * page.levels;
}

function weightOf(code) {
  return code === NOT_A_NUMBER ? NaN : Math.sign(code) * (code / page.levels) ** 2;
}

function written(weight) {
  if (Number.isNaN(weight)) return "not a number";
  return weight === 0 || Math.abs(weight) >= 0.001 ? weight.toFixed(3) : weight.toPrecision(1);
}

// ---- colors: 256 of each kind, for the root of a weight from 0 to 1

const PALETTES = {
  light: {
    past: ["#e9eef6", "#b9d3eb", "#6fafd8", "#2877b6", "#08306b"],
    negative: ["#e9eef6", "#f3c987", "#dd8a1e", "#a85b00", "#5e3200"],
    future: ["#ff9c8f", "#e4483f", "#c01820", "#9d0b14", "#67000d"],
    nan: ["#8e44ad", "#8e44ad"],
  },
  dark: {
    past: ["#272d37", "#1d4f7c", "#2b82c4", "#7cc1ef", "#f0faff"],
    negative: ["#272d37", "#6b4712", "#b97a17", "#f0b849", "#fff3d6"],
    future: ["#b8342b", "#d8483d", "#f0695c", "#ff978b", "#ffd3cd"],
    nan: ["#c58af9", "#c58af9"],
  },
};
let ramps; // of the palette in use, each color as the four bytes that a picture wants

function ramp(stops) {
  const rgb = stops.map((stop) => [1, 3, 5].map((i) => parseInt(stop.slice(i, i + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (stops.length - 1);
    const below = Math.min(Math.floor(place), stops.length - 2);
    const [r, g, b] = rgb[below].map((low, c) => Math.round(low + (place - below) * (rgb[below + 1][c] - low)));
    return (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
  });
}

// Whether a query must not see this key: with causal=False it sees all.
function inFuture(query, key) {
  return page.causal && key > query;
}

// A key in the future is blank while its weight is 0, and has colors of its own when it is not.
function colorOf(code, isFuture) {
  if (code === NOT_A_NUMBER) return ramps.nan[0];
  if (isFuture && code === 0) return 0;
  const shade = Math.min(255, Math.round((Math.abs(code) / page.levels) * 255));
  return (isFuture ? ramps.future : code < 0 ? ramps.negative : ramps.past)[shade];
}

function css(color) {
  return `rgb(${color & 255} ${(color >> 8) & 255} ${(color >> 16) & 255})`;
}

function inkOn(color) {
  const [r, g, b] = [0, 8, 16].map((shift) => (((color >> shift) & 255) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff";
}

// ---- pictures of heads

// With more tokens than pixels, a pixel shows the largest weight in it; one on the future before all others.
function paint(canvas, selected, pixels) {
  const n = Math.min(T, pixels);
  const largest = new Float64Array(n * n).fill(-1);
  const colors = new Uint32Array(n * n);
  for (let query = 0; query < T; query++) {
    const row = Math.floor((query * n) / T) * n;
    for (let key = 0; key < T; key++) {
      const code = codeOf(selected, query, key);
      const isFuture = inFuture(query, key);
      if (isFuture && code === 0) continue;
      const rank = Math.abs(code) + (isFuture ? 1 << 16 : 0);
      const at = row + Math.floor((key * n) / T);
      if (rank <= largest[at]) continue;
      largest[at] = rank;
      colors[at] = colorOf(code, isFuture);
    }
  }
  canvas.width = canvas.height = n;
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(colors.buffer), n, n), 0, 0);
}

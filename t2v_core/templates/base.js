"use strict";
// The parts of this script are joined by t2v_core.report; each knows the names of the parts before it.
const $ = (id) => document.getElementById(id);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const block = (name) => JSON.parse($(`t2v-${name}`).textContent);
const page = block("page");
const T = page.ids.length;
const E = page.experts.length;

const once = (make) => {
  let made;
  return () => (made ??= make());
};

// Undo t2v_core.page_document: base64 to steps to numbers; the highest code is "missing".
const unpack = ({ data, bits, low, step }) => {
  const raw = atob(data);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const steps = bits === 16 ? new Uint16Array(bytes.buffer) : bytes;
  const missing = 2 ** bits - 1;
  return Float32Array.from(steps, (k) => (k === missing ? NaN : low + k * step));
};
const errors = once(() => unpack(page.errors)); // [T, E], row by row
const images = once(() => block("images"));
const owns = once(() => {
  const found = new Set();
  for (let i = 0; i < page.own.length; i += 2) found.add(page.own[i] * E + page.own[i + 1]);
  return found;
});
const expertNumber = once(() => new Map(page.experts.map((name, e) => [name, e])));
const value = (column, i) => column.names[column.index[i]];
const chosenOf = (i) => expertNumber().get(value(page.selected, i)) ?? -1;

// Text only: what a user wrote never becomes markup.
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, text] of Object.entries(attributes)) {
    if (text === null || text === undefined || text === false) continue;
    if (name === "press") element.addEventListener("click", text);
    else if (name.startsWith("--")) element.style.setProperty(name, text);
    else element.setAttribute(name, text === true ? "" : text);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

// A name that may break after its separators, where it is too long for a line.
const soft = (name) => name.split(/(?<=[/_=+·])(?![/_=+·])/).flatMap((part, k) => (k ? [make("wbr"), part] : [part]));

const whole = (n) => n.toLocaleString("en-US");
const known = (v) => v !== null && v !== undefined && Number.isFinite(v);
const percent = (v) => (known(v) ? `${(100 * v).toFixed(1)}%` : "–");
const points = (v) => (known(v) ? `${v >= 0 ? "+" : "−"}${Math.abs(100 * v).toFixed(1)}` : "–");
const short = (v) => (known(v) ? Number(v.toPrecision(3)).toString() : "–");
const cut = (text, most = 30) =>
  text.length <= most ? text : `${text.slice(0, Math.ceil(most * 0.4))}…${text.slice(1 - Math.floor(most * 0.6))}`;

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
const themes = {
  light: {
    ink: "#1b1f27", muted: "#5b626e", surface: "#ffffff", grid: "#e9ebef", line: "#b9bec8", empty: "#e4e7ec", edge: "rgba(27,31,39,0.55)",
    accent: "#0067a3", second: "#a03f00", band: "rgba(91,98,110,0.28)", middle: "rgba(91,98,110,0.62)", point: "rgba(91,98,110,0.55)",
    sequential: ["#08306b", "#1c5a9c", "#4f93c9", "#a3cbe6", "#f3f8fc"],
    diverging: ["#00508c", "#5fa5d3", "#f7f7f6", "#eda268", "#a84300"],
  },
  dark: {
    ink: "#f2f3f5", muted: "#a2a9b5", surface: "#181b21", grid: "#2a2f38", line: "#4a515d", empty: "#2a2f38", edge: "rgba(255,255,255,0.5)",
    accent: "#6bbdf0", second: "#f2a36f", band: "rgba(162,169,181,0.28)", middle: "rgba(162,169,181,0.6)", point: "rgba(162,169,181,0.55)",
    sequential: ["#e6f3fd", "#8cc4ec", "#3f88bf", "#1f4f78", "#1d242e"],
    diverging: ["#7cc4f5", "#2f78ab", "#262b33", "#b0662f", "#ffb27a"],
  },
};
const theme = () => (dark.matches ? themes.dark : themes.light);

// Five colours as 256 packed pixels (ABGR, as canvas memory has them).
const ramp = (colors) => {
  const stops = colors.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, k) => {
    const at = (k / 255) * (stops.length - 1);
    const left = Math.min(Math.floor(at), stops.length - 2);
    const [r, g, b] = stops[left].map((v, c) => Math.round(v + (at - left) * (stops[left + 1][c] - v)));
    return (255 << 24) | (b << 16) | (g << 8) | r;
  });
};

// One note beside the pointer, for all figures.
const tip = {
  show(lines, event) {
    const box = $("tip");
    box.replaceChildren(...lines.filter(Boolean).map((line, k) => make(k ? "span" : "strong", {}, line)));
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const x = event.clientX + 16 + width > window.innerWidth ? event.clientX - width - 12 : event.clientX + 16;
    const y = event.clientY + 18 + height > window.innerHeight ? event.clientY - height - 12 : event.clientY + 18;
    box.style.transform = `translate(${Math.max(4, x)}px, ${Math.max(4, y)}px)`;
  },
  hide() { $("tip").hidden = true; },
};
const press = (buttons, name, chosen) =>
  buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset[name] === chosen)));

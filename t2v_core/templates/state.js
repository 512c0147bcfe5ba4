// What is chosen: one task, one kind of embedding, a colour, and a filter that all figures follow.
const state = { task: -1, kind: "task", grouping: Object.keys(page.groups)[0], group: null, source: "", query: "" };
const followers = [];
const follow = (act) => followers.push(act);
let changed = new Set();
let waiting = false;

const set = (change) => {
  for (const [name, to] of Object.entries(change)) {
    if (state[name] !== to) changed.add(name);
    state[name] = to;
  }
  if (!changed.size || waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const names = changed;
    changed = new Set();
    if (["group", "grouping", "source", "query"].some((name) => names.has(name))) refilter();
    followers.forEach((act) => act(names));
  });
};

const haystack = once(() =>
  page.ids.map((id, i) =>
    [id, value(page.source, i), value(page.domain, i), value(page.kind, i), value(page.lineage, i)].join(" ").toLowerCase()));

// Every word of the query must be somewhere in the task's names.
const passes = new Uint8Array(T).fill(1);
let nShown = T;
const refilter = () => {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const names = words.length ? haystack() : null;
  const source = state.source === "" ? -1 : page.source.names.indexOf(state.source);
  const groups = page.groups[state.grouping]?.index;
  nShown = 0;
  for (let i = 0; i < T; i++) {
    const ok = (source < 0 || page.source.index[i] === source) && (state.group === null || groups[i] === state.group)
      && (!names || words.every((word) => names[i].includes(word)));
    passes[i] = ok ? 1 : 0;
    nShown += passes[i];
  }
};
const filtered = () => nShown < T;
const clearFilter = () => {
  if ($("search")) { $("search").value = ""; $("source").value = ""; }
  set({ query: "", source: "", group: null });
};
const colorOf = (i) => {
  const { colors, index } = page.groups[state.grouping];
  return colors[index[i]];
};
// Groups take turns in shape, so that colour never tells a group alone; t2v_core.report has the same paths.
const SHAPES = ["circle", "diamond", "triangle", "square"];
const DOTS = ["M6 1a5 5 0 1 0 0 10a5 5 0 1 0 0-10z", "M6 .5 11.5 6 6 11.5 .5 6z", "M6 1 11.4 10.6H.6z", "M1.5 1.5h9v9h-9z"];
const shapeOf = (i) => page.groups[state.grouping].index[i] % SHAPES.length;
const dotOf = (i) => {
  const [svg, path] = ["svg", "path"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  svg.setAttribute("class", "dot");
  svg.setAttribute("viewBox", "0 0 12 12");
  svg.setAttribute("aria-hidden", "true");
  svg.style.setProperty("--c", colorOf(i));
  path.setAttribute("d", DOTS[shapeOf(i)]);
  svg.append(path);
  return svg;
};

const chooseTask = (task, { scroll = false } = {}) => {
  set({ task });
  history.replaceState(null, "", `#task=${encodeURIComponent(page.ids[task])}`);
  if (scroll) $("explore").scrollIntoView({ behavior: calm.matches ? "auto" : "smooth" });
};
const taskOfAddress = () => {
  const found = /^#task=(.*)$/.exec(location.hash);
  if (!found) return -1;
  try { return page.ids.indexOf(decodeURIComponent(found[1])); } catch { return -1; }
};

const taskNote = (i) => [
  page.ids[i],
  `${value(page.source, i)} · ${value(page.domain, i)} · ${value(page.kind, i)}`,
  `${whole(page.counts.n_classes[i])} classes, ${whole(page.counts.n_train[i])} train, ${whole(page.counts.n_test[i])} test images`,
  `error: best expert ${percent(page.error.oracle[i])}, generic ${percent(page.error.generic[i])}`,
  value(page.selected, i) && `chosen: ${cut(value(page.selected, i), 44)} (${percent(page.error.selected[i])})`,
];

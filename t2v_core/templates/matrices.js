// What the two matrices show: errors of experts on tasks, distances between tasks.
const packed = (hex) => ramp([hex, hex])[0];
const inTree = once(() => Int32Array.from(page.order));
const placeInTree = once(() => {
  const place = new Int32Array(T);
  page.order.forEach((task, at) => { place[task] = at; });
  return place;
});
const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? 0;

const difference = (i, e) => errors()[i * E + e] - errors()[i * E];
const reach = once(() => {
  const away = [];
  for (let i = 0; i < T; i++) for (let e = 1; e < E; e++) {
    const d = Math.abs(difference(i, e));
    if (d === d) away.push(d);
  }
  return quantile(Float32Array.from(away).sort(), 0.99) || 1;
});
const worst = once(() => quantile(errors().filter((v) => v === v).sort(), 0.99) || 1);

const errorView = { show: "difference", rows: "tree", columns: "shelf" };
const ROW_ORDERS = {
  tree: (i) => placeInTree()[i],
  source: (i) => `${value(page.source, i)}\u0000${page.ids[i]}`,
  norm: (i) => page.norm[i] ?? Infinity,
  generic: (i) => page.error.generic[i] ?? Infinity,
};
const by = (items, key) => {
  const keys = new Map(items.map((item) => [item, key(item)]));
  return items.sort((a, b) => (keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : a - b));
};
const shownTasks = () => page.ids.map((_, i) => i).filter((i) => passes[i]);
const meanOver = (tasks, e) => {
  let sum = 0;
  let n = 0;
  for (const i of tasks) {
    const v = errors()[i * E + e];
    if (v === v) { sum += v; n++; }
  }
  return n ? sum / n : Infinity;
};
const expertOrder = (rows) => {
  const experts = page.experts.map((_, e) => e);
  if (errorView.columns === "mean") return by(experts, (e) => meanOver(rows, e));
  if (errorView.columns === "task" && state.task >= 0) {
    return by(experts, (e) => { const v = errors()[state.task * E + e]; return v === v ? v : Infinity; });
  }
  return experts;
};

const errorSpec = () => {
  const colors = theme();
  const plain = errorView.show === "error";
  const stops = plain ? colors.sequential : colors.diverging;
  const table = ramp(stops);
  const empty = packed(colors.empty);
  const most = plain ? worst() : reach();
  const rows = by(shownTasks(), ROW_ORDERS[errorView.rows]);
  const cells = errors();
  return {
    rows,
    columns: expertOrder(rows),
    pixel: (i, e) => {
      const v = plain ? cells[i * E + e] / most : (difference(i, e) / most + 1) / 2;
      return v === v ? table[Math.max(0, Math.min(255, Math.round(255 * v)))] : empty;
    },
    rowTitle: `${whole(rows.length)} tasks`,
    columnTitle: `${whole(E)} experts`,
    rowName: (i) => page.ids[i],
    columnName: (e) => page.experts[e],
    rowColor: colorOf,
    mark: (i, e) => (owns().has(i * E + e) ? 1 : page.best[i] === e ? 2 : 0),
    note: (i, e) => {
      const v = cells[i * E + e];
      return [
        page.ids[i],
        `expert ${page.experts[e]}`,
        v === v ? `error ${percent(v)}, ${points(difference(i, e))} points against generic` : "not evaluated",
        owns().has(i * E + e) && "trained on this task",
        page.best[i] === e && "the best of the other experts",
        chosenOf(i) === e && "the chosen one",
      ];
    },
    colors: stops,
    low: plain ? 0 : -most,
    high: most,
    unit: plain ? "error (dark: low)" : "points against generic (blue: better)",
    format: plain ? percent : points,
    hint: "Point at a cell, or use the arrow keys.",
  };
};

const distanceBlock = once(() => block("distances"));
const unpacked = { task: once(() => unpack(distanceBlock().task)), domain: once(() => unpack(distanceBlock().domain)) };
const treeShape = once(() => {
  const place = new Float64Array(2 * T - 1);
  const height = new Float64Array(2 * T - 1);
  page.order.forEach((task, at) => { place[task] = at; });
  page.tree.height.forEach((h, k) => {
    place[T + k] = (place[page.tree.pairs[2 * k]] + place[page.tree.pairs[2 * k + 1]]) / 2;
    height[T + k] = h ?? 0;
  });
  return { place, height, most: Math.max(...height) };
});
const distanceSpec = () => {
  const colors = theme();
  const table = ramp(colors.sequential);
  const empty = packed(colors.empty);
  const far = unpacked[state.kind]();
  const { low, step } = distanceBlock()[state.kind];
  const high = low + 254 * step;
  const place = placeInTree();
  const at = (i, j) => {
    const [a, b] = place[i] < place[j] ? [place[i], place[j]] : [place[j], place[i]];
    return far[(a * (2 * T - a - 1)) / 2 + b - a - 1];
  };
  const tasks = Array.from(inTree()).filter((i) => passes[i]);
  return {
    rows: tasks,
    columns: tasks,
    square: true,
    tree: !filtered() && T > 1 ? treeShape() : null,
    pixel: (i, j) => {
      if (i === j) return table[0];
      const v = at(i, j);
      return v === v ? table[Math.round((255 * (v - low)) / (high - low || 1))] : empty;
    },
    rowTitle: `${whole(tasks.length)} tasks`,
    columnTitle: "the same tasks",
    rowName: (i) => page.ids[i],
    columnName: (i) => page.ids[i],
    rowColor: colorOf,
    note: (i, j) => {
      if (i === j) return [page.ids[i], "the task itself"];
      const v = at(i, j);
      const bound = v <= low ? " or less" : v >= high - step / 2 ? " or more" : "";
      return [page.ids[i], page.ids[j], v === v ? `distance about ${short(v)}${bound}` : "distance not known"];
    },
    colors: colors.sequential,
    low,
    high,
    unit: state.kind === "task" ? "symmetric TASK2VEC distance" : "cosine distance of domain embeddings",
    format: short,
    hint: "Point at a cell, or use the arrow keys.",
  };
};

const startMatrices = () => {
  const boxes = Object.fromEntries(all("[data-matrix]").map((box) => [box.dataset.matrix, box]));
  const drawn = {
    errors: boxes.errors && heatmap(boxes.errors, errorSpec),
    distances: boxes.distances && heatmap(boxes.distances, distanceSpec),
  };
  if (drawn.errors) {
    const shows = all('[data-for="errors"] [data-show]');
    shows.forEach((button) => button.addEventListener("click", () => {
      errorView.show = button.dataset.show;
      press(shows, "show", errorView.show);
      drawn.errors.again();
    }));
    $("row-order").addEventListener("change", (event) => { errorView.rows = event.target.value; drawn.errors.again(); });
    $("column-order").addEventListener("change", (event) => { errorView.columns = event.target.value; drawn.errors.again(); });
  }
  follow((names) => {
    const filter = ["source", "query", "group"].some((name) => names.has(name));
    if (filter || (names.has("task") && errorView.columns === "task")) drawn.errors?.again();
    else if (names.has("task") || names.has("grouping")) drawn.errors?.redraw();
    if (filter || names.has("kind")) drawn.distances?.again();
    else if (names.has("task") || names.has("grouping")) drawn.distances?.redraw();
  });
};

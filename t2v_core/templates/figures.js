// The map of tasks, the errors task by task, the norm against the error.
const pointSize = () => (T <= 150 ? 6 : T <= 600 ? 4.6 : 3.6);

const startMap = () => {
  const box = $("map");
  const canvas = box.firstElementChild;
  const places = { task: unpack(page.maps.task), domain: unpack(page.maps.domain) };
  let from = places.task;
  let now = places.task;
  let spots = [];
  const bounds = once(() => Object.fromEntries(Object.entries(places).map(([kind, at]) => {
    const xs = at.filter((v, k) => k % 2 === 0);
    const ys = at.filter((v, k) => k % 2 === 1);
    const range = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    return [kind, [...range(xs), ...range(ys)]];
  })));
  const scaled = (kind, width, height) => {
    const [x0, x1, y0, y1] = bounds()[kind];
    const unit = Math.min((width - 28) / (x1 - x0 || 1), (height - 28) / (y1 - y0 || 1));
    return Float32Array.from(places[kind], (v, k) =>
      k % 2 ? height / 2 - (v - (y0 + y1) / 2) * unit : width / 2 + (v - (x0 + x1) / 2) * unit);
  };
  const draw = () => {
    const width = box.clientWidth;
    const height = Math.round(Math.max(320, Math.min(width * 0.95, 620)));
    if (now.length && (draw.width !== width || draw.kind !== state.kind)) {
      from = draw.width === width ? now : null;
      draw.goal = scaled(state.kind, width, height);
      Object.assign(draw, { width, kind: state.kind, began: performance.now() });
      if (!from || calm.matches) now = draw.goal;
    }
    const part = now === draw.goal ? 1 : Math.min(1, (performance.now() - draw.began) / 500);
    const ease = 1 - (1 - part) ** 3;
    if (now !== draw.goal) now = part === 1 ? draw.goal : from.map((v, k) => v + ease * (draw.goal[k] - v));
    const pen = sharp(canvas, width, height);
    const colors = theme();
    const size = pointSize();
    const spot = (i) => ({ x: now[2 * i], y: now[2 * i + 1], task: i });
    const dot = (i, radius) => {
      MARKS[SHAPES[shapeOf(i)]](pen, now[2 * i], now[2 * i + 1], radius);
      pen.fillStyle = colorOf(i);
      pen.fill();
      pen.stroke();
    };
    pen.strokeStyle = colors.edge;
    pen.lineWidth = 0.8;
    pen.globalAlpha = 0.13;
    for (let i = 0; i < T; i++) if (!passes[i]) dot(i, size * 0.8);
    pen.globalAlpha = 1;
    for (let i = 0; i < T; i++) if (passes[i]) dot(i, size);
    if (state.task >= 0) {
      const near = nearestOf(state.task).slice(0, 8);
      const me = spot(state.task);
      pen.strokeStyle = colors.ink;
      pen.lineWidth = 1.1;
      for (const { task } of near) { const to = spot(task); pen.beginPath(); pen.moveTo(me.x, me.y); pen.lineTo(to.x, to.y); pen.stroke(); }
      for (const { task } of near) dot(task, size + 0.5);
      dot(state.task, size + 1);
      pen.lineWidth = 2.4;
      pen.strokeStyle = colors.surface;
      MARKS.circle(pen, me.x, me.y, size + 4); pen.stroke();
      pen.strokeStyle = colors.accent;
      MARKS.circle(pen, me.x, me.y, size + 6); pen.stroke();
    }
    spots = Array.from({ length: T }, (_, i) => i).filter((i) => passes[i]).map(spot);
    if (now !== draw.goal) requestAnimationFrame(draw);
  };
  const again = lazily(box, draw);
  pointing(canvas, (x, y) => {
    const found = closest(spots, x, y);
    return found && { task: found.task, lines: taskNote(found.task) };
  });
  follow(again);
};

const nearestOf = (i, kind = state.kind) => {
  const { count, index, distance } = page.near[kind];
  const out = [];
  for (let k = i * count; k < (i + 1) * count; k++) if (index[k] >= 0) out.push({ task: index[k], distance: distance[k] });
  return out;
};

const startSpread = () => {
  const box = $("spread-plot");
  if (!box) return;
  const canvas = box.firstElementChild;
  const levels = once(() => Array.from({ length: T }, (_, i) => {
    const sorted = errors().slice(i * E, (i + 1) * E).filter((v) => v === v).sort();
    return sorted.length ? [0, 0.25, 0.75, 1].map((q) => sorted[Math.round(q * (sorted.length - 1))]) : null;
  }));
  let spots = [];
  const draw = () => {
    const width = box.clientWidth;
    const height = Math.round(Math.max(320, Math.min(width * 0.42, 460)));
    const pen = sharp(canvas, width, height);
    const colors = theme();
    const tasks = by(shownTasks(), ROW_ORDERS.norm);
    const top = tasks.reduce((most, i) => Math.max(most, levels()[i]?.[3] ?? 0, page.error.generic[i] ?? 0, page.error.selected[i] ?? 0), 0);
    const { atX, atY } = axes(pen, width, height, {
      x: { low: -0.7, high: Math.max(tasks.length - 0.3, 0.7), labels: false, title: "tasks, by norm of their embedding, small to large →" },
      y: { low: 0, high: top || 1, format: (v) => `${Math.round(100 * v)}%`, title: "error on held-out data" },
    });
    const unit = Math.max(atX(1) - atX(0), 0.4);
    spots = [];
    const bar = (at, low, high, wide, color) => { pen.fillStyle = color; pen.fillRect(at - wide / 2, atY(high), wide, Math.max(atY(low) - atY(high), 0.5)); };
    tasks.forEach((i, k) => {
      const range = levels()[i];
      if (!range) return;
      bar(atX(k), range[0], range[3], Math.min(unit, 7), colors.band);
      bar(atX(k), range[1], range[2], Math.min(unit, 7), colors.middle);
    });
    const size = Math.max(2.2, Math.min(5, unit * 0.45));
    tasks.forEach((i, k) => {
      const [generic, chosen] = [page.error.generic[i], page.error.selected[i]];
      if (known(generic)) {
        MARKS.triangle(pen, atX(k), atY(generic), size);
        pen.fillStyle = colors.accent;
        pen.fill();
        spots.push({ x: atX(k), y: atY(generic), task: i });
      }
      if (known(chosen)) {
        pen.strokeStyle = colors.second;
        pen.lineWidth = Math.max(1.2, size * 0.45);
        cross(pen, atX(k), atY(chosen), size * 0.85);
        spots.push({ x: atX(k), y: atY(chosen), task: i });
      }
      if (i === state.task) {
        pen.strokeStyle = colors.accent;
        pen.lineWidth = 1.5;
        pen.strokeRect(atX(k) - Math.max(unit, 8) / 2, 9, Math.max(unit, 8), height - 40);
      }
    });
  };
  follow(lazily(box, draw));
  pointing(canvas, (x, y) => {
    const found = closest(spots, x, y, 18);
    return found && { task: found.task, lines: taskNote(found.task) };
  });
};

const startNorm = () => {
  const box = $("norm-plot");
  const canvas = box.firstElementChild;
  let spots = [];
  const draw = () => {
    const width = box.clientWidth;
    const height = Math.round(Math.max(320, Math.min(width * 0.42, 460)));
    const pen = sharp(canvas, width, height);
    const colors = theme();
    const tasks = shownTasks().filter((i) => known(page.norm[i]));
    const norms = tasks.map((i) => page.norm[i]);
    let [low, high] = norms.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    if (!norms.length) [low, high] = [0, 1];
    const log = low > 0 && high > 30 * low;
    if (!log) { const pad = (high - low) * 0.03 || 0.5; low -= pad; high += pad; } else { low /= 1.1; high *= 1.1; }
    const top = tasks.reduce((most, i) => Math.max(most, page.error.head[i] ?? 0, page.error.oracle[i] ?? 0), 0);
    const { atX, atY } = axes(pen, width, height, {
      x: { low, high, log, format: short, title: `norm of the embedding (L1)${log ? ", logarithmic" : ""}` },
      y: { low: 0, high: top * 1.03 || 1, format: (v) => `${Math.round(100 * v)}%`, title: "error on held-out data" },
    });
    spots = [];
    const size = T <= 300 ? 4.5 : 3;
    for (const [name, mark, color, label] of [["head", MARKS.circle, colors.accent, "head on the probe"], ["oracle", MARKS.diamond, colors.second, "best expert"]]) {
      pen.fillStyle = color;
      pen.globalAlpha = 0.75;
      for (const i of tasks) {
        const error = page.error[name][i];
        if (!known(error)) continue;
        const [x, y] = [atX(page.norm[i]), atY(error)];
        mark(pen, x, y, size * (name === "head" ? 1 : 0.85));
        pen.fill();
        spots.push({ x, y, task: i, lines: [page.ids[i], `norm ${short(page.norm[i])}`, `${label}: ${percent(error)}`] });
        if (i === state.task) { pen.globalAlpha = 1; pen.strokeStyle = colors.ink; pen.lineWidth = 2; MARKS.circle(pen, x, y, size + 4); pen.stroke(); pen.globalAlpha = 0.75; }
      }
    }
  };
  follow(lazily(box, draw));
  pointing(canvas, (x, y) => closest(spots, x, y));
};

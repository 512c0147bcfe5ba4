// A matrix on one canvas that stays in place while its container scrolls, so that only what is visible is drawn.
// `spec()` says what to show: rows and columns (numbers), pixel(r, c) -> packed colour, names, notes, marks, tree.
const TILT = Math.PI / 3; // of the columns' names
const NAME = 170; // their length at most, in pixels
const TITLE = 18; // room for the titles of the axes
const heatmap = (box, spec) => {
  const scroller = box.querySelector(".scroller");
  const canvas = box.querySelector("canvas");
  const sizer = box.querySelector(".sizer");
  const cell = box.querySelector(".cell");
  const picture = document.createElement("canvas");
  let shown = null;
  let grid = null;
  let cursor = null;
  let size = "fit";

  const layout = () => {
    const { rows, columns, square } = shown;
    const large = size === "large";
    const width = scroller.clientWidth;
    const names = (count, unit) => unit >= 11 && count > 0;
    const pen = canvas.getContext("2d");
    pen.font = "11px system-ui, sans-serif";
    const longest = (items, name) => items.reduce((most, item) => Math.max(most, pen.measureText(name(item)).width), 0);
    const rowNames = Math.min(longest(rows, shown.rowName) + 4, 230, width * 0.3);
    const columnNames = square ? 0 : Math.min(longest(columns, shown.columnName), NAME);
    const most = Math.max(420, Math.min(780, window.innerHeight * 0.86));
    let high = large ? 15 : Math.max(Math.min(most / rows.length, 26), rows.length * 11.5 <= 1150 ? 11.5 : 0);
    const gutter = (unit) => TITLE + 12 + (names(rows.length, unit) ? rowNames : 0);
    // Names of columns lean to the right, past the last column.
    const lean = columnNames * Math.cos(TILT);
    const roomy = (width - gutter(high) - lean) / columns.length;
    let wide = large ? 15 : Math.min(names(columns.length, roomy) ? roomy : (width - gutter(high) - 2) / columns.length, square ? 26 : 80);
    if (square && !large) high = wide = Math.min(wide, Math.max(high, most / rows.length));
    const left = gutter(high);
    const top = TITLE + (shown.tree && !large ? 76 : !square && names(columns.length, wide) ? columnNames * Math.sin(TILT) + 14 : square ? 12 : 4);
    const full = { width: left + wide * columns.length + (names(columns.length, wide) ? lean : 0) + 1, height: top + high * rows.length + 1 };
    grid = { large, high, wide, left, top, full, width, height: Math.min(full.height, large ? most + 60 : full.height) };
    scroller.style.height = `${grid.height + (large && full.width > width ? 14 : 0)}px`;
    sizer.style.width = `${large ? full.width : 1}px`;
    sizer.style.height = `${full.height}px`;
  };

  const paint = () => {
    const { rows, columns, pixel } = shown;
    picture.width = Math.max(columns.length, 1);
    picture.height = Math.max(rows.length, 1);
    const pen = picture.getContext("2d");
    const image = pen.createImageData(picture.width, picture.height);
    const memory = new Uint32Array(image.data.buffer);
    let k = 0;
    for (let r = 0; r < rows.length; r++) for (let c = 0; c < columns.length; c++) memory[k++] = pixel(rows[r], columns[c]);
    pen.putImageData(image, 0, 0);
  };

  const draw = () => {
    const { rows, columns, rowName, columnName, rowColor, mark, tree } = shown;
    const { high, wide, left, top, width, height } = grid;
    const colors = theme();
    const pen = sharp(canvas, width, height);
    const dx = scroller.scrollLeft;
    const dy = scroller.scrollTop;
    const firstR = Math.max(0, Math.floor(dy / high));
    const lastR = Math.min(rows.length, Math.ceil((dy + height - top) / high));
    const firstC = Math.max(0, Math.floor(dx / wide));
    const lastC = Math.min(columns.length, Math.ceil((dx + width - left) / wide));
    const x = (c) => left + c * wide - dx;
    const y = (r) => top + r * high - dy;
    pen.save();
    pen.beginPath();
    pen.rect(left, top, width - left, height - top);
    pen.clip();
    pen.imageSmoothingEnabled = wide * (window.devicePixelRatio || 1) < 1 || high * (window.devicePixelRatio || 1) < 1;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture, firstC, firstR, lastC - firstC, lastR - firstR, x(firstC), y(firstR), (lastC - firstC) * wide, (lastR - firstR) * high);
    if (mark && Math.min(wide, high) >= 4.5) {
      pen.strokeStyle = pen.fillStyle = colors.ink;
      pen.lineWidth = 1.4;
      for (let r = firstR; r < lastR; r++) {
        for (let c = firstC; c < lastC; c++) {
          const kind = mark(rows[r], columns[c]);
          if (kind === 1) pen.strokeRect(x(c) + 1, y(r) + 1, wide - 2, high - 2);
          if (kind === 2) { MARKS.circle(pen, x(c) + wide / 2, y(r) + high / 2, Math.min(3, high * 0.24)); pen.fill(); }
        }
      }
    }
    const line = (r, c) => {
      pen.lineWidth = Math.min(high, wide) < 4 ? 1 : 2;
      const [tall, broad] = [high < 4 ? 0 : high + 1, wide < 4 ? 0 : wide + 1];
      if (r >= 0) pen.strokeRect(left - 1, y(r) - 0.5, columns.length * wide + 2, tall);
      if (c >= 0) pen.strokeRect(x(c) - 0.5, top - 1, broad, rows.length * high + 2);
    };
    pen.strokeStyle = colors.accent;
    const mine = rows.indexOf(state.task);
    line(mine, shown.square ? mine : -1);
    if (cursor) { pen.strokeStyle = colors.ink; line(cursor.r, cursor.c); }
    pen.restore();

    const labelled = high >= 11;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    pen.font = "11px system-ui, sans-serif";
    pen.save();
    pen.beginPath(); pen.rect(TITLE, top, left - TITLE, height - top); pen.clip();
    for (let r = firstR; r < lastR; r++) {
      pen.fillStyle = rowColor(rows[r]);
      pen.fillRect(left - 9, y(r), 6, Math.max(high - (high > 4 ? 1 : 0), 0.5));
      if (!labelled) continue;
      pen.fillStyle = rows[r] === state.task ? colors.accent : colors.muted;
      pen.fillText(fit(pen, rowName(rows[r]), left - TITLE - 14), left - 13, y(r) + high / 2);
    }
    pen.restore();
    pen.save();
    pen.beginPath(); pen.rect(left, TITLE, width - left, top - TITLE); pen.clip();
    if (shown.square) {
      for (let c = firstC; c < lastC; c++) {
        pen.fillStyle = rowColor(columns[c]);
        pen.fillRect(x(c), top - 9, Math.max(wide - (wide > 4 ? 1 : 0), 0.5), 6);
      }
      if (tree && !grid.large) drawTree(pen, tree, (at) => x(at + 0.5), TITLE + 2, top - 12, colors.muted);
    } else if (wide >= 11) {
      pen.textAlign = "left";
      for (let c = firstC; c < lastC; c++) {
        pen.save();
        pen.translate(x(c) + wide / 2, top - 5);
        pen.rotate(-TILT);
        pen.fillStyle = colors.muted;
        pen.fillText(fit(pen, columnName(columns[c]), NAME), 0, 0);
        pen.restore();
      }
    }
    pen.restore();
    pen.fillStyle = colors.muted;
    pen.font = "12px system-ui, sans-serif";
    pen.textAlign = "left";
    pen.fillText(`${shown.columnTitle} →`, left, TITLE / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "right";
    pen.fillText(`← ${shown.rowTitle}`, -top, TITLE / 2);
  };

  const update = () => {
    if (!scroller.clientWidth) return;
    shown = spec();
    cursor = null;
    layout();
    paint();
    draw();
    legend(box, shown);
    cell.textContent = shown.rows.length ? shown.hint : "No task passes the filter.";
  };
  const again = lazily(box, update);

  const point = (event) => {
    const area = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - area.left - grid.left + scroller.scrollLeft) / grid.wide);
    const r = Math.floor((event.clientY - area.top - grid.top + scroller.scrollTop) / grid.high);
    const inside = event.clientX - area.left >= grid.left && event.clientY - area.top >= grid.top;
    return inside && r >= 0 && c >= 0 && r < shown.rows.length && c < shown.columns.length ? { r, c } : null;
  };
  let frame = 0;
  const moved = (to) => {
    cursor = to;
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  };
  const open = ({ r }) => chooseTask(shown.rows[r], { scroll: true });
  canvas.addEventListener("pointermove", (event) => {
    if (!shown) return;
    const to = point(event);
    moved(to);
    if (to) tip.show(shown.note(shown.rows[to.r], shown.columns[to.c]), event); else tip.hide();
  });
  canvas.addEventListener("pointerleave", () => { tip.hide(); if (shown) moved(null); });
  canvas.addEventListener("click", (event) => { const to = point(event); if (to) { tip.hide(); open(to); } });
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (!shown?.rows.length) return;
    if (event.key === "Enter" && cursor) { event.preventDefault(); open(cursor); }
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const to = cursor ?? { r: Math.max(shown.rows.indexOf(state.task), 0) - step[0], c: -step[1] };
    const clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
    const next = { r: clamp(to.r + step[0], shown.rows.length), c: clamp(to.c + step[1], shown.columns.length) };
    const { high, wide, left, top, width, height } = grid;
    scroller.scrollTop = Math.max(Math.min(scroller.scrollTop, next.r * high), (next.r + 1) * high - (height - top));
    scroller.scrollLeft = Math.max(Math.min(scroller.scrollLeft, next.c * wide), (next.c + 1) * wide - (width - left));
    moved(next);
    cell.textContent = shown.note(shown.rows[next.r], shown.columns[next.c]).filter(Boolean).join(" · ");
  });
  scroller.addEventListener("scroll", () => { if (shown) draw(); });
  const buttons = all(`[data-for="${box.dataset.matrix}"] [data-size]`);
  buttons.forEach((button) => button.addEventListener("click", () => {
    size = button.dataset.size;
    press(buttons, "size", size);
    scroller.scrollTo(0, 0);
    again();
  }));
  return { again, redraw: () => { if (shown) draw(); } };
};

// A name that fits into `width`, without its middle where it is too long.
const fit = (pen, text, width) => {
  if (pen.measureText(text).width <= width) return text;
  let most = Math.max(4, Math.floor((text.length * width) / pen.measureText(text).width));
  while (most > 4 && pen.measureText(cut(text, most)).width > width) most--;
  return cut(text, most);
};

const legend = (box, { colors, low, high, unit, format }) => {
  box.querySelector("[data-ramp]").style.background = `linear-gradient(to right, ${colors.join(", ")})`;
  box.querySelector("[data-low]").textContent = format(low);
  box.querySelector("[data-high]").textContent = format(high);
  box.querySelector("[data-unit]").textContent = unit;
};

// The tree above the distances: leaves at 0, 1, 2, ..., joints at the height of their link.
const drawTree = (pen, { place, height, most }, x, top, bottom, color) => {
  const y = (h) => bottom - (h / (most || 1)) * (bottom - top);
  pen.strokeStyle = color;
  pen.lineWidth = place.length > 400 ? 0.6 : 1;
  pen.beginPath();
  for (let k = 0; k < page.tree.height.length; k++) {
    const [a, b] = [page.tree.pairs[2 * k], page.tree.pairs[2 * k + 1]];
    const level = y(page.tree.height[k]);
    pen.moveTo(x(place[a]), y(height[a]));
    pen.lineTo(x(place[a]), level);
    pen.lineTo(x(place[b]), level);
    pen.lineTo(x(place[b]), y(height[b]));
  }
  pen.stroke();
};

// A canvas that is as sharp as the screen, drawn when it comes near the screen and again when something changes.
const sharp = (canvas, width, height) => {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "12px system-ui, sans-serif";
  return pen;
};

const lazily = (box, draw) => {
  let seen = false;
  let width = 0;
  const again = () => { if (seen && box.clientWidth) { width = box.clientWidth; draw(); } };
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    seen = true;
    again();
  }, { rootMargin: "600px" }).observe(box);
  new ResizeObserver(() => { if (box.clientWidth !== width) again(); }).observe(box);
  dark.addEventListener("change", again);
  window.addEventListener("beforeprint", () => { seen = true; again(); });
  return again;
};

// Round numbers over an interval.
const ticks = (low, high, wanted) => {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((k) => k * power >= raw) * power;
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) out.push(k * step);
  return out;
};
const logTicks = (low, high) => {
  const out = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k++) {
    for (const digit of [1, 2, 5]) out.push(digit * 10 ** k);
  }
  return out.filter((v) => v >= low && v <= high);
};

const MARKS = {
  circle: (pen, x, y, r) => { pen.beginPath(); pen.arc(x, y, r, 0, 7); },
  diamond: (pen, x, y, r) => { pen.beginPath(); pen.moveTo(x, y - 1.25 * r); pen.lineTo(x + 1.25 * r, y); pen.lineTo(x, y + 1.25 * r); pen.lineTo(x - 1.25 * r, y); pen.closePath(); },
  triangle: (pen, x, y, r) => { pen.beginPath(); pen.moveTo(x, y - 1.2 * r); pen.lineTo(x + 1.1 * r, y + 0.8 * r); pen.lineTo(x - 1.1 * r, y + 0.8 * r); pen.closePath(); },
  square: (pen, x, y, r) => { pen.beginPath(); pen.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r); },
};
const cross = (pen, x, y, r) => { pen.beginPath(); pen.moveTo(x - r, y - r); pen.lineTo(x + r, y + r); pen.moveTo(x + r, y - r); pen.lineTo(x - r, y + r); pen.stroke(); };

// Axes with titles; gives the functions from values to places.
const axes = (pen, width, height, { x, y }) => {
  const colors = theme();
  const frame = { left: 58, right: width - 10, top: 10, bottom: height - (x.labels === false ? 30 : 46) };
  const placer = ({ low, high, log }, from, to) => {
    const f = log ? Math.log : (v) => v;
    return (v) => from + ((f(v) - f(low)) / (f(high) - f(low) || 1)) * (to - from);
  };
  const atX = placer(x, frame.left, frame.right);
  const atY = placer(y, frame.bottom, frame.top);
  pen.lineWidth = 1;
  pen.fillStyle = colors.muted;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const v of ticks(y.low, y.high, 6)) {
    pen.strokeStyle = v === 0 ? colors.line : colors.grid;
    pen.beginPath(); pen.moveTo(frame.left, atY(v)); pen.lineTo(frame.right, atY(v)); pen.stroke();
    pen.fillText(y.format(v), frame.left - 7, atY(v));
  }
  pen.textAlign = "center";
  pen.textBaseline = "top";
  if (x.labels !== false) {
    for (const v of x.log ? logTicks(x.low, x.high) : ticks(x.low, x.high, 8)) {
      pen.strokeStyle = colors.grid;
      pen.beginPath(); pen.moveTo(atX(v), frame.top); pen.lineTo(atX(v), frame.bottom); pen.stroke();
      pen.fillText(x.format(v), atX(v), frame.bottom + 7);
    }
  }
  pen.fillText(x.title, (frame.left + frame.right) / 2, height - 16);
  pen.save();
  pen.translate(9, (frame.top + frame.bottom) / 2);
  pen.rotate(-Math.PI / 2);
  pen.textBaseline = "middle";
  pen.fillText(y.title, 0, 0);
  pen.restore();
  return { atX, atY, frame };
};

// The pointer over a canvas: `nearest(x, y)` gives {task, lines} or null.
const pointing = (canvas, nearest) => {
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return nearest(event.clientX - box.left, event.clientY - box.top);
  };
  canvas.addEventListener("pointermove", (event) => {
    const found = at(event);
    canvas.style.cursor = found ? "pointer" : "";
    if (found) tip.show(found.lines, event); else tip.hide();
  });
  canvas.addEventListener("pointerleave", tip.hide);
  canvas.addEventListener("click", (event) => {
    const found = at(event);
    if (found) { tip.hide(); chooseTask(found.task, { scroll: canvas.closest("#explore") === null }); }
  });
};
const closest = (spots, x, y, reach = 14) => {
  let best = null;
  let least = reach * reach;
  for (const spot of spots) {
    const away = (spot.x - x) ** 2 + (spot.y - y) ** 2;
    if (away < least) { least = away; best = spot; }
  }
  return best;
};

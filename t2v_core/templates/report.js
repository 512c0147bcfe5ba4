(() => {
  "use strict";
  const page = JSON.parse(document.getElementById("t2v-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const themes = {
    light: {
      ink: "#1b1f27", muted: "#5b626e", faint: "rgba(91,98,110,0.5)", surface: "#ffffff", grid: "#e9ebef", line: "#b9bec8",
      accent: "#0072B2",
      sequential: [[0, "#08306b"], [0.2, "#1c5a9c"], [0.45, "#4f93c9"], [0.7, "#a3cbe6"], [1, "#f3f8fc"]],
      diverging: [[0, "#00508c"], [0.25, "#5fa5d3"], [0.5, "#f7f7f6"], [0.75, "#eda268"], [1, "#a84300"]],
    },
    dark: {
      ink: "#f2f3f5", muted: "#a2a9b5", faint: "rgba(162,169,181,0.5)", surface: "#181b21", grid: "#2a2f38", line: "#4a515d",
      accent: "#56B4E9",
      sequential: [[0, "#e6f3fd"], [0.2, "#8cc4ec"], [0.45, "#3f88bf"], [0.7, "#1f4f78"], [1, "#1d242e"]],
      diverging: [[0, "#7cc4f5"], [0.25, "#2f78ab"], [0.5, "#262b33"], [0.75, "#b0662f"], [1, "#ffb27a"]],
    },
  };

  // Undo t2v_core.report.pack.
  const unpack = ({ $packed, shape: [rows, columns], triangle, low, step }) => {
    const bytes = Uint8Array.from(atob($packed), (c) => c.charCodeAt(0));
    const steps = new Uint16Array(bytes.buffer);
    const matrix = Array.from({ length: rows }, () => new Array(columns).fill(null));
    let k = 0;
    for (let i = 0; i < rows; i++) {
      for (let j = triangle ? i : 0; j < columns; j++, k++) {
        if (steps[k] === 65535) continue;
        matrix[i][j] = low + steps[k] * step;
        if (triangle) matrix[j][i] = matrix[i][j];
      }
    }
    return matrix;
  };
  const expand = (value) => {
    if (Array.isArray(value)) return value.map(expand);
    if (value === null || typeof value !== "object") return value;
    if ("$packed" in value) return unpack(value);
    if ("$shared" in value) return page.shared[value.$shared];
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, expand(item)]));
  };

  const put = (target, path, value) => {
    const keys = path.split(".");
    const last = keys.pop();
    keys.reduce((at, key) => (at[key] ??= {}), target)[last] = value;
  };
  const figures = {};
  const figure = (name) => (figures[name] ??= expand(page.figures[name]));

  const draw = (box) => {
    const name = box.dataset.figure;
    const { data, layout } = figure(name);
    const colors = dark.matches ? themes.dark : themes.light;
    const width = box.clientWidth;
    if (!width) return;
    for (const trace of data) {
      for (const [path, role] of Object.entries(trace.meta?.theme ?? {})) put(trace, path, colors[role]);
    }
    layout.font.color = colors.ink;
    layout.legend = { ...layout.legend, bgcolor: "rgba(0,0,0,0)" };
    layout.hoverlabel = {
      bgcolor: colors.surface, bordercolor: colors.line, align: "left",
      font: { color: colors.ink, size: 13, family: layout.font.family }, namelength: -1,
    };
    for (const key of Object.keys(layout)) {
      if (!/^[xy]axis/.test(key)) continue;
      if (layout[key].title) layout[key].title.font = { color: colors.muted, size: 13 };
      Object.assign(layout[key], {
        gridcolor: colors.grid, zerolinecolor: colors.line, tickfont: { color: colors.muted, size: 12 }, ticks: "",
      });
    }
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: colors.line, activecolor: colors.ink };
    const narrow = width < 560;
    for (const key of layout.meta.roomy) {
      layout[key].$shown ??= layout[key].showticklabels !== false;
      layout[key].showticklabels = layout[key].$shown && !narrow;
    }
    const { base = 0, row = 0, rows = 0, ratio = 0, least = 0, most = Infinity } = layout.meta.height;
    layout.width = width;
    layout.height = Math.round(Math.min(most, Math.max(least, base + row * rows + ratio * width)));
    box.style.minHeight = `${layout.height}px`;
    Plotly.react(box, data, layout, {
      displaylogo: false, responsive: false, displayModeBar: narrow ? false : "hover",
      modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
      toImageButtonOptions: { filename: `t2v-${name}`, scale: 2 },
    });
    box.dataset.width = width;
    box.dataset.drawn = "yes";
  };

  // Figures are drawn as they come near the screen: a matrix of 1,500 tasks takes a second.
  const boxes = [...document.querySelectorAll("[data-figure]")];
  const near = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "900px" });
  const redraw = () => boxes.filter((box) => box.dataset.drawn).forEach(draw);
  let timer = 0;
  const resized = new ResizeObserver(() => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      boxes.filter((box) => box.dataset.drawn && Number(box.dataset.width) !== box.clientWidth).forEach(draw);
    }, 120);
  });
  boxes.forEach((box) => { near.observe(box); resized.observe(box); });
  dark.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => boxes.filter((box) => !box.dataset.drawn).forEach(draw));

  // The maps: colour by a grouping, bring one group forward.
  const maps = ["task_map", "domain_map"].filter((name) => name in page.figures);
  const switches = [...document.querySelectorAll("[data-grouping]")];
  const chips = [...document.querySelectorAll("[data-group]")];
  const state = { grouping: switches[0]?.dataset.grouping, group: null };
  const color = () => {
    const { colors, index } = page.groups[state.grouping];
    for (const name of maps) {
      Object.assign(figure(name).data[0].marker, {
        color: index.map((k) => colors[k]),
        symbol: index.map((k) => (k >= 7 && k < 14 ? "diamond" : "circle")),
        opacity: index.map((k) => (state.group === null || state.group === k ? 1 : 0.1)),
      });
    }
    switches.forEach((button) => button.setAttribute("aria-pressed", button.dataset.grouping === state.grouping));
    document.querySelectorAll("[data-chips]").forEach((list) => { list.hidden = list.dataset.chips !== state.grouping; });
    chips.forEach((chip) => {
      const mine = chip.closest("[data-chips]").dataset.chips === state.grouping;
      chip.setAttribute("aria-pressed", mine && Number(chip.dataset.group) === state.group);
    });
    boxes.filter((box) => box.dataset.drawn && maps.includes(box.dataset.figure)).forEach(draw);
  };
  switches.forEach((button) => button.addEventListener("click", () => {
    Object.assign(state, { grouping: button.dataset.grouping, group: null });
    color();
  }));
  chips.forEach((chip) => chip.addEventListener("click", () => {
    const group = Number(chip.dataset.group);
    state.group = state.group === group ? null : group;
    color();
  }));

  document.querySelectorAll("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      window.getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  }));
})();

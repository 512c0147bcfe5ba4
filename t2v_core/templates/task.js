// The card of the chosen task: its images, what choosing an expert does, its experts, its nearest tasks.
const strip = (i, height, count = Infinity) => {
  const found = images()[i];
  if (!found) return null;
  const groups = [];
  found.names.slice(0, count).forEach((name, k) => {
    const last = groups.at(-1);
    if (last?.name === name) last.count += 1;
    else groups.push({ name, first: k, count: 1 });
  });
  return { url: `url(data:image/webp;base64,${found.strip})`, groups, height, all: found.names.length };
};
const piece = ({ url, height, all: n }, { name, first, count }) => make("span", {
  class: "piece", role: "img", "aria-label": `${count} ${count === 1 ? "image" : "images"} of ${name}`,
  "--url": url, "--w": `${count * height}px`, "--h": `${height}px`, "--at": `${-first * height}px`, "--full": `${n * height}px`,
});

const pictures = (i) => {
  const found = strip(i, 43);
  if (!found) return null;
  return make("div", { class: "pictures" }, ...found.groups.map((group) =>
    make("figure", {}, piece(found, group), make("figcaption", { title: group.name }, group.name))));
};

const ranked = (i) => {
  const list = page.experts.map((name, e) => ({ e, name, error: errors()[i * E + e] })).filter(({ error }) => error === error);
  return list.sort((a, b) => a.error - b.error || a.e - b.e);
};

const choice = (i) => {
  const rows = [["best expert", page.error.oracle[i]], ["chosen expert", page.error.selected[i]], ["generic expert", page.error.generic[i]], ["head on the probe", page.error.head[i]]]
    .filter(([, error]) => known(error));
  const most = Math.max(...rows.map(([, error]) => error), 1e-9);
  return make("dl", { class: "bars" }, ...rows.flatMap(([label, error]) => [
    make("dt", {}, label),
    make("dd", {}, make("span", { class: "share", "--w": `${(100 * error) / most}%` }), make("span", { class: "num" }, percent(error))),
  ]));
};

const expertRows = (i, wide) => {
  const list = ranked(i);
  const chosen = chosenOf(i);
  const keep = (place, e) => wide || place < 6 || e === chosen || e === 0;
  const rows = [];
  let skipped = 0;
  list.forEach(({ e, name, error }, place) => {
    if (!keep(place, e)) { skipped += 1; return; }
    if (skipped) rows.push(make("tr", { class: "gap" }, make("td", { colspan: 4 }, `${whole(skipped)} between`)));
    skipped = 0;
    const tags = [e === page.best[i] && "best", e === chosen && "chosen", e === 0 && name !== "generic" && "generic", owns().has(i * E + e) && "trained on this task"].filter(Boolean);
    rows.push(make("tr", { class: e === chosen ? "mine" : null },
      make("td", {}, String(place + 1)),
      make("th", { scope: "row" }, ...soft(name), ...tags.map((tag) => make("span", { class: "tag plain" }, tag))),
      make("td", {}, percent(error)),
      make("td", {}, e === 0 ? "" : points(difference(i, e)))));
  });
  if (skipped) rows.push(make("tr", { class: "gap" }, make("td", { colspan: 4 }, `${whole(skipped)} more`)));
  return rows;
};

const experts = (i) => {
  const list = ranked(i);
  if (!list.length) return [make("p", { class: "quiet" }, "No expert was evaluated on this task.")];
  const body = make("tbody", {}, ...expertRows(i, false));
  const table = make("table", {},
    make("thead", {}, make("tr", {}, ...["Rank", "Expert", "Error", "Against generic"].map((text) => make("th", { scope: "col" }, text)))), body);
  const box = make("div", { class: "scroll experts", tabindex: 0, role: "region", "aria-label": "Experts on this task" }, table);
  const button = make("button", { type: "button", press: () => { body.replaceChildren(...expertRows(i, true)); button.remove(); } }, `All ${whole(list.length)} experts`);
  return [box, list.length > 8 ? button : null];
};

const neighbour = ({ task, distance }) => {
  const found = strip(task, 28, 2);
  return make("li", {},
    make("button", { type: "button", press: () => chooseTask(task) },
      dotOf(task),
      ...(found ? found.groups.map((group) => piece(found, group)) : []),
      make("span", { class: "name" }, ...soft(page.ids[task])),
      make("small", {}, short(distance))));
};
const neighbours = (i) => {
  const list = nearestOf(i);
  if (!list.length) return [make("p", { class: "quiet" }, "No other task is at a known distance.")];
  const box = make("ol", { class: "near" }, ...list.slice(0, 6).map(neighbour));
  const button = make("button", { type: "button", press: () => { box.replaceChildren(...list.map(neighbour)); button.remove(); } }, `${list.length} nearest`);
  return [box, list.length > 6 ? button : null];
};

const startTask = () => {
  const card = $("task");
  const fill = () => {
    const i = state.task;
    const lineage = value(page.lineage, i);
    card.replaceChildren(
      make("h3", {}, ...soft(page.ids[i])),
      make("p", { class: "quiet" }, `${value(page.source, i)} · ${value(page.domain, i)} · ${value(page.kind, i)}${lineage ? ` · ${lineage}` : ""}`),
      make("p", { class: "quiet" }, `${whole(page.counts.n_classes[i])} classes, ${whole(page.counts.n_train[i])} train and ${whole(page.counts.n_test[i])} test images, norm ${short(page.norm[i])}`),
      ...[pictures(i)].filter(Boolean),
      make("h4", {}, "Error on held-out images"), choice(i),
      ...(E ? [make("h4", {}, "Experts on this task"), ...experts(i).filter(Boolean)] : []),
      make("h4", {}, `Nearest tasks by ${state.kind} embedding`), ...neighbours(i).filter(Boolean));
  };
  follow((names) => {
    if (["task", "kind", "grouping"].some((name) => names.has(name))) fill();
    if (names.has("task")) $("told").textContent = `Task ${page.ids[state.task]} is shown.`;
  });
  // The first task to show: the one of the address, else the one where choosing gains most.
  const gain = (i) => (known(page.error.generic[i]) && known(page.error.selected[i]) ? page.error.generic[i] - page.error.selected[i] : -1);
  const first = taskOfAddress();
  state.task = first >= 0 ? first : page.ids.reduce((best, _, i) => (gain(i) > gain(best) ? i : best), 0);
  fill();
  window.addEventListener("hashchange", () => { const task = taskOfAddress(); if (task >= 0) set({ task }); });
};

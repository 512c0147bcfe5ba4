// Search and lists: what is found, the switches, the line that says what is filtered.
const SOME = 60;

const startExplore = () => {
  const search = $("search");
  const source = $("source");
  const list = $("found");
  const more = $("more-found");
  let most = SOME;

  const row = (i) => make("li", {},
    make("button", { type: "button", "data-task": i, "aria-current": i === state.task ? "true" : null, press: () => chooseTask(i) },
      dotOf(i),
      make("span", { class: "name" }, ...soft(page.ids[i])),
      make("small", {}, `${whole(page.counts.n_classes[i])} classes · best ${percent(page.error.oracle[i])}`)));
  const refill = () => {
    const found = shownTasks();
    list.replaceChildren(...found.slice(0, most).map(row));
    more.hidden = found.length <= most;
    more.textContent = `Show ${whole(Math.min(SOME, found.length - most))} more`;
    $("count").textContent = filtered() ? `${whole(nShown)} of ${whole(T)} tasks` : `${whole(T)} tasks`;
  };
  more.addEventListener("click", () => {
    const first = most;
    most += SOME;
    refill();
    list.children[first]?.firstElementChild.focus();
  });

  search.addEventListener("input", () => { most = SOME; set({ query: search.value }); });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { search.value = ""; set({ query: "" }); }
    if (event.key === "Enter") { const [first] = shownTasks(); if (first !== undefined) chooseTask(first); }
    if (event.key === "ArrowDown") { event.preventDefault(); list.querySelector("button")?.focus(); }
  });
  list.addEventListener("keydown", (event) => {
    const at = event.target.closest("li");
    if (!at || !["ArrowDown", "ArrowUp"].includes(event.key)) return;
    event.preventDefault();
    const to = event.key === "ArrowDown" ? at.nextElementSibling : at.previousElementSibling;
    (to?.firstElementChild ?? (event.key === "ArrowUp" ? search : null))?.focus();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    search.focus();
  });
  source.addEventListener("change", () => { most = SOME; set({ source: source.value }); });

  const kinds = all("button[data-kind]");
  kinds.forEach((button) => button.addEventListener("click", () => set({ kind: button.dataset.kind })));
  const groupings = all("[data-grouping]");
  groupings.forEach((button) => button.addEventListener("click", () => set({ grouping: button.dataset.grouping, group: null })));
  const chips = all("[data-group]");
  chips.forEach((chip) => chip.addEventListener("click", () => {
    const group = Number(chip.dataset.group);
    most = SOME;
    set({ group: state.group === group ? null : group });
  }));
  const line = document.querySelector("[data-filter]");
  all("[data-clear]").forEach((button) => button.addEventListener("click", clearFilter));

  refill();
  follow((names) => {
    if (names.has("kind")) {
      press(kinds, "kind", state.kind);
      all("[data-when]").forEach((text) => { text.hidden = text.dataset.when !== state.kind; });
    }
    if (names.has("grouping")) {
      press(groupings, "grouping", state.grouping);
      all("[data-chips]").forEach((box) => { box.hidden = box.dataset.chips !== state.grouping; });
    }
    if (names.has("group") || names.has("grouping")) {
      chips.forEach((chip) => {
        const mine = chip.closest("[data-chips]").dataset.chips === state.grouping;
        chip.setAttribute("aria-pressed", String(mine && Number(chip.dataset.group) === state.group));
      });
    }
    if (["source", "query", "group", "grouping"].some((name) => names.has(name))) {
      refill();
      line.hidden = !filtered();
      document.querySelector("[data-filter-text]").textContent = `${whole(nShown)} of ${whole(T)} tasks shown`;
    } else if (names.has("task")) {
      all("[data-task]", list).forEach((button) => {
        if (Number(button.dataset.task) === state.task) button.setAttribute("aria-current", "true");
        else button.removeAttribute("aria-current");
      });
    }
  });
};

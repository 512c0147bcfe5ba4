// Start: the card and the list first, figures as they come near the screen.
document.documentElement.dataset.script = "yes";
if (T) {
  startTask();
  startExplore();
  startMap();
  startMatrices();
  startSpread();
  startNorm();
}
all("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
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
if (taskOfAddress() >= 0) $("explore").scrollIntoView();
document.documentElement.dataset.ready = "yes";
performance.mark("t2v-ready");

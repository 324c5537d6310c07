// Skipped steps one by one, and those without some micro-batches: why, at which scale, and where it began.

function drawSkips() {
  const run = currentRun();
  const details = run.skips.details;
  byId("skips").hidden = !details.length;
  if (!details.length) return;
  byId("skips-summary").textContent = skipsTitle(run);
  const drops = details.some((it) => it.dropped);
  const places = details.some((it) => it.first), culprits = details.some((it) => it.culprits.length);
  const heads = ["Step", "Why", "Scale", drops && "Micro-batches", culprits && "Parameters", places && "First in the backward pass", places && "First in the forward pass"];
  const head = make("tr", {}, ...heads.filter(Boolean).map((text, i) => make("th", { scope: "col", class: i === 0 || i === 2 ? null : "text" }, text)));
  const lines = details.map((it) => make("tr", {},
    make("td", {}, count(it.step)), make("td", { class: "text" }, it.reason === null ? "taken" : reasonText(it.reason)),
    make("td", { html: powerHtml(it.scale === null ? NaN : Math.log2(it.scale)) }),
    ...(drops ? [make("td", { class: "text" }, it.dropped ? droppedWords(it.dropped) : "–")] : []),
    ...(culprits ? [make("td", { class: "text wide" }, named(it.culprits))] : []),
    ...(places ? ["backward", "forward"].map((pass) => make("td", { class: "text" }, (it.first && it.first[pass]) || "–")) : [])));
  fill(byId("skip-table"), make("thead", {}, head), make("tbody", {}, ...lines));
}

function skipsTitle({ skips: { details }, summary }) {
  const taken = details.filter((it) => it.reason === null).length;
  const skipped = details.length - taken;
  const whole = skipped === summary.skipped;
  const parts = [skipped && (whole ? plural(skipped, "skipped step") : `${count(skipped)} of ${count(summary.skipped)} skipped steps`),
    taken && `${plural(taken, "step")} without some micro-batches`];
  return `${parts.filter(Boolean).join(" and ")} one by one${whole ? "" : ", the first and the last"}`;
}

function droppedWords([dropped, all]) {
  return dropped === all ? `all ${count(all)} dropped` : `${count(dropped)} of ${count(all)} dropped`;
}

function named(culprits) {
  if (!culprits.length) return "–";
  const more = culprits.length - 3;
  return culprits.slice(0, 3).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

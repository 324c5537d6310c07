// Skipped steps one by one: why, at which scale, and where it began.

function drawSkips() {
  const run = currentRun();
  const details = run.skips.details;
  byId("skips").hidden = !details.length;
  if (!details.length) return;
  const total = run.summary.skipped;
  byId("skips-summary").textContent = total === details.length ? `${plural(total, "skipped step")} one by one` : `${count(details.length)} of ${count(total)} skipped steps one by one, the first and the last`;
  const places = details.some((it) => it.first), culprits = details.some((it) => it.culprits.length);
  const heads = ["Step", "Why", "Scale", culprits && "Parameters", places && "First in the backward pass", places && "First in the forward pass"];
  const head = make("tr", {}, ...heads.filter(Boolean).map((text, i) => make("th", { scope: "col", class: i === 0 || i === 2 ? null : "text" }, text)));
  const lines = details.map((it) => make("tr", {},
    make("td", {}, count(it.step)), make("td", { class: "text" }, reasonText(it.reason)),
    make("td", { html: powerHtml(it.scale === null ? NaN : Math.log2(it.scale)) }),
    ...(culprits ? [make("td", { class: "text wide" }, named(it.culprits))] : []),
    ...(places ? ["backward", "forward"].map((pass) => make("td", { class: "text" }, (it.first && it.first[pass]) || "–")) : [])));
  fill(byId("skip-table"), make("thead", {}, head), make("tbody", {}, ...lines));
}

function named(culprits) {
  if (!culprits.length) return "–";
  const more = culprits.length - 3;
  return culprits.slice(0, 3).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

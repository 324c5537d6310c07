// The run in a few numbers, and what its recording lacks.

function drawVerdict() {
  const run = currentRun();
  const it = run.summary;
  const tiles = [
    tile("Steps", count(it.steps), it.steps ? `${count(it.first_step)} to ${count(it.last_step)}` : "none yet"),
    tile("Skipped", count(it.skipped), skippedWords(it)),
  ];
  if (it.log2_scale) tiles.push(tile("Loss scale, last", powerHtml(it.log2_scale.last), rangeWords(it.log2_scale)));
  if (it.lost) tiles.push(...lostTiles(it));
  if (it.groups !== null) tiles.push(tile("Scales in use", count(it.groups), it.groups === 1 ? "one for the whole network" : "one for each part that needs it"));
  if (it.loss !== null) tiles.push(tile("Last loss", plain(it.loss, 4)));
  fill(byId("tiles"), ...tiles);
  fill(byId("notes"), ...notesOf(run).map((text) => make("li", { html: marked(text) })));
  byId("subtitle").textContent = subtitleOf(run);
}

function lostTiles(it) {
  const tiles = [tile("Lost", percent(it.lost.share), `of the non-zero gradients; ${it.lost.method}, ${plural(it.lost.measured_steps, "step")}`)];
  if (it.worst.length) tiles.push(tile("Most lost in", percent(it.worst[0].share), escaped(it.worst[0].row)));
  if (it.best) {
    tiles.push(tile("Best loss scale", powerHtml(it.best.log2_scale), bestWords(it.best)));
  }
  return tiles;
}

// By the last histograms, with two octaves to spare below overflow.
function bestWords({ log2_scale: scale, share, recorded }) {
  if (scale === recorded.log2_scale) return `the recorded one: ${percent(share)} lost`;
  const now = `${percent(recorded.share)} at the recorded ${powerHtml(recorded.log2_scale)}`;
  if (recorded.share < share) return `${percent(share)} lost; ${now} is too near overflow`;
  return `${percent(share)} lost, ${now}`;
}

function skippedWords(it) {
  const reasons = Object.entries(it.reasons).map(([name, n]) => `${escaped(reasonText(name))} ${count(n)}`);
  return it.skipped ? `${percent(it.skipped / it.steps)}: ${reasons.join(", ")}` : "every step was taken";
}

function rangeWords(scale) {
  return scale.lowest === scale.highest ? "never moved" : `between ${powerHtml(scale.lowest)} and ${powerHtml(scale.highest)}`;
}

function notesOf(run) {
  const notes = [...run.summary.missing];
  if (run.torn) notes.push("The last line of the recording was cut off and is left out: the run was killed while it was written, or still runs.");
  return notes;
}

// Backquotes become code.
function marked(text) {
  return escaped(text).replace(/`([^`]+)`/g, "<code>$1</code>");
}

function subtitleOf(run) {
  const it = run.summary;
  const policy = it.policy ? `policy ${it.policy}${configWords(run.policy.config)}` : "no scaler";
  const parts = [run.name, it.format, policy, it.layerwise && `layer-wise ${it.layerwise}`,
    run.measure_every && `measured every ${plural(run.measure_every, "step")}`, run.started && run.started.replace("T", " ").replace("Z", " UTC"),
    ...Object.entries(run.note).map(([name, value]) => `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`)];
  return parts.filter(Boolean).join("  ·  ");
}

function configWords(config) {
  const entries = Object.entries(config || {}).filter(([, value]) => typeof value !== "object");
  return entries.length ? ` (${entries.map(([name, value]) => `${name}=${value}`).join(", ")})` : "";
}

function startVerdict() {
  drawVerdict();
  listen(["run"], drawVerdict);
}

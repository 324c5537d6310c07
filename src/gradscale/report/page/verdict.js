// The run in a few numbers, and what its recording lacks.

function drawVerdict() {
  const run = currentRun();
  const it = run.summary;
  const tiles = [
    tile("Steps", count(it.steps), it.steps ? `${count(it.first_step)} to ${count(it.last_step)}` : "none yet"),
    tile("Skipped", count(it.skipped), skippedWords(it)),
  ];
  if (it.dropped) tiles.push(tile("Dropped", plural(it.dropped.micro_batches, "micro-batch", "micro-batches"), `left out of ${plural(it.dropped.steps, "step")}`));
  if (it.log2_scale) tiles.push(tile("Loss scale, last", powerHtml(it.log2_scale.last), rangeWords(it.log2_scale)));
  if (it.lost) tiles.push(...lostTiles(it));
  if (it.groups !== null) tiles.push(tile("Scales in use", count(it.groups), it.groups === 1 ? "one for the whole network" : "one for each part that needs it"));
  if (it.loss !== null) tiles.push(tile("Last loss", plain(it.loss, 4)));
  fill(byId("tiles"), ...tiles);
  fill(byId("notes"), ...notesOf(run).map((text) => make("li", { html: marked(text) })));
  byId("subtitle").textContent = subtitleOf(run);
  drawSettings();
}

function lostTiles(it) {
  const tiles = [tile("Lost", percent(it.lost.share), `of the non-zero gradients; ${it.lost.method}${betweenWords(it.lost.between)}, ${plural(it.lost.measured_steps, "step")}`)];
  if (it.worst.length) tiles.push(tile("Most lost in", percent(it.worst[0].share), breakable(rowWordsOf(it.worst[0]))));
  const advised = currentRun().note.advice?.log2_scale;
  if (Number.isInteger(advised)) {
    tiles.push(tile("Advised loss scale", powerHtml(advised), "to begin with; the policy follows from there"));
  } else if (it.best) {
    tiles.push(tile("Best loss scale", powerHtml(it.best.log2_scale), bestWords(it.best)));
  }
  return tiles;
}

// How far an estimate may be off: which zeros are true nobody saw.
function betweenWords(between) {
  if (!between || percent(between[0]) === percent(between[1])) return "";
  return `: at least ${percent(between[0])}, at most ${percent(between[1])}`;
}

// By the last histograms, with four octaves to spare below overflow.
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
  const told = run.note.advice?.lines;
  const notes = [...(Array.isArray(told) ? told.map(String) : []), ...run.summary.missing];
  if (run.torn) notes.push("The last line of the recording was cut off and is left out: the run was killed while it was written, or still runs.");
  return notes;
}

// Backquotes become code.
function marked(text) {
  return escaped(text).replace(/`([^`]+)`/g, "<code>$1</code>");
}

function subtitleOf(run) {
  const it = run.summary;
  const policy = it.policy ? `policy ${it.policy}` : "no scaler";
  const parts = [run.name, it.format, policy, it.layerwise && `layer-wise ${it.layerwise}`,
    run.measure_every && `measured every ${plural(run.measure_every, "step")}`, run.started && run.started.replace("T", " ").replace("Z", " UTC")];
  return parts.filter(Boolean).join("  ·  ");
}

// Modules are often called by a number: the kind says what it is.
function rowWordsOf({ kind, row }) {
  return kind === "module" ? `module ${row}` : row;
}

// What the run was started with, and what its user noted.
function drawSettings() {
  const run = currentRun();
  const entries = [...Object.entries(run.policy?.config || {}), ["layerwise", run.summary.layerwise], ["gradscale", run.gradscale], ["torch", run.torch], ...Object.entries(run.note).filter(([name]) => name !== "advice")]
    .filter(([, value]) => value !== null && value !== undefined);
  byId("settings").hidden = !entries.length;
  const words = (value) => (typeof value === "object" ? JSON.stringify(value) : typeof value === "number" ? plain(value, 6) : String(value));
  fill(byId("setting-table"), make("tbody", {}, ...entries.map(([name, value]) => make("tr", {}, make("th", { scope: "row", class: "text" }, name), make("td", { class: "text wide" }, words(value))))));
}

function startVerdict() {
  drawVerdict();
  listen(["run"], drawVerdict);
}

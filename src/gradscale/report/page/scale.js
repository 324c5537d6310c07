// The slider: what another loss scale, or another format, would have lost and what would overflow.

function histogramsShown() {
  const run = currentRun();
  if (state.snapshot === null) return [];
  const found = histogramsAt(run, state.snapshot);
  return shownRows().filter((id) => found.has(id)).map((id) => found.get(id));
}

function scaleEnds() {
  const recorded = recordedScale(currentRun(), state.snapshot);
  // No scale is beyond float32.
  return [Math.max(-126, recorded - REACH), Math.min(127, recorded + REACH)];
}

function fillScale() {
  const run = currentRun();
  if (state.snapshot === null) return;
  const recorded = recordedScale(run, state.snapshot);
  const slider = byId("scale-slider");
  [slider.min, slider.max] = scaleEnds();
  slider.disabled = state.kind === "activation";
  byId("scale-recorded").innerHTML = `Recorded: ${powerHtml(recorded)}`;
  options(byId("snapshot"), run.snapshots.map((it, i) => [i, count(it.step)]), state.snapshot);
  const formats = [...new Set(run.rows.map((row) => row.format))];
  options(byId("format"), [["", `as recorded (${formats.join(", ")})`], ...Object.keys(payload.ranges).map((name) => [name, name])], state.format);
  best = bestScale(run, histogramsShown(), state.format, ...scaleEnds());
  byId("scale-best").disabled = best === null || state.kind === "activation";
  byId("scale-best").title = `Loses least while every row stays ${SPARE} octaves below overflow.`;
  byId("scale-best").innerHTML = best === null ? "None is safe" : `Best with room to spare: ${powerHtml(best)}`;
  drawCurve();
}

let best = null;

function drawScale() {
  if (state.snapshot === null) return;
  const run = currentRun(), histograms = histogramsShown();
  const recorded = recordedScale(run, state.snapshot);
  const slider = byId("scale-slider");
  slider.value = state.scale;
  slider.setAttribute("aria-valuetext", `2 to the ${state.scale}`);
  byId("scale-value").innerHTML = powerHtml(state.scale);
  byId("scale-value").dataset.value = state.scale;
  const now = totalAt(run, histograms, recorded, ""), then = totalAt(run, histograms, state.scale, state.format);
  const number = (id, value, share) => {
    const small = share === undefined ? "" : `<small>${percent(share)}</small>`;
    return make("div", {}, make("dt", {}, id[1]), make("dd", { id: id[0], "data-value": value, html: count(value) + small }));
  };
  const saturates = histograms.some(({ row }) => rangeFor(run.rows[row], state.format)?.overflow === "saturate");
  fill(byId("scale-tiles"),
    number(["lost-count", "Lost"], then.lost, then.nonzero ? then.lost / then.nonzero : 0),
    number(["overflow-count", saturates ? "Cut off at the top" : "Overflow"], then.overflowed, then.nonzero ? then.overflowed / then.nonzero : 0),
    number(["subnormal-count", "Subnormal"], then.subnormal, then.nonzero ? then.subnormal / then.nonzero : 0),
    number(["nonzero-count", "Not zero"], then.nonzero));
  byId("scale-words").innerHTML = raised(scaleSentence(now, then, recorded));
  moveCurveMark();
}

function scaleSentence(now, then, recorded) {
  if (!then.rows) return "None of the rows that are shown has a histogram at this step.";
  if (state.kind === "activation") return "Activations do not depend on the loss scale.";
  const parts = [];
  const same = state.scale === recorded && !state.format;
  const here = `At ${power(state.scale)}${state.format ? " in " + state.format : ""}`;
  if (same) parts.push(`${here}, as recorded, ${percent(then.lost / Math.max(1, then.nonzero))} is lost in ${plural(then.rows, "row")}.`);
  else if (then.lost < now.lost) parts.push(`${here}, ${count(now.lost - then.lost)} elements that were lost at ${power(recorded)} would be kept (${percent((now.lost - then.lost) / now.lost)} of the lost ones).`);
  else if (then.lost > now.lost) parts.push(`${here}, ${count(then.lost - now.lost)} more elements would be lost than at ${power(recorded)}.`);
  else parts.push(`${here}, as many elements are lost as at ${power(recorded)}.`);
  if (then.touching) parts.push(`${plural(then.touching, "row")} would overflow${then.overflowed ? "" : ", by the largest value alone"}.`);
  if (then.guessed) parts.push(`${count(then.guessed)} elements were zero before anybody could count them; how small they were is estimated.`);
  if (then.unseen) parts.push(`${count(then.unseen)} of the lost ones were lost unseen; a higher scale may save them, which is not counted.`);
  return parts.join(" ");
}

function startScale() {
  byId("scale-slider").addEventListener("input", (event) => choose({ scale: Number(event.target.value) }));
  byId("scale-recorded").addEventListener("click", () => choose({ scale: recordedScale(currentRun(), state.snapshot), format: "" }));
  byId("scale-best").addEventListener("click", () => choose({ scale: best }));
  byId("format").addEventListener("change", (event) => choose({ format: event.target.value }));
  byId("snapshot").addEventListener("change", (event) => {
    const snapshot = Number(event.target.value);
    const moved = state.scale - recordedScale(currentRun(), state.snapshot);
    choose({ snapshot, scale: recordedScale(currentRun(), snapshot) + moved });
  });
  fillScale();
  drawScale();
  listen(["run", "kind", "search", "snapshot", "format", "theme"], onceAFrame(() => { fillScale(); drawScale(); }));
  listen(["scale"], onceAFrame(drawScale));
}

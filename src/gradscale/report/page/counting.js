// What becomes of a histogram's elements in a format at an exponent; the same rules as counting.py.

// Histograms of a snapshot as objects with running sums, so that any scale is a few look-ups.
function unpackSnapshot(run, index) {
  const packed = run.snapshots[index];
  const get = run.view;
  const [id, measured, exponent, lowest, length, guessed] =
    ["id", "measured", "exponent", "lowest", "length", "guessed"].map((name) => get(packed[name]));
  const [unseen, zero, amax, scale, counts] =
    ["unseen", "zero", "amax", "scale", "counts"].map((name) => get(packed[name]));
  const found = new Map();
  let at = 0;
  for (let i = 0; i < id.length; i++) {
    const own = counts.subarray(at, at + length[i]);
    at += length[i];
    const sums = new Float64Array(own.length + 1);
    for (let j = 0; j < own.length; j++) sums[j + 1] = sums[j] + own[j];
    found.set(id[i], {
      row: id[i], step: measured[i], exponent: exponent[i], unseen: unseen[i], zero: zero[i], amax: amax[i],
      lowest: lowest[i], guessed: guessed[i], counts: own, sums, scale: roundedUp(scale[i]),
    });
  }
  return found;
}

// The latest histogram of each row at a snapshot, or before it.
function histogramsAt(run, index) {
  run.unpacked ??= [];
  const found = new Map();
  for (let i = 0; i <= index; i++) {
    run.unpacked[i] ??= unpackSnapshot(run, i);
    for (const [row, histogram] of run.unpacked[i]) found.set(row, histogram);
  }
  return found;
}

function between(histogram, low, high) {
  const last = histogram.counts.length;
  const from = Math.min(last, Math.max(0, low - histogram.lowest));
  const to = Math.min(last, Math.max(from, high - histogram.lowest));
  return histogram.sums[to] - histogram.sums[from];
}

function fate(histogram, range, exponent) {
  const seen = histogram.sums[histogram.counts.length];
  return {
    nonzero: seen + histogram.unseen,
    lost: between(histogram, -1e6, range.flush - exponent) + histogram.unseen,
    subnormal: between(histogram, range.flush - exponent, range.normal - exponent),
    overflowed: between(histogram, range.top + 1 - exponent, 1e6),
    touches: histogram.amax + exponent >= range.limit,
    unseen: histogram.unseen,
    guessed: histogram.sums[histogram.guessed],
  };
}

// The exponent of a loss scale, 0 where there is none.
function roundedUp(log2) {
  return Number.isFinite(log2) ? Math.ceil(log2) : 0;
}

// Where a row is stored under a loss scale. Activations do not know the loss scale.
function exponentAt(row, histogram, scale) {
  return row.kind === "activation" ? histogram.exponent : histogram.exponent + scale - histogram.scale;
}

function totalAt(run, histograms, scale, format) {
  const sum = { nonzero: 0, lost: 0, subnormal: 0, overflowed: 0, unseen: 0, guessed: 0, touching: 0, rows: 0 };
  for (const histogram of histograms) {
    const row = run.rows[histogram.row];
    const range = rangeFor(row, format);
    // Float32 loses nothing itself, and is no part of the lost share; another format may be tried on it.
    if (!range || (!format && row.format === "fp32")) continue;
    const one = fate(histogram, range, exponentAt(row, histogram, scale));
    for (const name of ["nonzero", "lost", "subnormal", "overflowed", "unseen", "guessed"]) sum[name] += one[name];
    sum.touching += one.touches ? 1 : 0;
    sum.rows += 1;
  }
  return sum;
}

function rangeFor(row, format) {
  return payload.ranges[format || row.format] || null;
}

// The scale that loses least while every row keeps four octaves above its largest value.
const SPARE = 4;
const REACH = 30;

function bestScale(run, histograms, format, from, to) {
  let room = Infinity;
  for (const histogram of histograms) {
    const row = run.rows[histogram.row];
    const range = rangeFor(row, format);
    if (!range || row.kind === "activation" || histogram.amax === -Infinity) continue;
    room = Math.min(room, Math.ceil(range.limit - histogram.amax) - 1 - exponentAt(row, histogram, 0));
  }
  if (room === Infinity) return null;
  let best = null;
  for (let scale = from; scale <= Math.min(to, room - SPARE); scale++) {
    const lost = totalAt(run, histograms, scale, format).lost;
    if (best === null || lost < best.lost) best = { scale, lost };
  }
  return best && best.scale;
}

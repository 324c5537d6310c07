// Long series as few points: of each stretch the smallest and the largest, so that no spike is lost.

const POINTS = 1200;

// First index whose step is at least `x`.
function firstAt(steps, x) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < x) low = middle + 1; else high = middle;
  }
  return low;
}

// The part of a series between two steps, with the point before and the one after.
function thinned(steps, values, from, to) {
  const start = Math.max(0, firstAt(steps, from) - 1);
  const end = Math.min(steps.length, firstAt(steps, to) + 2);
  const stretch = Math.max(1, Math.ceil((end - start) / (POINTS / 2)));
  const x = [], y = [];
  for (let i = start; i < end; i += stretch) {
    let low = -1, high = -1, gap = false;
    for (let j = i; j < Math.min(end, i + stretch); j++) {
      if (!Number.isFinite(values[j])) { gap = true; continue; }
      if (low < 0 || values[j] < values[low]) low = j;
      if (high < 0 || values[j] > values[high]) high = j;
    }
    if (low < 0) { if (gap) { x.push(steps[i]); y.push(null); } continue; }
    for (const j of low === high ? [low] : [Math.min(low, high), Math.max(low, high)]) {
      x.push(steps[j]);
      y.push(values[j]);
    }
  }
  return { x, y };
}

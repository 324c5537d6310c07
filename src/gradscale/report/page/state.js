// What is chosen, in one place. Parts of the page listen for the entries they show.

const state = {
  run: 0,          // index of the run whose details are shown
  row: null,       // id of the chosen row
  column: null,    // chosen column of the heat map
  kind: "gradients",
  search: "",
  snapshot: null,  // index of the histograms
  scale: null,     // log2 of the tried loss scale
  format: "",      // "" as recorded
  plane: "mean",
  shown: new Set(),
  sort: { key: "share", descending: true },
};

const listeners = [];

function listen(keys, react) {
  listeners.push({ keys, react });
}

function choose(changes) {
  const changed = Object.keys(changes).filter((key) => state[key] !== changes[key]);
  Object.assign(state, changes);
  for (const { keys, react } of listeners) {
    if (keys.some((key) => changed.includes(key))) react(changed);
  }
}

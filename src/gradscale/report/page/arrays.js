// From the text in the page to typed arrays: base64, inflate, then views without copying.

const KINDS = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, f4: Float32Array, f8: Float64Array,
};

async function inflated(id) {
  const text = document.getElementById(id).textContent.trim();
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function viewer(block) {
  return (reference) => reference === null ? null : new KINDS[reference.type](block, reference.at, reference.n);
}

// A share of 0..1 from its 16-bit code; see shares.py. NaN: not measured.
function decodeShare(code) {
  if (code === 0) return NaN;
  return code === 1 ? 0 : Math.pow(2, (code - 2) / 128 - 40);
}

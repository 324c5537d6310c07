#!/usr/bin/env bash
# What a GPU is needed for, in three stages of a few minutes each; from the tree, nothing is installed.
#
#     OUT=folder benchmarks/on_gpu.sh tests|speed|cost
#
# tests   all tests marked `cuda`, then the quick ones of the parts that have paths of their own there
# speed   step.py, clip.py, widen.py
# cost    memory.py, layerwise.py, watch.py, recorder.py
#
# Results and logs go to $OUT (default: build/gpu); copy the .md and .json to benchmarks/results. A benchmark that fails does not
# keep the others from running; the exit status tells. PYTHON names the interpreter; it needs torch for CUDA, pytest and hypothesis,
# and uses pytest-xdist and pytest-timeout where they are. To try it without a GPU: DEVICE=cpu ROUNDS=2 PATIENCE=9.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
mkdir -p "$OUT"
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=0

has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

run() { # a name for the log, seconds at most, a command
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  echo "== $name"
  timeout $((limit * ${PATIENCE:-1})) "$@" 2>&1 | tee "$OUT/$name.log" | tail -n "${LINES_SHOWN:-15}"
  local status=${PIPESTATUS[0]}
  echo "== $name: exit $status after $((SECONDS - begin)) s"
  [ "$status" = 0 ] || failed=1
}

check() { # a name for the log, seconds at most, pytest's arguments
  # A warning of a library that is newer here than where the tests are usually run says nothing of a kernel.
  local name=$1 limit=$2 options=(-q -p no:cacheprovider -p no:benchmark -W default --tb=short)
  options+=(-o "addopts=--strict-markers --import-mode=importlib -ra")
  shift 2
  # A test that hangs, as one that waits for a broken device, must not take the others' time.
  if has pytest_timeout; then options+=(-o timeout=120); fi
  if has xdist; then options+=(-n "${WORKERS:-8}"); fi
  LINES_SHOWN=60 run "$name" "$limit" "$PYTHON" -m pytest "${options[@]}" "$@"
}

benchmark() { # a script, seconds at most, its arguments
  local name=$1 limit=$2
  shift 2
  run "$name" "$limit" "$PYTHON" "benchmarks/$name.py" --device "${DEVICE:-cuda}" --output "$OUT" "$@"
}

case "${1:-}" in
tests)
  "$PYTHON" -c 'import torch; print(torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())'
  # Only files that are marked, so that no test needs a package that only others of them do.
  mapfile -t marked < <(grep -rlE 'mark\.cuda|DEVICES|\bdevice\b' tests --include='test_*.py' |
    grep -vE 'tests/(cli|report|doctor|checkpoints|recipes|training)/|test_formats|test_examples')
  check cuda 240 -m cuda "${marked[@]}"
  check quick 220 -m 'not slow and not cuda' tests/scaler tests/gradients tests/half tests/undo tests/captured
  ;;
speed)
  benchmark step 160 --rounds "${ROUNDS:-51}"
  benchmark clip 200 --rounds "${ROUNDS:-51}"
  benchmark widen 120 --rounds "${ROUNDS:-51}"
  ;;
cost)
  benchmark memory 120 --rounds "${ROUNDS:-15}"
  benchmark layerwise 180 --rounds "${ROUNDS:-15}" --nodes 100 1000
  benchmark watch 120 --rounds "${ROUNDS:-25}"
  benchmark recorder 100 --rounds "${ROUNDS:-41}"
  ;;
*)
  sed -n '2,13s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
exit "$failed"

#!/usr/bin/env bash
# What a GPU is needed for, in stages that each end within ten minutes; from the tree, nothing is installed.
#
#     OUT=folder benchmarks/on_gpu.sh STAGE
#
# tests     all tests marked `cuda`, then the quick ones of the parts that have paths of their own there
# speed     step.py, clip.py, widen.py
# cost      memory.py, layerwise.py, layerwise_compiled.py
# watching  watch.py, recorder.py, injected.py
# real      real_size.py: ResNet-50, GPT-2 and a U-Net at real size, for MINUTES (8) at most
# compiled  the same under torch.compile, three ways to train
#
# Results and a log for each stage go to $OUT (default: build/gpu); copy the .md, .json and .jsonl to benchmarks/results. A
# benchmark whose .json lies in $OUT is not run again; `real` and `compiled` go on where the .jsonl in $OUT or benchmarks/results
# ends, and exit with 3 if there is more to do. A benchmark that fails does not keep the others from running; the exit status
# tells. PYTHON names the interpreter; it needs torch for CUDA, for `tests` pytest and hypothesis too, and uses pytest-xdist and
# pytest-timeout where they are. To try it without a GPU: DEVICE=cpu ROUNDS=2 PATIENCE=9.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
DEVICE=${DEVICE:-cuda}
STAGE=${1:-}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=0

has() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

need() { # a package, and who needs it
  has "$1" || { echo "$PYTHON has no $1, which $2 needs. Name another Python: PYTHON=… $0 $STAGE" >&2; exit 2; }
}

run() { # a name for the log, seconds at most, a command
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  echo "== $name"
  timeout $((limit * ${PATIENCE:-1})) "$@" 2>&1 | tee -a "$OUT/$STAGE.log" | tail -n "${LINES_SHOWN:-15}"
  local status=${PIPESTATUS[0]}
  echo "== $name: exit $status after $((SECONDS - begin)) s"
  [ "$status" = 0 ] || failed=$status
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
  if [ -e "$OUT/$name-$DEVICE.json" ] || [ -e "$OUT/${name}_$DEVICE.json" ]; then
    echo "== $name: its result lies in $OUT"
    return
  fi
  run "$name" "$limit" "$PYTHON" "benchmarks/$name.py" --device "$DEVICE" --output "$OUT" "$@"
}

real() { # real_size.py's arguments
  local minutes=${MINUTES:-8} tiny=()
  [ "$DEVICE" = cuda ] || tiny=(--tiny --steps 12)
  LINES_SHOWN=60 run real_size $((60 * minutes + 90)) "$PYTHON" benchmarks/real_size.py --device "$DEVICE" \
    --output "$OUT" --rounds "${ROUNDS:-11}" --minutes "$minutes" "${tiny[@]}" "$@"
}

case "$STAGE" in
tests | speed | cost | watching | real | compiled) ;;
*)
  sed -n '2,18s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
need torch 'everything here'
if [ "$DEVICE" = cuda ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "No GPU that torch can use, so nothing was run. To try the script without one: DEVICE=cpu ROUNDS=2 PATIENCE=9 $0 $STAGE" >&2
  exit 2
fi
mkdir -p "$OUT"

case "$STAGE" in
tests)
  need pytest 'the stage `tests`'
  need hypothesis 'the stage `tests`'
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
  benchmark layerwise_compiled 260 --rounds "${ROUNDS:-15}"
  ;;
watching)
  benchmark watch 120 --rounds "${ROUNDS:-25}"
  benchmark recorder 100 --rounds "${ROUNDS:-41}"
  benchmark injected 120 --rounds "${ROUNDS:-21}"
  ;;
real) real ;;
compiled) real --compile --ways "fp16, torch's scaler" 'fp16, gradscale' 'fp16, layerwise' ;;
esac
exit "$failed"

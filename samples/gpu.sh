#!/usr/bin/env bash
# The first minutes on a GPU, in one call: is it right, what is the machine, where does the time go, which choices pay, a run from
# files, and then the benchmarks with random weights (no hub, no network). Every part has its own time limit and its own JSON in the
# folder given (samples/results if none), and none stops the next. The exit status is 1 if any part failed.
#   PYTHON=python3 samples/gpu.sh [FOLDER] [PART...]
#   CHECKPOINT=FOLDER IMAGES=FOLDER samples/gpu.sh   the part `files` captions these images with this model, in place of the samples
#   DEVICE=cpu samples/gpu.sh FOLDER [PART...]      a dry run on the tiny model: every part's path, no figures that mean anything
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-}
[ -n "$python" ] || { [ -x .venv/bin/python ] && python=.venv/bin/python || python=python3; }
device=${DEVICE:-cuda}
folder=${1:-samples/results}
shift || true
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests machine profile choices files small-card table4 floor ladder methods counts)
mkdir -p "$folder"
failed=0

if [ "$device" = cuda ]; then
  "$python" -c 'import sys, torch; sys.exit("no CUDA device here" if not torch.cuda.is_available() else 0)' || exit 2
  size=(--model llava-1.5-7b)
  run=()
  fast=(--rounds 3)
else
  size=(--model tiny --image 90x84 --keep 4 --batch 1 2 --rounds 1)
  run=(--samples 4 --new-tokens 2 --batch-size 2 --workers 1)
  fast=(--rounds 1)
  SECONDS_EACH=${SECONDS_EACH:-540}  # a CPU with other work is slow
fi

# within SECONDS COMMAND...: a command that takes too long is stopped, what it wrote until then stays, and the next part begins.
within() {
  local seconds=${SECONDS_EACH:-$1} status=0
  shift
  timeout --signal=INT --kill-after=30 "$seconds" "$@" || status=$?
  [ $status -eq 0 ] || { echo "failed with status $status: $*" >&2; failed=1; }
}
first() {
  local seconds=$1 part=$2 file=$3
  shift 3
  within "$seconds" "$python" -m trimtok_cli.bench.first_minutes "$part" --device "$device" "${size[@]}" --out "$folder/$file.json" "$@"
}
preset() {
  local seconds=$1 name=$2 from=$2
  shift 2
  [ "$device" = cuda ] || from=smoke
  within "$seconds" "$python" -m trimtok_cli bench "$from" --random-weights --device "$device" --out "$folder/$name" --overwrite "$@"
}

# caption: the command itself, from files to answers; beside it what the card is at, second by second.
caption() {
  local watcher=
  if [ "$device" = cuda ] && command -v nvidia-smi >/dev/null; then
    nvidia-smi dmon -s pucm -o T >"$folder/dmon.txt" 2>&1 &
    watcher=$!
  fi
  within 180 "$python" -m trimtok_cli caption "${IMAGES:-samples/images}" --model "${CHECKPOINT:-samples/demo/model}" \
    --device "$device" --keep 64 --batch-size auto --overwrite --out "$folder/caption"
  [ -z "$watcher" ] || kill "$watcher"
}

for part in "${parts[@]}"; do
  echo "== $part"
  case "$part" in
    tests) within 240 "$python" -m pytest -q -m gpu ${TESTS:-} --junitxml="$folder/tests.xml" ;;
    machine) first 60 machine machine ;;
    profile) first 150 profile profile ;;
    choices) first 540 choices choices ${run[@]+"${run[@]}"} ${VARIANTS:+--variants "$VARIANTS"} ;;
    files)
      first 180 files files ${run[@]+"${run[@]}"}
      caption
      ;;
    small-card) first 240 files small-card ${run[@]+"${run[@]}"} --fraction 0.3 ;;  # 24 of 80 GB
    table4) preset 300 table4 "${fast[@]}" ;;
    floor) preset 120 floor ;;
    ladder | methods) preset 540 "$part" ;;
    counts) within 540 "$python" -m trimtok_cli bench "${COUNTS:-counts}" --device "$device" --out "$folder/counts-here" --overwrite ;;
    *) echo "no such part: $part" >&2; failed=1 ;;
  esac
done
exit $failed

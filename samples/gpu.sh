#!/usr/bin/env bash
# Everything that needs a CUDA device, in one call: the tests marked gpu (the pruners' kernels against their reference, recorded
# decode steps against generate), then the benchmarks with random weights (no hub, no network). Their bench.json and plots go to samples/results or the folder given.
#   PYTHON=python3 samples/gpu.sh [FOLDER] [PRESET...]
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=${1:-samples/results}
shift || true
presets=("$@")
[ ${#presets[@]} -gt 0 ] || presets=(table4 ladder methods)
failed=0
"$python" -c 'import sys, torch; sys.exit("no CUDA device here" if not torch.cuda.is_available() else 0)' || exit 2
"$python" -m pytest -m gpu || failed=1
for preset in "${presets[@]}"; do
  # A preset that takes too long is stopped; what it measured until then is in its file.
  timeout --signal=INT --kill-after=30 "${SECONDS_EACH:-540}" "$python" -m trimtok_cli bench "$preset" --random-weights --device cuda \
    --out "$folder/$preset" --overwrite || failed=1
done
exit $failed

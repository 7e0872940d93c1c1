#!/usr/bin/env bash
# Runs an experiment in a virtual environment of its own, made on first use.
#
#   ./launch.sh                      train, compress and pack a CNN and an LSTM on real digits
#   ./launch.sh train --help         any script of experiments/, with its flags
#   ./launch.sh test [pytest flags]  the test suite
#
# LEPTON_PLATFORM=cpu|cuda|tpu chooses the JAX to install and use; unset, it is detected.
# LEPTON_VENV is the environment's folder (default: .venv beside this script).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${LEPTON_VENV:-$root/.venv}

detect_platform() {
  if [ -e /dev/nvidiactl ] || command -v nvidia-smi >/dev/null 2>&1; then echo cuda
  elif [ -e /dev/accel0 ] || [ -n "${TPU_NAME:-}${TPU_WORKER_ID:-}" ]; then echo tpu
  else echo cpu; fi
}

platform=${LEPTON_PLATFORM:-$(detect_platform)}
case $platform in
  cpu) extra='' ;;
  cuda) extra='jax[cuda13]' ;;
  tpu) extra='jax[tpu] etils[epath-gcs]' ;;
  *) echo "error: LEPTON_PLATFORM=$platform: allowed are cpu, cuda, tpu" >&2; exit 1 ;;
esac

find_python() {
  for name in python3.12 python3.11 python3.13 python3.14 python3 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo "$name"; return; fi
  done
  echo "error: no Python >= 3.11 on the PATH; install one, or uv (https://docs.astral.sh/uv)" >&2
  return 1
}

make_environment() {
  if command -v uv >/dev/null 2>&1; then uv venv --quiet --python '>=3.11' "$venv"; return; fi
  local python; python=$(find_python)
  "$python" -m venv "$venv"
}

# packages ARGUMENTS...: what pip would install.
packages() {
  if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python "$venv/bin/python" "$@"
  else "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; fi
}

# PyTorch comes with several GB of CUDA's libraries, but for the build of its own index for CPUs.
# Nothing else is taken from there, and where it cannot be reached PyTorch comes as all else does.
torch_without_cuda() {
  local index=https://download.pytorch.org/whl/cpu
  local torch; torch=$(grep -o '^torch[^ ]*' "$root/requirements-bench.txt")
  packages --no-deps --index-url "$index" "$torch" ||
    echo "no PyTorch from $index: installing that of the package index" >&2
}

# install STAMP REQUIREMENTS...: once per content of the requirement files and platform.
install() {
  local name=$1 stamp="$venv/.lepton-$1-$platform"; shift
  local wanted; wanted=$(cat "$root"/requirements*.txt "$root/pyproject.toml" && echo "$root")
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
  echo "installing into $venv for $platform" >&2
  [ -x "$venv/bin/python" ] || make_environment >&2
  case $name-$platform in bench-cpu) torch_without_cuda >&2 ;; esac
  packages "$@" $extra -e "$root" >&2
  printf '%s\n' "$wanted" >"$stamp"
}

experiments() {
  (cd "$root/experiments" && printf '%s ' [a-z]*.py papers | sed 's/\.py//g')
  (cd "$root/experiments/papers" && printf 'papers.%s ' [a-z]*.py | sed 's/\.py//g')
}

command=${1:-}
case $command in
  '' | -*) command=quickstart ;;
  *) shift ;;
esac

script="$root/experiments/${command/.//}"
if [ "$command" != test ] && [ ! -f "$script.py" ] && [ ! -f "$script/__main__.py" ]; then
  echo "error: no experiment '$command'; there are: $(experiments)and test" >&2
  exit 1
fi

case $platform in
  cpu) export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} ;;
  cuda) export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} ;;
esac

if [ "$command" = test ]; then
  install dev -r "$root/requirements-dev.txt"
  cd "$root"
  exec "$venv/bin/python" -m pytest "$@"
fi
case $command in
  benchmark|hourly_demand|smallest_files) install bench -r "$root/requirements-bench.txt" ;;  # peers to time, data to forecast
  export|measure|runtimes|select|serve|service_load) install deploy -r "$root/requirements-deploy.txt" ;;  # other runtimes
  *) install run -r "$root/requirements.txt" ;;
esac
case " $* " in *' --executor=ray '*) install ray -r "$root/requirements-ray.txt" ;; esac
exec "$venv/bin/python" -m "experiments.$command" "$@"

#!/usr/bin/env bash
# A virtual environment with Python >= 3.11, installing Debian's python3-venv where it is missing.
set -euo pipefail
python=$1 venv=$2

# sudo drops the environment: without these, packages may ask questions in the middle
quiet=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a)
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "${quiet[@]}" "$@"; elif command -v sudo >/dev/null; then sudo "${quiet[@]}" "$@"; else return 1; fi
}

if ! command -v "$python" >/dev/null || ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "installing python3 and python3-venv ..."
  { as_root apt-get update -qq && as_root apt-get install -y -qq --no-install-recommends python3 python3-venv; } ||
    { echo "error: please install the packages python3 and python3-venv (no root and no sudo here)" >&2; exit 1; }
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "error: Python 3.11 or newer is needed, $("$python" --version) found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
"$python" -m venv "$venv"

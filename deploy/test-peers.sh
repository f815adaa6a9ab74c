#!/usr/bin/env bash
# Installs the Debian packages that the tests talk to; without root and sudo it says which are missing and goes on
# (the tests that need them then skip and say so).
set -uo pipefail

declare -A needed=([storescu]=dcmtk [dciodvfy]=dicom3tools [Orthanc]=orthanc [pg_ctlcluster]=postgresql)
missing=()
for program in "${!needed[@]}"; do
  command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || missing+=("${needed[$program]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else return 1; fi; }
echo "installing ${missing[*]} ..."
export DEBIAN_FRONTEND=noninteractive
if as_root apt-get update -qq && as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then exit 0; fi
echo "warning: could not install: ${missing[*]} - install them as root to run every test" >&2

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

# sudo drops the environment: without these, packages may ask questions in the middle
quiet=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a)
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "${quiet[@]}" "$@"; elif command -v sudo >/dev/null; then sudo "${quiet[@]}" "$@"; else return 1; fi
}
echo "installing ${missing[*]} ..."
if as_root apt-get update -qq && as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then exit 0; fi
echo "warning: could not install: ${missing[*]} - install them as root to run every test" >&2

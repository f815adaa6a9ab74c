#!/usr/bin/env bash
# Installs the Debian packages that the tests talk to, and fetches OHIF; without root and sudo it says what is missing and
# goes on (the tests that need it then skip and say so).
set -uo pipefail

# sudo drops the environment: without these, packages may ask questions in the middle
quiet=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a)
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "${quiet[@]}" "$@"; elif command -v sudo >/dev/null; then sudo "${quiet[@]}" "$@"; else return 1; fi
}

# package=program or file that it brings
install() {
  local missing=() pair
  for pair in "$@"; do
    command -v "${pair#*=}" >/dev/null || [ -e "${pair#*=}" ] || missing+=("${pair%%=*}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  echo "installing ${missing[*]} ..."
  if as_root apt-get update -qq && as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then return; fi
  echo "warning: could not install: ${missing[*]} - install them as root to run every test" >&2
}

install dcmtk=storescu dicom3tools=dciodvfy orthanc=/usr/sbin/Orthanc postgresql=pg_ctlcluster \
  sqlite3=sqlite3 rsync=rsync
# the viewer's tests by themselves: where a distribution has no such browser, the others still get their peers
install orthanc-dicomweb=/usr/share/orthanc/plugins/libOrthancDicomWeb.so chromium=chromium npm=npm
"$(dirname "$0")/fetch-ohif.sh" || echo "warning: could not fetch OHIF - the tests of tests/browser will skip" >&2

#!/usr/bin/env bash
# Extracts the site in OHIF's npm package to FOLDER: fetch-ohif.sh [FOLDER]. No code of the package is run.
# FOLDER defaults to the place where the tests look. The container and the tests use one version, pinned by its hash.
set -euo pipefail

version=3.13.2
sha512=5997719a9986eeba85816f5924b71b82bdd70ad2e2d4a0cd3e831a798e4f3deea3e06e1f8c48e393271933a0ba664d85f3b04ac457e9abe8dde715d907d13c10
folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/dicom-node-tests/ohif-$version}
[ -f "$folder/index.html" ] && exit 0

mkdir -p "$(dirname "$folder")"
part=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$part"' EXIT
(cd "$part" && npm pack --silent --ignore-scripts "@ohif/app@$version" >/dev/null)
echo "$sha512  $part/ohif-app-$version.tgz" | sha512sum --check --quiet
# two folders that are not used here make up three quarters of it
tar -xzf "$part/ohif-app-$version.tgz" -C "$part" --exclude=package/dist/ort --exclude=package/dist/dicom-microscopy-viewer package/dist
mv "$part/package/dist" "$folder"

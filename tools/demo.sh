#!/bin/sh
# The main job on a fresh Debian 12: install sockscope, start a faulty server, diagnose it.
# Usage: tools/demo.sh [SLUG] [options of `sockscope demo`]
. "$(dirname "$0")/common.sh"
environment .
as_root .venv/bin/sockscope demo "$@"

#!/bin/sh
# Everything that must pass, on a fresh Debian 12: lint, types, import contracts, tests (as root: they trace).
# Usage: tools/test.sh [pytest arguments]
. "$(dirname "$0")/common.sh"
debian gcc libc6-dev iproute2 libbpf1 nginx redis-server haproxy apache2-bin lighttpd \
    uwsgi-core uwsgi-plugin-python3 nodejs postgresql wrk curl redis-tools tcpdump tshark chromium
environment -e '.[dev]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
.venv/bin/mypy
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet --site-dir build/site
as_root .venv/bin/python -m pytest "$@"

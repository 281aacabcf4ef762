#!/bin/sh
# Everything that must pass, on a fresh Debian 12: lint, types, import contracts, tests (as root: they trace).
# Usage: tools/test.sh [pytest arguments]
. "$(dirname "$0")/common.sh"
debian gcc libc6-dev iproute2 net-tools libbpf1 nginx redis-server haproxy apache2-bin lighttpd \
    uwsgi-core uwsgi-plugin-python3 nodejs postgresql wrk curl redis-tools tcpdump tshark strace chromium
environment -e '.[dev]'
tools/trace-processor.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports

# Compiled modules go to build/, also where the environment wants none kept: each command of the tests loads them.
# numpy's linear algebra would start a thread a CPU in each of them, which spins for a while.
# What a shell starts in the background ignores Ctrl-C; what the tests start must not.
tests() {
    as_root env --default-signal=INT,QUIT -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX="$PWD/build/pycache" \
        OPENBLAS_NUM_THREADS=1 .venv/bin/python -m pytest "$@"
}
still() {
    .venv/bin/mypy && NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet --site-dir build/site
}

if [ $# -gt 0 ]; then
    still
    tests "$@"
    exit
fi

# Live tests mostly wait, all others compute: side by side they take the time of one. What is said of the latter
# comes when the live ones are through.
as_root true
mkdir -p build
(still && tests -p no:cacheprovider --ignore=tests/live) >build/beside.log 2>&1 &
beside=$!
trap 'kill $beside 2>/dev/null || :' EXIT
failed=0
tests tests/live || failed=$?
wait $beside || failed=$?
cat build/beside.log
exit $failed

# Shared by tools/demo.sh and tools/test.sh: root where needed, Debian packages, the virtual environment.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" = 0 ]; then as_root() { "$@"; }; else as_root() { sudo "$@"; }; fi

# debian PACKAGE...: install what is missing; apt is not touched where nothing is.
debian() {
    missing=""
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
    done
    [ -z "$missing" ] && return 0
    echo "installing Debian packages:$missing"
    as_root apt-get update -qq
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# environment SPEC: a virtual environment in .venv holding this checkout as SPEC says (".", ".[dev]").
environment() {
    python=python3
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python=python3.11
    "$python" -c 'import venv, ensurepip' 2>/dev/null || debian python3 python3-venv
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

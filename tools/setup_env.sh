#!/usr/bin/env bash
# Makes .venv with torch, Detectron2 and eql_d2 in it. `make train` and `make test` run this first; once it has run, the
# next runs only check.
#
#   tools/setup_env.sh             set up what is missing
#   tools/setup_env.sh --dry-run   print what that would be; change nothing
#
# VENV        the environment to make or complete (default .venv). One of your own is added to, never removed.
# PYTHON      the Python to make it from (default python3). If that one has torch, torchvision and detectron2 already,
#             they are used as they are and nothing of the kind is downloaded.
# DETECTRON2  what to give pip for Detectron2, such as git+https://... or a folder (it is built against torch here).
#             "pinned" is the wheel of requirements/detectron2.txt: the default where no Detectron2 is found.
# PYTHON and DETECTRON2 are remembered in VENV: give them once.
#
# Two small files in VENV tell one run about another. MARKER ("owner stage outcome") is there while a set-up is at work;
# STAMP says what the last complete one was asked for. A run that is killed leaves its MARKER: what we made is then made
# anew, since nobody knows what is half-written, and in a person's own environment the stage is installed over itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
VENV=${VENV%/}
PYTHON=${PYTHON:-}
DETECTRON2=${DETECTRON2:-}
readonly VENV MARKER=$VENV/.eql_d2-unfinished STAMP=$VENV/.eql_d2-stamp NUMPY=$VENV/.eql_d2-numpy.txt
readonly LOG=$VENV-setup.log LOCK=$VENV-setup.lock TRASH=$VENV.eql_d2-trash
DRY_RUN=

say() { printf 'eql_d2 set-up: %s\n' "$*"; }
die() { printf 'eql_d2 set-up: error: %s\n' "$*" >&2; exit 1; }

# --- Questions -------------------------------------------------------------------------------------------------------

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

# real_python PYTHON: its full path. Inside VENV (an activated one) it is the Python VENV was made from, for VENV may go.
real_python() {
    "$1" - "$VENV" <<'EOF'
import os, sys
inside = os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1])
path = sys._base_executable if inside else sys.executable
versioned = os.path.join(os.path.dirname(path), "python%d.%d" % sys.version_info[:2])
print(versioned if os.path.exists(versioned) else path)  # python3 and python3.11 are one
EOF
}

# sees PYTHON MODULE...: does it find them all? Found, not imported (torch takes seconds); a mere folder does not count.
sees() {
    "$1" - "${@:2}" <<'EOF' 2>/dev/null
import sys
from importlib.util import find_spec
sys.path = [p for p in sys.path if p]  # not the folder we are in
sys.exit(not all(spec and spec.origin for spec in map(find_spec, sys.argv[1:])))
EOF
}

recorded() { [ ! -f "$STAMP" ] || sed -n "s/^$1=//p" "$STAMP"; }

# Notices edits; it is not for security, and cksum is everywhere.
checksum() { cat "$@" | cksum; }

# What this run asks for, as STAMP would hold it.
wanted() {
    printf 'owner=%s\npython=%s\ndetectron2=%s\n' "$OWNER" "$PYTHON" "$DETECTRON2"
    printf 'detectron2_files=%s\n' "$(checksum requirements/detectron2*.txt)"
    printf 'files=%s\n' "$(checksum requirements/*.txt setup.py pyproject.toml)"
    printf 'folder=%s\n' "$PWD"  # the editable install points here: a clone that was moved or copied needs another
}

# --- Decisions -------------------------------------------------------------------------------------------------------

find_python() {
    local candidate
    [ -z "$PYTHON" ] || new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.10 or newer"
    for candidate in "$PYTHON" "$(recorded python)" python3 python3.13 python3.12 python3.11 python3.10; do
        if [ -n "$candidate" ] && new_enough "$candidate"; then
            PYTHON=$(real_python "$candidate")
            return
        fi
    done
    die "no Python 3.10 or newer found: install one, or name it with PYTHON=/path/to/python3"
}

# Sets OWNER (made: by us; user), WIPE (why VENV is to be made anew, or empty) and REDO (a stage to install over itself).
inspect_venv() {
    local stage outcome
    OWNER=made WIPE='' REDO=''
    if [ -f "$MARKER" ]; then
        read -r OWNER stage outcome <"$MARKER" || true
        case $OWNER-$outcome-$stage in
            # pip failed by itself and cleaned up: no need to fetch torch again.
            user-* | made-failed-detectron2 | made-failed-eql_d2) REDO=$stage ;;
            made-*) WIPE="its last set-up did not finish (stage: $stage)" ;;
            *) OWNER=user ;;  # unreadable: take no risk with what may be a person's own
        esac
    elif [ -f "$STAMP" ]; then
        OWNER=$(recorded owner)
    elif [ -x "$VENV/bin/python" ]; then
        OWNER=user
    elif [ -e "$VENV" ] && [ -n "$(find "$VENV" -mindepth 1 -maxdepth 1 ! -name '.eql_d2-*')" ]; then
        die "$VENV exists but is no virtual environment: move it away, or choose another with VENV=..."
    fi
    if [ "$OWNER" = user ]; then
        new_enough "$VENV/bin/python" || die "$VENV, which you made, has no working Python 3.10 or newer: repair or remove it"
        PYTHON=$VENV/bin/python
    elif [ -z "$WIPE$REDO" ] && [ -f "$STAMP" ]; then
        if ! new_enough "$VENV/bin/python"; then WIPE='its Python no longer starts'
        elif [ "$(recorded python)" != "$PYTHON" ]; then WIPE="it was made from $(recorded python), not $PYTHON"
        elif ! sees "$VENV/bin/python" torch torchvision detectron2; then WIPE='torch or detectron2 is gone from it'; fi
    fi
}

# Settles DETECTRON2: found (in VENV, a person's own), linked (in PYTHON's environment), pinned, or what pip is given.
choose_detectron2() {
    local all=(torch torchvision detectron2)
    [ -n "$DETECTRON2" ] || [ -n "$WIPE" ] || DETECTRON2=$(recorded detectron2)
    if [ "$OWNER" = made ] && [ -z "$WIPE" ] && [ "$(recorded detectron2)" = linked ] && [ "$DETECTRON2" != linked ]; then
        WIPE="it uses the Detectron2 of $PYTHON, not $DETECTRON2"
    fi
    [ -z "$DETECTRON2" ] || [ "$DETECTRON2" = found ] || return 0
    if [ "$OWNER" = user ] && [ "$REDO" != torch ] && [ "$REDO" != detectron2 ] && sees "$VENV/bin/python" "${all[@]}"; then
        DETECTRON2=found
    elif [ "$OWNER" = made ] && sees "$PYTHON" "${all[@]}"; then
        DETECTRON2=linked
    else
        DETECTRON2=pinned
    fi
}

complete() {
    [ ! -f "$MARKER" ] && [ -f "$STAMP" ] && [ -z "$WIPE" ] && [ "$(cat "$STAMP")" = "$(wanted)" ] &&
        sees "$VENV/bin/python" torch torchvision detectron2 eql_d2
}

# --- Stages ----------------------------------------------------------------------------------------------------------

# Whole or not at all: a reader never meets half a line. Inside VENV, so that it goes where VENV goes.
mark() { printf '%s\n' "$OWNER $1 $2" >"$MARKER.new" && mv -f "$MARKER.new" "$MARKER"; }

stage() {  # stage NUMBER NAME WHAT: the start of a stage
    STAGE=$2
    say "[$1/4] $3"
    [ -n "$DRY_RUN" ] || mark "$STAGE" running
}

failed() {  # the end of the run, with the log's last error
    local cause
    cause=$(grep -E '^ *(ERROR|error|[A-Za-z]*Error):' "$LOG" | tail -n 1 | sed 's/^ *ERROR: *//' || true)
    mark "$STAGE" failed
    die "stage $STAGE failed${cause:+: $cause} (the log is $LOG; to retry, run the same command again)"
}

logged() {
    [ -z "$DRY_RUN" ] || return 0
    printf '\n$ %s\n' "$*" >>"$LOG"
    "$@" >>"$LOG" 2>&1 </dev/null || failed
}

pip() { logged "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

pip_install() {
    if [ "$REDO" = "$STAGE" ]; then set -- --ignore-installed "$@"; fi
    # Else torch or tensorboard may pull a newer setuptools, and OpenCV a numpy that the torch there was not built for.
    [ -n "$DRY_RUN" ] || installed_numpy >"$NUMPY"
    pip install --constraint requirements/build.txt --constraint "$NUMPY" "$@"
}

# "numpy==..." if VENV has one, as a line of a requirements file.
installed_numpy() {
    "$VENV/bin/python" - <<'EOF'
from importlib.metadata import PackageNotFoundError, version
try:
    print("numpy==" + version("numpy"))
except PackageNotFoundError:
    pass
EOF
}

site_packages() { "$VENV/bin/python" -c 'import sys; print("lib/python%d.%d/site-packages" % sys.version_info[:2])'; }

# Renamed first: a removal that is killed half-way leaves no half an environment.
wipe() {
    [ -z "$DRY_RUN" ] || return 0
    rm -rf "$TRASH"
    [ ! -e "$VENV" ] || mv "$VENV" "$TRASH"
    rm -rf "$TRASH"
}

make_venv() {
    [ -n "$DRY_RUN" ] || mkdir -p "$VENV"
    if [ "$OWNER" = user ]; then
        stage 1 venv "virtual environment: $VENV, your own, is added to"
    else
        stage 1 venv "virtual environment: $VENV, of $PYTHON"
    fi
    [ -x "$VENV/bin/python" ] || logged "$PYTHON" -m venv "$VENV"
    [ "$DETECTRON2" != linked ] || [ -n "$DRY_RUN" ] || link_parent
}

# Lets VENV see PYTHON's packages after its own, their .pth files included (which plain paths in a .pth are not).
link_parent() {
    "$PYTHON" - >"$VENV/$(site_packages)/eql_d2_parent.pth" <<'EOF'
import site
users = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
for folder in site.getsitepackages() + users:
    print(f"import site; site.addsitedir({folder!r})")
EOF
}

install_torch() {
    if [ "$DETECTRON2" = linked ] || { [ "$OWNER" = user ] && [ "$REDO" != torch ] && sees "$VENV/bin/python" torch torchvision; }; then
        stage 2 build "torch and torchvision: used as they are in $PYTHON"
        pip_install -r requirements/build.txt
        return
    fi
    if [ "$OWNER" = user ] && [ "$REDO" != torch ] && sees "$VENV/bin/python" torch; then
        die "$VENV has torch but no torchvision: install the torchvision of that torch first (or start with no $VENV)"
    fi
    stage 2 torch "torch and torchvision, $(torch_version) (the first time: 1 to 5 minutes, and 6 GB on x86_64)"
    pip_install -r requirements/torch.txt -r requirements/build.txt
}

torch_version() {
    local same='!='
    [ "$(uname -m)" != x86_64 ] || same='=='
    sed -n "s/^\(torch.*\); platform_machine $same .*/\1/p" requirements/torch.txt | paste -sd ' ' -
}

# The Detectron2 asked for is in VENV since the last complete set-up.
has_detectron2() {
    [ -z "$WIPE$REDO" ] && [ "$(recorded detectron2)" = "$DETECTRON2" ] &&
        [ "$(recorded detectron2_files)" = "$(checksum requirements/detectron2*.txt)" ]
}

install_detectron2() {
    case $DETECTRON2 in
        found | linked) stage 3 found "Detectron2: used as it is in $PYTHON" ;;
        *) if has_detectron2; then stage 3 found "Detectron2: $DETECTRON2, there already"; else fetch_detectron2; fi ;;
    esac
}

fetch_detectron2() {
    if [ "$DETECTRON2" = pinned ]; then
        stage 3 detectron2 'Detectron2, the pinned wheel, and what it needs (about 1 minute)'
    else
        stage 3 detectron2 "Detectron2 from $DETECTRON2, and what it needs (about 5 minutes of building)"
    fi
    pip_install -r requirements/detectron2-deps.txt
    # One replaces the other, which pip cannot know. A half-written one has no list of its files to remove.
    [ "$REDO" = detectron2 ] || pip uninstall --yes detectron2 sal-detectron2
    if [ "$DETECTRON2" = pinned ]; then install_pinned_wheel; else pip_install --no-build-isolation "$DETECTRON2"; fi
}

# requirements/detectron2.txt says why these flags.
install_pinned_wheel() {
    local target=''
    [ -n "$DRY_RUN" ] || target=$VENV/$(site_packages)
    pip install --no-deps --require-hashes --only-binary=:all: --python-version 3.10 --implementation cp --abi none \
        --platform any --upgrade --target "$target" -r requirements/detectron2.txt
}

install_eql_d2() {
    stage 4 eql_d2 'eql_d2, editable, with what its tests need'
    pip_install --no-build-isolation --editable '.[test]'
    logged "$VENV/bin/python" -c 'import torch, torchvision, detectron2; from detectron2.modeling import build_model'
}

finish() {
    [ -z "$DRY_RUN" ] || return 0
    wanted >"$STAMP.new"
    mv -f "$STAMP.new" "$STAMP"
    rm -f "$MARKER"
    say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s; the log is $LOG"
}

# --- Main ------------------------------------------------------------------------------------------------------------

# One set-up at a time. The lock is an open file, so it goes with its holders however they end; pip is one of them, so
# a killed set-up whose pip goes on is waited for, too. Through Python: not every system has flock(1).
take_lock() {
    exec 9>"$LOCK"
    "$PYTHON" - "$VENV" <<'EOF'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print(f"eql_d2 set-up: another set-up of {sys.argv[1]} is at work (or the pip of a killed one); waiting", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
EOF
}

usage() { sed -n '2,/^set -/{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

main() {
    case ${1:-} in
        '') ;;
        --dry-run) DRY_RUN=1 ;;
        -h | --help) usage; exit ;;
        *) die "unknown argument $1: see --help" ;;
    esac
    find_python
    [ -n "$DRY_RUN" ] || { take_lock && rm -rf "$TRASH"; }
    inspect_venv
    choose_detectron2
    if complete; then
        say "$VENV is ready (torch, Detectron2: $DETECTRON2, eql_d2)"
        exit
    fi
    if [ "$OWNER" = made ]; then
        "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
            die "$PYTHON has no venv module: install it (Debian, Ubuntu: apt install python3-venv), or use another PYTHON=..."
    fi
    [ -n "$DRY_RUN" ] || : >"$LOG"
    [ -z "$WIPE" ] || say "$VENV is removed and made anew: $WIPE"
    [ -z "$REDO" ] || say "taking up the set-up that stopped at stage $REDO"
    [ -z "$WIPE" ] || wipe
    make_venv
    install_torch
    install_detectron2
    install_eql_d2
    finish
}

main "$@"

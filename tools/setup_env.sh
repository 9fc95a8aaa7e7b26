#!/usr/bin/env bash
# Makes the environment VENV with torch, Detectron2 and eql_d2 in it; every target of the Makefile runs this first.
#
# VENV        the environment to make or complete (default .venv). One of your own is added to, never removed.
# PYTHON      the Python to make it from (default python3). If that has torch, torchvision and Detectron2, they are used.
# DETECTRON2  another Detectron2: git+https://..., a wheel, or a folder, built again when a file of it has changed.
#             "pinned" is the wheel of requirements/detectron2.txt, the default where none is found.
#
# PYTHON and DETECTRON2 are remembered. VENV/.eql_d2 has a stamp for each step that is done, with what it was made from;
# a step whose stamp says something else is done again. `at_work` is there while a step is: if it still is at the next
# start, the step was killed and nobody knows what is half-written. What is ours is then made anew; in a person's own
# environment the step is installed over itself.
set -euo pipefail
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'eql_d2 set-up: %s\n' "$*"; }
die() { say "error: $*" >&2; exit 1; }
stamp() { cat "$STAMPS/$1" 2>/dev/null || true; }
sum_of() { find "$@" \( -name .git -o -name build -o -name __pycache__ -o -name '*.egg-info' \) -prune -o -type f \
    -exec cksum {} + | sort | cksum | tr -d ' \n'; }
# Found, not imported, since torch takes seconds; a folder without __init__.py does not count.
sees() { "$1" -c 'import sys; from importlib.util import find_spec; sys.path = [p for p in sys.path if p]
sys.exit(not all(spec and spec.origin for spec in map(find_spec, sys.argv[1:])))' "${@:2}" 2>/dev/null; }

VENV=${VENV:-.venv} && VENV=${VENV%/} && PY=$VENV/bin/python STAMPS=$VENV/.eql_d2
LIBRARIES=(torch torchvision detectron2)
exec 9>"$VENV-setup.lock" # pip inherits it, so that the next set-up waits for the pip of a killed one, too
! command -v flock >/dev/null || flock -n 9 || { say "waiting for another set-up of $VENV"; flock 9; }

# ---- What is asked for, and what is there ----

OURS=$(stamp ours) KILLED=$(stamp at_work)
if [ ! -d "$STAMPS" ] && [ ! -x "$PY" ]; then
    [ -z "$(ls -A "$VENV" 2>/dev/null)" ] || die "$VENV is no virtual environment: move it, or choose another with VENV=..."
    OURS=yes
fi
[ -n "$OURS" ] || PYTHON=$PY
if [ -z "${PYTHON:-}" ]; then PYTHON=$(stamp python) && [ -x "$PYTHON" ] || PYTHON=python3; fi
# Inside of VENV, an activated one, the Python that VENV was made from; python3 and python3.11 are one.
BASE=$("$PYTHON" -c 'import os, sys; assert sys.version_info >= (3, 10)
path = sys._base_executable if os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1]) else sys.executable
versioned = os.path.join(os.path.dirname(path), "python%d.%d" % sys.version_info[:2])
print(versioned if os.path.exists(versioned) else path)' "${OURS:+$VENV}" 2>/dev/null) ||
    die "$PYTHON is not a Python 3.10 or newer: name one with PYTHON=/path/to/python3"

case ${DETECTRON2:=$(stamp source)} in
    '') # what a killed step left in a person's own environment is not theirs
        DETECTRON2=pinned
        if [ -n "$OURS" ] || [ -z "$KILLED" ] && sees "$BASE" "${LIBRARIES[@]}"; then DETECTRON2=found; fi ;;
    pinned | found | *://*) ;;
    *) GIVEN=$DETECTRON2
       DETECTRON2=$(cd "$from" && "$BASE" -c 'import os, sys; print(os.path.abspath(sys.argv[1]))' "$GIVEN")
       [ -f "$DETECTRON2/setup.py" ] || [ -f "$DETECTRON2/pyproject.toml" ] || [[ -f $DETECTRON2 && $DETECTRON2 == *.whl ]] ||
           die "DETECTRON2=$GIVEN is no folder with a setup.py, no wheel, and no address such as git+https://..." ;;
esac
FROM="$BASE$([ "$DETECTRON2" != found ] || echo ' with its packages')"
[ ! -e "$STAMPS/eql_d2" ] || sees "$PY" eql_d2 || rm "$STAMPS/eql_d2"
if [ -e "$STAMPS/detectron2" ] && ! sees "$PY" "${LIBRARIES[@]}" ||
    [[ -n $OURS && ( -n $KILLED || $(stamp venv) != "$FROM" ) ]]; then rm -f "$STAMPS"/{venv,torch,detectron2,eql_d2}; fi
mkdir -p "$STAMPS"

# ---- The steps ----

step() { # NAME, what it is made from, what it does: a function of that name, which prints pip's errors
    [ "$(stamp "$1")" != "$2" ] || return 0
    say "$3"
    AGAIN=$([ "$KILLED" != "$1" ] || echo --ignore-installed)
    echo "$1" >"$STAMPS/at_work"
    set +e
    (set -e; "$1") # not with ||, where bash forgets set -e
    local code=$?
    set -e
    [ $code = 0 ] || { rm "$STAMPS/at_work"; die "step $1 failed; the same command goes on from there"; }
    echo "$2" >"$STAMPS/$1"
    rm "$STAMPS/at_work"
}
pip() { "$PY" -m pip "$1" --quiet --disable-pip-version-check --no-input "${@:2}" </dev/null; }
# With the setuptools that Detectron2 needs, and the numpy that the torch which is there was built for.
add() { pip install $AGAIN -r requirements/build.txt $(numpy) "$@"; }
numpy() { "$PY" -c 'from importlib.metadata import version; print("numpy==" + version("numpy"))' 2>/dev/null || true; }

venv() { # what was there goes, with its stamps: moved first, so that a kill leaves no half of it
    [ -n "$OURS" ] || return 0
    mv "$VENV" "$VENV.old" && rm -rf "$VENV.old" && mkdir -p "$STAMPS"
    echo yes >"$STAMPS/ours" && echo venv >"$STAMPS/at_work"
    "$BASE" -m venv "$VENV"
    [ "$DETECTRON2" = found ] || return 0
    # It looks where BASE does, after its own packages. The path is within VENV whatever its Python says of itself.
    local site
    site=$VENV/lib/$("$BASE" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')/site-packages
    mkdir -p "$site"
    "$BASE" -c 'import site
for folder in site.getsitepackages() + [site.getusersitepackages()] * bool(site.ENABLE_USER_SITE):
    print(f"import site; site.addsitedir({folder!r})")' >"$site/eql_d2_parent.pth"
}
torch() { add $([ -n "$THEIRS" ] || echo -r requirements/torch.txt); }
detectron2() { # the new wheel is there before the old one goes
    [ "$DETECTRON2" != found ] || return 0
    add -r requirements/detectron2-deps.txt
    local folder=$STAMPS/build && rm -rf "$folder" && mkdir -p "$folder/source"
    if [ "$DETECTRON2" = pinned ]; then # requirements/detectron2.txt says why these flags
        pip download --no-deps --require-hashes --only-binary=:all: --python-version 3.10 --implementation cp --abi none \
            --platform any --dest "$folder" -r requirements/detectron2.txt
        (cd "$folder" && for wheel in *-cp310-*; do mv "$wheel" "${wheel/-cp310-/-py3-}"; done)
    elif [ -d "$DETECTRON2" ]; then # a copy of it, where the build leaves its files
        tar -C "$DETECTRON2" --exclude ./.git --exclude ./build -cf - . | tar -C "$folder/source" -xf -
        pip wheel --no-deps --no-build-isolation --wheel-dir "$folder" "$folder/source"
    else
        pip wheel --no-deps --no-build-isolation --wheel-dir "$folder" "$DETECTRON2"
    fi
    pip uninstall --yes detectron2 sal-detectron2
    pip install --no-deps "$folder"/*.whl
    rm -r "$folder"
}
eql_d2() {
    add --no-build-isolation --editable '.[test]'
    "$PY" -c 'import torch, torchvision; from detectron2.modeling import build_model'
}

THEIRS=
if [ "$DETECTRON2" = found ] || [ "$(stamp torch)" = theirs ]; then THEIRS=yes; fi
if [ -z "$OURS$(stamp torch)" ] && [ "$KILLED" != torch ] && sees "$PY" torch; then THEIRS=yes; fi
[ -z "$THEIRS" ] || sees "$BASE" torchvision || die "$BASE has torch but no torchvision: install that of this torch first"
torch_from=$([ -n "$THEIRS" ] && echo theirs || sum_of requirements/torch.txt requirements/build.txt)
built_from=$([ -e "$DETECTRON2" ] && sum_of "$DETECTRON2" || true)

step venv "$FROM" "$([ -n "$OURS" ] && echo "$VENV, made anew of $FROM" || echo "$VENV, your own, is added to")"
echo "$BASE" >"$STAMPS/python"
step torch "$torch_from" "torch and torchvision${THEIRS:+, as they are} (1 to 5 minutes where they are new)"
step detectron2 "$DETECTRON2 $(sum_of requirements/detectron2*.txt) $built_from" "Detectron2: $DETECTRON2"
echo "$DETECTRON2" >"$STAMPS/source"
step eql_d2 "$PWD $(sum_of setup.py pyproject.toml)" 'eql_d2, editable, with what its tests need'
say "$VENV is ready (Detectron2: $DETECTRON2)"

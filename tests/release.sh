#!/bin/sh
# What a release must do: wheel and sdist build, install in environments of their own, plain and with each extra, and work
# there: a command, the completion of a shell, the library. Usage: tests/release.sh PYTHON [EXTRA ...]
set -eu
cd "$(dirname "$0")/.."
PYTHON=$(command -v "$1")
case "$PYTHON" in /*) ;; *) PYTHON="$(pwd)/$PYTHON" ;; esac
shift
EXTRAS=${*:-images metrics tokenizers distributed docs}
PLACE=$(mktemp -d)
trap 'rm -rf "$PLACE"' EXIT

"$PYTHON" -m pip install --quiet --disable-pip-version-check --target "$PLACE/build" build
PYTHONPATH="$PLACE/build" "$PYTHON" -m build --outdir "$PLACE/dist" . >"$PLACE/log" 2>&1 || { cat "$PLACE/log"; exit 1; }
VERSION=$("$PYTHON" -c 'from prunecli import __version__; print(__version__)')

try() { # try NAME REQUIREMENT MODULE...: a new environment, and what must work in it
    "$PYTHON" -m venv "$PLACE/$1"
    "$PLACE/$1/bin/python" -m pip install --quiet --disable-pip-version-check "$2"
    name=$1 && shift 2
    cp sample_models/digits-cnn.onnx sample_models/digits-calib.npz "$PLACE/$name/"
    (
        cd "$PLACE/$name"
        PATH="$PLACE/$name/bin:$PATH"
        [ "$(prune --version)" = "prune $VERSION" ] || { echo "error: $name: prune --version says $(prune --version)"; exit 1; }
        prune -q structured digits-cnn.onnx --ratio 0.25 --data digits-calib.npz --no-timing >/dev/null
        prune -q magnitude digits-cnn.onnx --sparsity 50% --allocate predicted -o zeros.onnx >/dev/null
        bash -c 'prune --show-completion; :' | grep -q _PRUNE_COMPLETE || { echo "error: $name: no completion"; exit 1; }
        HOME=$PLACE/$name bash -c 'prune --install-completion; :' | grep -q "bash completion installed"
        [ "$(COMP_WORDS="prune struc" COMP_CWORD=1 _PRUNE_COMPLETE=complete_bash prune)" = structured ]
        for module in prunecli "$@"; do python -c "import $module"; done
    )
    echo "$name: installed and works"
}

for file in "$PLACE"/dist/*.whl "$PLACE"/dist/*.tar.gz; do
    case "$file" in *.whl) try wheel "$file" ;; *) try sdist "$file" ;; esac
done
for extra in $EXTRAS; do
    case "$extra" in
    images) modules=PIL ;; metrics) modules="jiwer pycocotools skimage" ;; docs) modules="mkdocs material mkdocstrings" ;; *) modules=$extra ;;
    esac
    try "$extra" "$(echo "$PLACE"/dist/*.whl)[$extra]" $modules
done

#!/bin/sh
# What `make demo` runs: look at a small trained network, zero 70 % of its weights, and measure what that costs.
set -eu
cd "$(dirname "$0")/.."
OUT=demo-output
rm -rf "$OUT" && mkdir "$OUT"

run() {
    printf '\n$ %s\n\n' "$*"
    "$@"
}

run prune inspect sample_models/digits-cnn.onnx
run prune magnitude sample_models/digits-cnn.onnx --sparsity 70% -o "$OUT/digits-70.onnx"
run prune evaluate "$OUT/digits-70.onnx" --baseline sample_models/digits-cnn.onnx --data sample_models/digits-test.npz

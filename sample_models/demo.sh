#!/bin/sh
# What `make demo` runs: a small trained network, first with zeros in it, then really smaller and faster.
set -eu
cd "$(dirname "$0")/.."
OUT=demo-output
S=sample_models
rm -rf "$OUT" && mkdir "$OUT"

say() {
    printf '\n== %s\n' "$*"
}

run() {
    printf '\n$ %s\n\n' "$*"
    "$@"
}

say "What is in the model, and what can be pruned"
run prune inspect $S/digits-cnn.onnx

say "Zero 70 % of the weights: compresses well, runs no faster"
run prune magnitude $S/digits-cnn.onnx --sparsity 70% -o $OUT/digits-70.onnx
run prune evaluate $OUT/digits-70.onnx --baseline $S/digits-cnn.onnx --data $S/digits-test.npz

say "Halve the work instead: channels leave the graph, and the result is proved"
run prune structured $S/digits-cnn.onnx --macs 0.5 --data $S/digits-calib.npz -o $OUT/digits-half.onnx

say "Train what is left for ten epochs, with the original as its teacher"
run prune finetune $OUT/digits-half.onnx --data $S/digits-train.npz --teacher $S/digits-cnn.onnx --epochs 10 -o $OUT/digits-tuned.onnx
run prune evaluate $OUT/digits-tuned.onnx --baseline $S/digits-cnn.onnx --data $S/digits-test.npz --robustness --fail-if "accuracy.drop>2%"

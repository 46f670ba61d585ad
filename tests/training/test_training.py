"""Training as a whole: it learns, keeps zeros and structure, resumes to the same result, and stops when it diverges."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import prunecli.training.checkpoint as finetune_log
from prunecli.data.options import DataOptions
from prunecli.errors import GateFailed, PruneError
from prunecli.options.training import FinetuneOptions
from prunecli.training import optimizers
from prunecli.training.checkpoint import NAME, Checkpoint, load_checkpoint, save_checkpoint
from prunecli.training.finetune import FinetuneResult, finetune, raise_if_harmful
from prunecli.training.hyperparameters import settle
from prunecli.training.trainer import PENALTIES, DivergedError, Score
from tests.tiny import few

SAMPLES = Path(__file__).parents[2] / "sample_models"
CNN, MLP = SAMPLES / "digits-cnn.onnx", SAMPLES / "digits-mlp.onnx"
TRAIN, TEST = SAMPLES / "digits-train.npz", SAMPLES / "digits-test.npz"


def pruned(source: Path, folder: Path, fraction: float = 0.8) -> Path:
    """The smallest weights of every matrix and kernel set to zero."""
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim > 1:
            array[np.abs(array) < np.quantile(np.abs(array), fraction)] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = folder / "pruned.onnx"
    onnx.save(model, path)
    return path


def tensors(path: Path) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def accuracy(path: Path, data: Path = TEST) -> float:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    with np.load(data) as file:
        name = session.get_inputs()[0].name
        scores = session.run(None, {name: file[name].astype(np.float32)})[0]
        return float((scores.argmax(1) == file["labels"]).mean())


def run(model: Path, output: Path, epochs: int = 2, **changes: Any) -> FinetuneResult:
    given: dict[str, Any] = {"batch_size": 32, "weight_decay": 0.0, "threads": 1, "data": TRAIN, **changes}
    return finetune(model, output=output, epochs=epochs, **given)


def test_a_file_that_is_not_what_was_trained_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunecli.training import finetune as module

    right = module.save

    def spoilt(file: Any, target: Path, options: Any, verify: Any) -> Any:
        def inspect(staged: Path) -> None:
            model = onnx.load(staged)
            weight = next(t for t in model.graph.initializer if len(t.dims) > 1)
            weight.CopyFrom(numpy_helper.from_array(1.05 * numpy_helper.to_array(weight), weight.name))
            onnx.save(model, staged)
            verify(staged)

        return right(file, target, options, inspect)

    monkeypatch.setattr(module, "save", spoilt)
    with pytest.raises(PruneError, match="was not stored as it should be"):
        run(MLP, tmp_path / "out.onnx", 1, keep_start="always")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("source", [CNN, MLP], ids=["cnn", "mlp"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_training_recovers_and_keeps_every_zero(source: Path, optimizer: str, tmp_path: Path) -> None:
    start, out = pruned(source, tmp_path), tmp_path / "out.onnx"
    result = run(start, out, 4, optimizer=optimizer, weight_decay=1e-4, rate={"sgd": 0.05}.get(optimizer, 3e-3))
    before, after = tensors(start), tensors(out)
    assert accuracy(out) > max(accuracy(start) + 0.05, 0.85)
    assert before.keys() == after.keys()
    changed = [name for name in before if (before[name] != after[name]).any()]
    assert all((after[name][before[name] == 0] == 0).all() for name in before if before[name].ndim > 1)
    assert len(changed) > 2 and result.score_after is not None and result.verification.kind == "exact"
    names = [[v.name for v in part] for m in (start, out) for g in [onnx.load(m).graph] for part in (g.input, g.output)]
    assert names[:2] == names[2:]


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path) -> None:
    start = pruned(MLP, tmp_path)
    files = [tmp_path / f"{i}.onnx" for i in range(3)]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        run(start, file, 1, seed=seed)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


@pytest.mark.parametrize("source", few([CNN, MLP], [1]), ids=["cnn", "mlp"])
def test_an_interrupted_run_resumes_to_the_same_result(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, folder = pruned(source, tmp_path), tmp_path / "state"
    options = {"optimizer": "adam", "mixup": 0.2}
    run(start, tmp_path / "whole.onnx", 2, **options)
    original, steps = finetune_log.Keeper.step, 0

    def interrupt(self: finetune_log.Keeper) -> None:
        nonlocal steps
        steps += 1
        if steps == 45:  # in the middle of the second epoch
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(finetune_log.Keeper, "step", interrupt)
    with pytest.raises(PruneError, match="interrupted at step 45"):
        run(start, tmp_path / "parts.onnx", 2, checkpoint=folder, **options)
    assert not (tmp_path / "parts.onnx").exists()
    monkeypatch.setattr(finetune_log.Keeper, "step", original)
    with pytest.raises(PruneError, match="holds a checkpoint already"):
        run(start, tmp_path / "parts.onnx", 2, checkpoint=folder, **options)
    with pytest.raises(PruneError, match="was made with epochs 2, this run has 3"):
        run(start, tmp_path / "parts.onnx", 3, checkpoint=folder, resume=True, **options)
    run(start, tmp_path / "parts.onnx", 2, checkpoint=folder, resume=True, **options)
    whole, parts = tensors(tmp_path / "whole.onnx"), tensors(tmp_path / "parts.onnx")
    assert all((whole[name] == parts[name]).all() for name in whole)


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    """A real signal to a real process, once its log shows that it trains; resumed it gives the bytes of a whole run."""
    log, state = tmp_path / "log.csv", tmp_path / "state"
    command = [sys.executable, "-m", "prunecli", "finetune", str(CNN), "--data", str(TRAIN), "--epochs", "6",
               "--augment", "shift", "--threads", "1", "--optimizer", "adam"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(SAMPLES.parent)}
    whole = subprocess.run([*command, "-o", tmp_path / "whole.onnx"], env=environment, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    parts = [*command, "-o", str(tmp_path / "parts.onnx"), "--checkpoint", str(state)]
    child = subprocess.Popen(
        [*parts, "--log", str(log)], env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (log.exists() and len(log.read_text().splitlines()) > 2) and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 2 and "interrupted at step" in told and "--resume" in told
    assert "Traceback" not in told and not (tmp_path / "parts.onnx").exists()
    resumed = subprocess.run([*parts, "--resume"], env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "parts.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"\x80\x04pickle"])
def test_damaged_checkpoints_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(PruneError, match="not a checkpoint"):
        run(MLP, tmp_path / "out.onnx", 1, checkpoint=tmp_path, resume=True)


ARRAYS = {"values": np.arange(40, dtype=np.float32), "optimizer/first": np.zeros((3, 4), np.float32)}
STATE = {"epoch": 3, "history": [{"number": 1, "loss": 0.5}]}


def test_no_damage_to_a_checkpoint_gets_further_than_its_reading(tmp_path: Path) -> None:
    """Bytes changed, cut off or put in: it is read as it was saved, or refused in one way."""
    whole = save_checkpoint(tmp_path, Checkpoint(ARRAYS, STATE, {"model": "m"})).read_bytes()
    refused, rng = 0, np.random.default_rng(0)
    for kind in range(300):
        content = bytearray(whole)
        at = int(rng.integers(len(content)))
        if kind % 3 == 0:
            del content[at:]
        elif kind % 3 == 1:
            content[at : at + 4] = rng.bytes(4)
        else:
            content[at:at] = rng.bytes(8)
        (tmp_path / NAME).write_bytes(content)
        try:
            found = load_checkpoint(tmp_path, {"model": "m"}, ARRAYS)
        except PruneError as error:
            refused += 1
            assert "is not a checkpoint, or damaged" in error.message and "without --resume" in error.hint
        else:
            assert found.state == STATE and all((found.arrays[n] == a).all() for n, a in ARRAYS.items())
    assert refused > 150  # zip files hold bytes that nobody reads


@pytest.mark.parametrize(
    "change", [{"state": np.array("{}")}, {"values": np.zeros(40, np.float32)}, {"more": np.zeros(2)}]
)
def test_a_checkpoint_that_was_edited_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save_checkpoint(tmp_path, Checkpoint(ARRAYS, STATE, {"model": "m"}))
    with np.load(tmp_path / NAME) as file:
        np.savez(tmp_path / NAME, **{**file, **change})
    with pytest.raises(PruneError, match="or damaged"):
        load_checkpoint(tmp_path, {"model": "m"}, ARRAYS)


@pytest.mark.slow
def test_a_teacher_replaces_labels(tmp_path: Path) -> None:
    start, out = pruned(CNN, tmp_path), tmp_path / "out.onnx"
    with np.load(TRAIN) as file:
        arrays = {name: file[name] for name in file.files if name != "labels"}
    np.savez(tmp_path / "bare.npz", **arrays)
    bare = DataOptions(str(tmp_path / "bare.npz"))
    with pytest.raises(PruneError, match="has no labels"):
        run(start, out, 1, data=bare)
    run(start, out, 3, data=bare, teacher=CNN, optimizer="adam", rate=3e-3)
    assert accuracy(out) > accuracy(start) + 0.1


def test_teacher_and_labels_together(tmp_path: Path) -> None:
    start, out = pruned(CNN, tmp_path), tmp_path / "out.onnx"
    result = run(start, out, 3, teacher=CNN, optimizer="adam", rate=3e-3)
    assert accuracy(out) > accuracy(start) + 0.1 and result.epochs[0].loss != result.epochs[-1].loss


def test_divergence_is_reported_with_step_and_rate(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"diverged at step [\d,]+: the loss, .*, is \S+ at a learning rate of"):
        run(MLP, tmp_path / "out.onnx", 2, rate=1e5, clip=0.0, warmup=0.0, schedule="constant")
    assert not (tmp_path / "out.onnx").exists() or accuracy(tmp_path / "out.onnx") > 0.5


@pytest.mark.parametrize("rate", [0.0, float("nan"), float("inf")])
def test_a_learning_rate_is_a_positive_number(rate: float, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"is no positive number|out of its range|is not a number"):
        run(MLP, tmp_path / "out.onnx", 1, rate=rate)


def test_without_an_improvement_the_start_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    result = run(MLP, out, 1, rate=1e-12, keep_start="equal")
    assert result.best_epoch == 0 and result.score_before == result.score_after
    before, after = tensors(MLP), tensors(out)
    assert all((before[name] == after[name]).all() for name in before)


def size(path: Path, name: str) -> float:
    """What a penalty measures, by its definition: scales of the norms, row lengths, or absolute weights."""
    arrays = tensors(path)
    if name == "bn-l1":
        return float(
            sum(np.abs(a).sum() for n, a in arrays.items() if n.endswith("bn.weight") or ("bn" in n and "weight" in n))
        )
    if name == "group-lasso":
        return float(sum(np.linalg.norm(a.reshape(len(a), -1), axis=1).sum() for a in arrays.values() if a.ndim > 1))
    return float(sum(np.abs(a).sum() for a in arrays.values() if a.ndim > 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_shrink_what_they_are_for(name: str, tmp_path: Path) -> None:
    plain, pushed = tmp_path / "plain.onnx", tmp_path / "pushed.onnx"
    options = {"val_split": 0.0, "rate": 0.05, "clip": 0.0}
    run(CNN, plain, 2, **options)
    run(CNN, pushed, 2, regularize=name, strength={"bn-l1": 0.02}.get(name, 0.002), **options)
    assert 0 < size(pushed, name) < 0.95 * size(plain, name)


def test_a_penalty_that_applies_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="applies to no trained tensor"):
        run(MLP, tmp_path / "out.onnx", 1, regularize="bn-l1")


def test_frozen_tensors_stay(tmp_path: Path) -> None:
    names = [n for n, a in tensors(MLP).items() if a.ndim > 1]
    run(MLP, tmp_path / "out.onnx", 1, freeze=(names[0],), val_split=0.0)
    before, after = tensors(MLP), tensors(tmp_path / "out.onnx")
    assert (before[names[0]] == after[names[0]]).all() and (before[names[1]] != after[names[1]]).any()
    with pytest.raises(PruneError, match="matches nothing"):
        run(MLP, tmp_path / "other.onnx", 1, freeze=("nothing*",))


def test_a_new_head_learns_other_classes(tmp_path: Path) -> None:
    with np.load(TRAIN) as file:
        arrays = dict(file)
    odd = arrays["labels"] % 2
    np.savez(tmp_path / "odd.npz", **{**arrays, "labels": odd})
    out = tmp_path / "out.onnx"
    result = run(MLP, out, 2, data=DataOptions(str(tmp_path / "odd.npz")), reset_head=2, rate=0.05)
    assert result.score_after is not None and result.score_after > 0.9
    assert onnx.load(out).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 2
    onnx.checker.check_model(onnx.load(out), full_check=True)


BAD_LABELS = {
    "out of range": (np.full(64, 10), "hold the class 10"),
    "negative": (np.full(64, -1), "hold the class -1"),
    "too few": (np.zeros(63, int), "63 labels for 64 samples"),
    "fractions": (np.full(64, 0.5), "fit no output"),
    "NaN": (np.full(64, np.nan), "NaN"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_wrong_labels_are_refused(case: str, tmp_path: Path) -> None:
    labels, message = BAD_LABELS[case]
    with np.load(TRAIN) as file:
        arrays = {name: file[name][:64] for name in file.files}
    np.savez(tmp_path / "bad.npz", **{**arrays, "labels": labels})
    with pytest.raises(PruneError, match=message):
        run(MLP, tmp_path / "out.onnx", 1, data=DataOptions(str(tmp_path / "bad.npz")))


def test_an_operator_without_a_gradient_is_named_before_anything_runs(tmp_path: Path) -> None:
    model = onnx.load(MLP)
    last = model.graph.node[-1]
    old, last.output[0] = last.output[0], "scores"
    model.graph.node.append(helper.make_node("Det", ["scores"], [old]))
    model.graph.node[-1].op_type = "Hardmax"
    path = tmp_path / "hard.onnx"
    onnx.save(model, path)
    with pytest.raises(PruneError, match="Hardmax"):
        run(path, tmp_path / "out.onnx", 1)


def test_batch_norm_statistics_move_unless_frozen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((32, 64)).astype(np.float32),
        "v": rng.standard_normal((10, 32)).astype(np.float32),
    }
    norm = {n: np.full(32, v, np.float32) for n, v in (("g", 1), ("b", 0.1), ("m", 0.5), ("s", 2))}
    name = "pixels"
    with np.load(TRAIN) as file:
        name = next(n for n in file.files if n != "labels")
        sample = file[name][0]
    nodes = [
        helper.make_node("Flatten", [name], ["f"]), helper.make_node("Gemm", ["f", "w"], ["h"], transB=1),
        helper.make_node("BatchNormalization", ["h", "g", "b", "m", "s"], ["n"]), helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], transB=1),
    ]  # fmt: skip
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [tensor(name, 1, ["N", *sample.shape])], [tensor("y", 1, ["N", 10])],
                              [numpy_helper.from_array(a, n) for n, a in (weights | norm).items()])  # fmt: skip
    path = tmp_path / "bn.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    for mode in ("update", "frozen"):
        run(path, tmp_path / f"{mode}.onnx", 3, bn=mode, rate=0.02, optimizer="adam")
    moved, still = tensors(tmp_path / "update.onnx"), tensors(tmp_path / "frozen.onnx")
    assert (moved["m"] != norm["m"]).all() and (moved["s"] != norm["s"]).all()
    assert (still["m"] == norm["m"]).all() and (still["s"] == norm["s"]).all()
    assert all(accuracy(tmp_path / f"{mode}.onnx") > 0.6 for mode in ("update", "frozen"))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_log_has_a_row_per_epoch(suffix: str, tmp_path: Path) -> None:
    log = tmp_path / f"log.{suffix}"
    result = run(MLP, tmp_path / "out.onnx", 2, log=log)
    rows = log.read_text().splitlines()
    scores = [json.loads(r)["score"] for r in rows if "score" in json.loads(r)] if suffix == "jsonl" else []
    assert suffix == "csv" or scores == [e.score for e in result.epochs]
    assert suffix == "jsonl" or (rows[0].startswith("epoch,step,loss") and len(rows) > 3)


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    result = run(MLP, tmp_path / "out.onnx", 10, rate=1e-12, patience=2)
    assert len(result.epochs) == 2 and "stopped after epoch 2 of 10: no better score for 2 epochs" in result.notes


def too_high(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    monkeypatch.setitem(optimizers.OPTIMIZERS, "adamw", replace(optimizers.OPTIMIZERS["adamw"], rate=rate))


def test_a_default_rate_that_harms_is_lowered_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth after each epoch that ends worse than the start, from the start again; a rate that was given stays."""
    too_high(monkeypatch, 0.2)
    start = pruned(MLP, tmp_path, 0.7)
    result = run(start, tmp_path / "out.onnx", 4)
    assert result.score_after is not None and result.score_before is not None
    assert result.score_after > result.score_before and result.best_epoch > 1
    assert result.epochs[0].score < result.score_before  # type: ignore[operator]
    assert any("learning rate lowered: 0.2, 0.02" in note for note in result.notes)
    given = run(start, tmp_path / "given.onnx", 4, rate=0.2)
    assert given.epochs[1].rate > 5 * result.epochs[1].rate and not any("lowered" in note for note in given.notes)


def scored(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Held-out data on which the start has the first score, and epochs the others."""
    from prunecli.training.session import _Validation

    left = iter(scores)
    monkeypatch.setattr(_Validation, "score", lambda self, statistics: next(left))


@pytest.mark.parametrize(("scores", "asked", "kept"), [
    ((0.9, 0.9), {}, False),  # a tie is no improvement
    ((Score.of(0.9, -0.2), Score.of(0.9, -0.1)), {}, True),  # but where what is right has become more probable
    ((Score.of(0.9, -0.1), Score.of(0.9, -0.2)), {}, False),
    ((Score.of(0.9, -0.2), Score.of(0.8, -0.1)), {"keep_start": "equal"}, False),
    ((0.9, 0.9), {"keep_start": "equal"}, True),  # as of training that follows a cut
    ((0.9, 0.8), {"keep_start": "equal"}, False),
    ((0.9, 0.8), {"keep_start": "always"}, True),
    ((0.9, 0.91), {}, True),
])  # fmt: skip
def test_what_is_no_better_than_the_start_is_not_written(
    scores: tuple[float, float], asked: Any, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, *scores)
    result = run(MLP, tmp_path / "out.onnx", 1, verify=False, **asked)
    assert (result.output is not None) == kept == (tmp_path / "out.onnx").exists()
    if not kept:
        word = "stayed at 0.9000 at best" if scores[0] == scores[1] else "fell from 0.9000 to 0.8000"
        with pytest.raises(GateFailed, match=f"accuracy {word}.*nothing was written"):
            raise_if_harmful(result)


def test_training_that_nothing_helps_stops_early_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 1.0, *([0.5] * 20))
    result = run(MLP, tmp_path / "out.onnx", 9)
    assert len(result.epochs) == 4 and result.harmful and result.output is None and not (tmp_path / "out.onnx").exists()
    assert any("stopped after epoch 4 of 9: no learning rate made it better" in note for note in result.notes)
    with pytest.raises(
        GateFailed, match=r"0.001 and below the accuracy fell from 1.0000 to 0.5000 .*nothing was written"
    ):
        raise_if_harmful(result)


def test_a_broken_gradient_does_not_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recovery asserted above fails when gradients point the other way."""
    from prunecli.training import trainer

    original = trainer.clip_norm

    def reversed_gradients(gradients: Any, limit: float) -> float:
        gradients *= -1
        return original(gradients, limit)

    monkeypatch.setattr(trainer, "clip_norm", reversed_gradients)
    start, out = pruned(CNN, tmp_path), tmp_path / "out.onnx"
    try:
        run(start, out, 4, rate=0.05)
    except DivergedError:
        return
    assert accuracy(out) <= accuracy(start) + 0.1


@pytest.mark.parametrize(("asked", "steps", "alone", "wanted"), [
    ({}, 1000, False, {"rate": 1e-3, "epochs": 5, "patience": 2, "features": 0.0, "blocks": 0.0, "augment": ()}),
    ({"optimizer": "sgd"}, 1000, True, {"rate": 0.015, "epochs": 5, "features": 1.0}),
    ({}, 7, True, {"epochs": 100, "patience": 34, "mixup": 0.0}),
    ({"rate": 0.2, "epochs": 2, "patience": 0, "features": 0, "blocks": 0}, 7, True,
     {"rate": 0.2, "epochs": 2, "patience": 0, "features": 0.0, "blocks": 0.0}),
])  # fmt: skip
def test_options_leave_the_rest_to_the_data(
    asked: dict[str, Any], steps: int, alone: bool, wanted: dict[str, Any]
) -> None:
    found = asdict(settle(FinetuneOptions(data="x.npz", **asked), steps, alone))
    assert {name: found[name] for name in wanted} == wanted


def test_labels_of_another_kind_are_not_read_beside_a_teacher(tmp_path: Path) -> None:
    with np.load(TRAIN) as file:
        np.savez(tmp_path / "boxes.npz", image=file["image"][:200], labels=np.zeros((200, 3, 5), np.float32))
    start = pruned(MLP, tmp_path, 0.7)
    found = run(start, tmp_path / "o.onnx", 1, teacher=MLP, data=tmp_path / "boxes.npz")
    assert any("labels fit no output" in note for note in found.notes) and found.score_name.startswith("signal")
    with pytest.raises(PruneError, match="fit no output"):
        run(start, tmp_path / "p.onnx", 1, data=tmp_path / "boxes.npz")


def test_a_model_that_is_its_own_teacher_is_kept(tmp_path: Path) -> None:
    """Nothing can be bettered there, which is no failure."""
    with np.load(TRAIN) as file:
        np.savez(tmp_path / "bare.npz", **{name: file[name][:200] for name in file.files if name != "labels"})
    found = run(MLP, tmp_path / "o.onnx", 1, teacher=MLP, data=tmp_path / "bare.npz")
    assert not found.harmful and found.output is not None
    assert any("nothing was left to learn" in note for note in found.notes)

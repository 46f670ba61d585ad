"""A file appears complete, verified and under its final name, or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from prunecli import files
from prunecli.errors import PruneError
from prunecli.model import Model, SaveOptions, find_weights, load, save
from prunecli.model import writing as wire
from tests.model.build import big, external, floats, info, linear, loaded, node, proto, run, save_proto

ALWAYS = SaveOptions(external_data="always", force=True)


def refused(model: Model, path: Path, words: str, options: SaveOptions | None = None) -> None:
    before = snapshot(path.parent) if path.parent.is_dir() else {}
    with pytest.raises(PruneError) as caught:
        save(model, path, options)
    assert words in caught.value.message, caught.value.message
    assert caught.value.hint
    assert not path.parent.is_dir() or snapshot(path.parent) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() if p.is_file() else b"" for p in folder.iterdir()}


# --- where to ---


def test_targets_that_are_refused(tmp_path: Path) -> None:
    model = loaded(linear(), tmp_path)
    (tmp_path / "there.onnx").write_bytes(b"precious")
    (tmp_path / "link.onnx").symlink_to(model.path)
    (tmp_path / "dangling.onnx").symlink_to(tmp_path / "nowhere")
    os.link(model.path, tmp_path / "hard.onnx")
    (tmp_path / "folder").mkdir()
    force = SaveOptions(force=True)
    refused(model, tmp_path / "there.onnx", "already exists")
    refused(model, tmp_path / "dangling.onnx", "already exists")
    for name in ("m.onnx", "link.onnx", "hard.onnx"):
        refused(model, tmp_path / name, "is the input itself", force)
    refused(model, tmp_path / "folder", "is a folder", force)
    refused(model, tmp_path / "no" / "m.onnx", "does not exist")


def test_the_inputs_data_is_not_overwritten(tmp_path: Path) -> None:
    floats(3, 4).tofile(tmp_path / "m.data")
    refused(load(external(tmp_path)), tmp_path / "m.data", "is the input itself", SaveOptions(force=True))


def test_force_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    model = loaded(linear(), tmp_path)
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out.onnx").symlink_to(tmp_path / "precious")
    save(model, tmp_path / "out.onnx", SaveOptions(force=True))
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "out.onnx").is_symlink()


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_permissions_are_those_of_any_new_file(umask: int, tmp_path: Path) -> None:
    model = loaded(big(), tmp_path)
    (tmp_path / "o").mkdir()
    old = os.umask(umask)
    try:
        save(model, tmp_path / "o" / "out.onnx", ALWAYS)
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "o").iterdir()}
    assert modes == {0o666 & ~umask}


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    model = loaded(linear(), tmp_path)
    monkeypatch.setattr(files.tempfile, "mkdtemp", denied)
    refused(model, tmp_path / "out.onnx", "Permission denied")


# --- what ---


def test_the_reference_names_the_file(tmp_path: Path) -> None:
    from prunecli.model.loading import file_sha256

    ref = save(loaded(linear(), tmp_path), tmp_path / "out.onnx")
    assert ref.path == str(tmp_path / "out.onnx")
    assert ref.sha256 == file_sha256(tmp_path / "out.onnx") == load(tmp_path / "out.onnx").sha256


def test_auto_does_what_the_input_did(tmp_path: Path) -> None:
    save(loaded(big(), tmp_path), tmp_path / "inline.onnx")
    assert load(tmp_path / "inline.onnx").data_files == ()
    save(load(tmp_path / "inline.onnx"), tmp_path / "out.onnx", SaveOptions("always"))
    (data,) = load(tmp_path / "out.onnx").data_files
    assert data.name.startswith("out.onnx.")
    assert data.stat().st_size == 64 * 64 * 4
    save(load(tmp_path / "out.onnx"), tmp_path / "again.onnx")
    assert len(load(tmp_path / "again.onnx").data_files) == 1
    save(load(tmp_path / "out.onnx"), tmp_path / "back.onnx", SaveOptions("never"))
    assert load(tmp_path / "back.onnx").data_files == ()
    x = floats(1, 64)
    outputs = [run(tmp_path / n, {"x": x})[0] for n in ("inline.onnx", "out.onnx", "again.onnx", "back.onnx")]
    assert all(np.array_equal(outputs[0], other) for other in outputs[1:])


def test_above_the_limit_auto_goes_external_and_never_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LIMIT", 64 << 20)
    model = loaded(big(), tmp_path)
    refused(model, tmp_path / "out.onnx", "a single ONNX file ends at 2 GiB", SaveOptions("never"))
    save(model, tmp_path / "out.onnx")
    assert len(load(tmp_path / "out.onnx").data_files) == 1


@pytest.mark.parametrize("n", [511, 512, 600])
def test_large_inline_tensors_are_streamed(n: int, tmp_path: Path) -> None:
    """Tensors from 1 MiB up bypass the proto; onnx reads the result, in order, with its metadata."""
    model = proto(
        [node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "w"], ["y"])],
        {"x": (1, n)},
        weights={"a": floats(n, n), "s": floats(2), "w": floats(n, n, seed=1)},
    )
    model.graph.output[0].CopyFrom(info("y", [1, n]))
    model.graph.initializer[0].doc_string = "first"
    model.graph.initializer[2].metadata_props.add(key="k", value="v")
    save(loaded(model, tmp_path), tmp_path / "out.onnx")
    result = onnx.load(str(tmp_path / "out.onnx"))
    assert result.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_large_constants_leave_the_file_too(tmp_path: Path) -> None:
    w = floats(600, 600)
    nodes = [node("Constant", [], ["w"], value=numpy_helper.from_array(w)), node("MatMul", ["x", "w"], ["y"])]
    model = loaded(proto(nodes, {"x": (1, 600)}), tmp_path)
    save(model, tmp_path / "out.onnx", ALWAYS)
    again = load(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < 2000
    find_weights(again).prunable[0].replace(lambda a: a * 2)
    save(again, tmp_path / "twice.onnx")
    x = floats(1, 600)
    assert np.array_equal(run(tmp_path / "twice.onnx", {"x": x})[0], run(tmp_path / "out.onnx", {"x": 2 * x})[0])


def test_external_types_of_any_width(tmp_path: Path) -> None:
    model = linear()
    kinds = {
        "h": TensorProto.FLOAT16,
        "b16": TensorProto.BFLOAT16,
        "i4": TensorProto.INT4,
        "f8": TensorProto.FLOAT8E5M2,
        "none": TensorProto.FLOAT,
    }
    rng = np.random.default_rng(0)
    for name, kind in kinds.items():
        rows = {"i4": 600_000, "none": 0}.get(name, 3001)  # from 1 MiB up they are streamed
        size = rows * 4 * (2 if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16) else 1)
        raw = rng.integers(0, 256, size // 2 if kind == TensorProto.INT4 else size, np.uint8).tobytes()
        model.graph.initializer.append(TensorProto(name=name, data_type=kind, dims=[rows, 4], raw_data=raw))
    before = {t.name: t.raw_data for t in model.graph.initializer}
    save(loaded(model, tmp_path), tmp_path / "out.onnx", ALWAYS)
    again = onnx.load(str(tmp_path / "out.onnx"))
    assert {t.name: t.raw_data for t in again.graph.initializer} == before
    save(load(tmp_path / "out.onnx"), tmp_path / "back.onnx", SaveOptions("never"))
    assert {t.name: t.raw_data for t in onnx.load(str(tmp_path / "back.onnx")).graph.initializer} == before


@pytest.mark.parametrize("options", [SaveOptions(), ALWAYS], ids=["inline", "external"])
def test_the_same_input_gives_the_same_bytes(options: SaveOptions, tmp_path: Path) -> None:
    path = save_proto(big(600), tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(load(path), tmp_path / name / "out.onnx", options)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = loaded(big(600), tmp_path)
    weight = find_weights(model).prunable[0]
    weight.replace(lambda a: a * 2)
    for name in ("a.onnx", "b.onnx"):
        save(model, tmp_path / name, ALWAYS)
    assert np.array_equal(weight.array(), floats(600, 600) * 2)
    names = [load(tmp_path / name).data_files[0].name for name in ("a.onnx", "b.onnx")]
    assert names[0][1:] == names[1][1:]


def test_a_wrong_replacement_writes_nothing(tmp_path: Path) -> None:
    for options in (SaveOptions(), ALWAYS):
        model = loaded(big(), tmp_path)
        find_weights(model).prunable[0].replace(lambda a: a[:3])
        refused(model, tmp_path / "out.onnx", "should become", options)


# --- checked ---


def test_an_invalid_result_is_refused(tmp_path: Path) -> None:
    model = loaded(linear(), tmp_path)
    (weight,) = find_weights(model).prunable
    weight.node.op_type = "Relu"  # which takes one input
    refused(model, tmp_path / "out.onnx", "the pruned model is invalid")


def test_new_initializers_of_an_old_model_are_valid(tmp_path: Path) -> None:
    old = linear()
    old.ir_version = 3
    old.graph.input.extend([info("w", [3, 4]), info("b", [4])])
    model = loaded(old, tmp_path)
    save(model, tmp_path / "same.onnx")
    assert onnx.load(tmp_path / "same.onnx").ir_version == 3
    assert [value.name for value in model.ir.graph.inputs] == ["x"]  # the others are constants
    extra = ir.Value(name="extra", const_value=ir.tensor(np.ones(4, np.float32), name="extra"))
    model.ir.graph.register_initializer(extra)
    save(model, tmp_path / "more.onnx")
    more = onnx.load(tmp_path / "more.onnx")
    assert more.ir_version == 3 and [i.name for i in more.graph.input] == ["x", "w", "b", "extra"]


def test_an_input_that_was_invalid_too_is_named(tmp_path: Path) -> None:
    broken = linear()
    broken.graph.ClearField("name")
    model = loaded(broken, tmp_path)
    model.ir.graph.name = "g"
    model.ir.graph[0].op_type = "Relu"
    with pytest.raises(PruneError, match="the ONNX checker rejects the result") as caught:
        save(model, tmp_path / "out.onnx")
    assert "m.onnx too: Field 'name' of 'graph'" in caught.value.hint


def test_what_cannot_be_serialised_is_refused(tmp_path: Path) -> None:
    model = loaded(linear(), tmp_path)
    model.ir.graph[0].attributes["odd"] = ir.Attr("odd", ir.AttributeType.STRING, object())
    refused(model, tmp_path / "out.onnx", "cannot be written again")


def test_what_the_checker_holds_against_the_input_is_noted(tmp_path: Path) -> None:
    broken = linear()
    broken.graph.ClearField("name")
    model = loaded(broken, tmp_path)
    save(model, tmp_path / "out.onnx")
    assert any("objects to the input" in note for note in model.notes)


def test_unknown_operators_are_fine(tmp_path: Path) -> None:
    nodes = [
        node("Private", ["x"], ["h"], domain="my"),
        node("SimplifiedLayerNormalization", ["h", "s"], ["y"]),
    ]
    model = proto(nodes, weights={"s": floats(3)}, domains=["my"])
    model.graph.output[0].CopyFrom(info("y", [2, 3]))
    result = loaded(model, tmp_path)
    save(result, tmp_path / "out.onnx")
    assert result.notes == []


def test_verify_sees_the_complete_file_and_can_stop_it(tmp_path: Path) -> None:
    model = loaded(big(), tmp_path)
    (tmp_path / "o").mkdir()
    target = tmp_path / "o" / "out.onnx"

    def fails(path: Path) -> None:
        assert run(path, {"x": floats(1, 64)})[0].shape == (1, 64)
        assert not target.exists()
        raise PruneError("does not agree", "try again")

    with pytest.raises(PruneError, match="does not agree"):
        save(model, target, ALWAYS, fails)
    assert snapshot(target.parent) == {}
    save(model, target, ALWAYS, lambda path: run(path, {"x": floats(1, 64)}))
    assert len(snapshot(target.parent)) == 2

"""Files that are no models, or not whole, or lie: one error each, with a hint, nothing large allocated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from prunecli.model import Model, load
from tests.model.build import floats, info, linear, loaded, node, proto, refused, save_proto

FILES: list[tuple[str, bytes, str, str]] = [
    ("empty.onnx", b"", "is empty", "export or download"),
    ("garbage.onnx", os.urandom(4000), "is not a", ""),
    ("zeros.onnx", bytes(4000), "is not a", ""),
    ("readme.md", b"# A text\n\nwith some words\n" * 20, "is not a", "text file"),
    ("model.json", b'{"graph": {}}', "is not a", "text file"),
    ("model.pt", b"PK\x03\x04" + bytes(100), "is not an ONNX model", "ZIP archive"),
    ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "is not an ONNX model", "HDF5"),
    ("model.pkl", b"\x80\x04\x95" + bytes(100), "is not an ONNX model", "pickle"),
    ("model.tflite", b"\x1c\0\0\0TFL3" + bytes(100), "is not an ONNX model", "TensorFlow Lite"),
    (
        "model.onnx",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "is not an",
        "git lfs pull",
    ),
    ("model.onnx.gz", b"\x1f\x8b\x08" + bytes(100), "is not an ONNX model", "unpack"),
    ("x.npy", b"\x93NUMPY\x01\x00" + bytes(100), "is not an ONNX model", "--data"),
    ("cut.onnx", linear().SerializeToString()[:-7], "is not a complete", "cut off"),
    ("other.bin", linear().SerializeToString()[:-7], "is not a complete", "give an .onnx file"),
]


@pytest.mark.parametrize(("name", "data", "words", "hint"), FILES, ids=[f[0] for f in FILES])
def test_files_that_are_no_models(name: str, data: bytes, words: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    refused(path, words, hint)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path / "missing.onnx", "does not exist")
    refused(tmp_path, "is a folder")
    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "is not a regular file")
    refused(Path("/dev/zero"), "is not a regular file")
    refused(tmp_path / "nul\0.onnx", "cannot be read")
    refused(tmp_path / ("long" * 200), "cannot be read")
    (tmp_path / "loop.onnx").symlink_to(tmp_path / "loop.onnx")
    refused(tmp_path / "loop.onnx", "cannot be read")


def test_a_file_too_large_for_onnx_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 36)
    refused(path, "end at 2 GiB")


def test_any_name_will_do_if_it_is_onnx(tmp_path: Path) -> None:
    assert isinstance(load(save_proto(linear(), tmp_path, "model.bin")), Model)


Change = Callable[[onnx.ModelProto], object]


def edit_tensor(**fields: object) -> Change:
    """Change the weight of `linear()`; None clears a field, tuples fill a repeated one."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        for name, value in fields.items():
            tensor.ClearField(name)
            if isinstance(value, tuple):
                getattr(tensor, name).extend(value)
            elif value is not None:
                setattr(tensor, name, value)

    return change


def segment(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].segment.begin = 1


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node.extend([node("Relu", ["b2"], ["a2"]), node("Relu", ["a2"], ["b2"])])


def cycle_through_branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([node("Relu", ["z"], ["i"])], "inner", [], [info("i", None)])
    model.graph.node.append(node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    model.graph.input.append(info("c", [], TensorProto.BOOL))


def function(name: str, calls: list[str]) -> onnx.FunctionProto:
    names = ["a", *(f"t{i}" for i in range(len(calls) - 1)), "o"]
    nodes = [node(c, [names[i]], [names[i + 1]], domain="local") for i, c in enumerate(calls)]
    return helper.make_function("local", name, ["a"], ["o"], nodes, [helper.make_opsetid("", 17)])


def with_functions(*functions: onnx.FunctionProto) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.functions.extend(functions)
        model.graph.node.append(node("f0", ["x"], ["called"], domain="local"))

    return change


def bomb(depth: int = 30) -> list[onnx.FunctionProto]:
    """Each function calls the next ten times: 10^30 nodes."""
    last = helper.make_function(
        "local", f"f{depth}", ["a"], ["o"], [node("Relu", ["a"], ["o"])], [helper.make_opsetid("", 17)]
    )
    return [function(f"f{i}", [f"f{i + 1}"] * 10) for i in range(depth)] + [last]


def chained(depth: int, in_loops: int = 0) -> list[onnx.FunctionProto]:
    """Each function calls the next, the last one has so many graphs in each other."""
    body = node("Relu", ["a"], ["o"])
    for _ in range(in_loops):
        body = node("Loop", ["", ""], ["o"], body=helper.make_graph([body], "g", [], []))
    last = helper.make_function("local", f"f{depth - 1}", ["a"], ["o"], [body], [helper.make_opsetid("", 17)])
    return [*(function(f"f{i}", [f"f{i + 1}"]) for i in range(depth - 1)), last]


def nested(depth: int) -> Callable[[Path], object]:
    """Subgraphs in subgraphs; written as bytes, because the protobuf library refuses to build them."""

    def field(number: int, data: bytes) -> bytes:
        size, length = bytearray(), len(data)
        while length > 127:
            size.append(length & 127 | 128)
            length >>= 7
        return bytes([number << 3 | 2]) + bytes(size) + bytes([length]) + data

    graph = b""
    for _ in range(depth):
        attribute = field(1, b"body") + field(6, graph) + bytes([20 << 3 & 127 | 128, 1, 5])
        graph = field(1, field(4, b"Loop") + field(5, attribute))
    return lambda path: path.write_bytes(path.read_bytes() + field(7, graph))


DAMAGE: list[tuple[str, Change, str]] = [
    ("no graph", lambda m: m.ClearField("graph"), "is not an ONNX model"),
    ("no version", lambda m: m.ClearField("ir_version"), "is not an ONNX model"),
    ("no opset", lambda m: m.ClearField("opset_import"), "which opset"),
    ("huge dims", edit_tensor(dims=(1 << 62, 4)), "impossible shape"),
    ("overflowing dims", edit_tensor(dims=(1 << 32, 1 << 32)), "impossible shape"),
    ("large dims", edit_tensor(dims=(1 << 20, 1 << 20)), "needs 4398046511104 bytes and has 48"),
    ("negative dims", edit_tensor(dims=(-3, -4)), "impossible shape"),
    ("many dims", edit_tensor(dims=(1,) * 100), "impossible shape"),
    ("short data", edit_tensor(raw_data=b"1234"), "needs 48 bytes and has 4"),
    ("long data", edit_tensor(raw_data=bytes(52)), "needs 48 bytes and has 52"),
    ("no data", edit_tensor(raw_data=None), "needs 12 values and has 0"),
    ("short floats", edit_tensor(raw_data=None, float_data=(1.0,) * 11), "needs 12 values and has 11"),
    ("wrong field", edit_tensor(raw_data=None, int64_data=(1,) * 12), "needs 12 values and has 0"),
    ("no type", edit_tensor(data_type=0), "unknown element type 0"),
    ("unknown type", edit_tensor(data_type=99), "unknown element type 99"),
    ("segments", segment, "segments"),
    ("external strings", edit_tensor(data_type=8, data_location=1), "strings in an external file"),
    ("unknown input", lambda m: m.graph.node[0].input.append("nope"), "reads 'nope', which nothing produces"),
    ("unknown output", rename_output, "nothing produces the output 'nowhere'"),
    ("double output", lambda m: m.graph.node.append(node("Relu", ["x"], ["y"])), "'y' is defined twice"),
    ("double input", lambda m: m.graph.input.append(m.graph.input[0]), "'x' is defined twice"),
    ("two tensors", lambda m: m.graph.initializer.add(name="b", data_type=1, dims=[0]),
     "'b' is defined twice"),
    ("output is weight", lambda m: m.graph.node.append(node("Relu", ["x"], ["w"])), "'w' is defined twice"),
    ("no operator", lambda m: m.graph.node[0].ClearField("op_type"), "has no operator"),
    ("no outputs", lambda m: m.graph.node.append(node("Relu", ["x"], [], "r")), "Relu node 'r' has no outputs"),
    ("part without a name", lambda m: m.graph.node.append(node("Split", ["x"], ["p", ""], "s")),
     "Split node 's' has an output without a name"),
    ("cycle", cycle, "in a circle"),
    ("cycle through a branch", cycle_through_branch, "in a circle"),
    ("recursive function", with_functions(function("f0", ["f1"]), function("f1", ["f0"])), "calls itself"),
    ("double function", with_functions(function("f0", ["f1"]), function("f0", ["f1"])), "is defined twice"),
    ("deep functions", with_functions(*chained(101)), "nested more than 100 deep"),
    ("deep graphs", with_functions(*chained(80, in_loops=21)), "nested more than 100 deep"),
    ("function bomb", with_functions(*bomb()), "expand to more than"),
    ("constant of another type", lambda m: m.graph.node.append(node("Constant", [], ["c"], value=[1.0])),
     "'value' of Constant node 'c' has another type"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), DAMAGE, ids=[d[0] for d in DAMAGE])
def test_damaged_models(name: str, change: Change, words: str, tmp_path: Path) -> None:
    model = linear()
    change(model)
    refused(save_proto(model, tmp_path), words)


# bytes that are no UTF-8, in place of: a node's name, a value's, a document string, a metadata value, a dimension
@pytest.mark.parametrize("text", ["a node", "value one", "a comment", "metadata", "dim one"])
def test_text_that_is_no_text_is_refused(text: str, tmp_path: Path) -> None:
    model = linear()
    model.graph.node[0].name, model.graph.doc_string = "a node", "a comment"
    model.graph.node.append(node("Relu", ["x"], ["value one"]))
    model.metadata_props.add(key="k", value="metadata")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "dim one"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString().replace(text.encode(), b"\xff" * len(text)))
    refused(path, "is not UTF-8 text")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    path = save_proto(linear(), tmp_path)
    nested(1000)(path)
    refused(path, "is not a complete ONNX model")


def test_huge_claims_allocate_nothing(tmp_path: Path) -> None:
    """Under a limit of 1 GiB of address space beyond what the imports take, a claim of 4 TiB is refused."""
    model = linear()
    edit_tensor(dims=(1 << 20, 1 << 20))(model)
    script = """
import resource, sys
import prunecli.model, prunecli.errors
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
try:
    prunecli.model.load(sys.argv[1])
except prunecli.errors.PruneError as error:
    print(error.message)
"""
    command = [sys.executable, "-c", script, str(save_proto(model, tmp_path))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "needs 4398046511104 bytes" in result.stdout


# --- what is unusual but fine ---


def test_unsorted_nodes_are_sorted_and_noted(tmp_path: Path) -> None:
    model = proto([node("Relu", ["h"], ["y"]), node("MatMul", ["x", "w"], ["h"])], weights={"w": floats(3, 4)})
    loaded_model = loaded(model, tmp_path)
    assert [n.op_type for n in loaded_model.ir.graph] == ["MatMul", "Relu"]
    assert any("sorted" in note for note in loaded_model.notes)


def test_sorted_nodes_keep_their_order(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Abs", ["x"], ["b"]),
        node("Neg", ["x"], ["c"]),
        node("Add", ["a", "c"], ["y"]),
    ]
    model = loaded(proto(nodes), tmp_path)
    assert [n.op_type for n in model.ir.graph] == ["Relu", "Abs", "Neg", "Add"]
    assert model.notes == []


def test_fields_of_a_newer_onnx_are_dropped_and_noted(tmp_path: Path) -> None:
    path = save_proto(linear(), tmp_path)
    path.write_bytes(path.read_bytes() + b"\xc0\x3e\x01")  # field 1000 is the number 1
    assert load(path).notes == ["fields that this version of ONNX does not know were dropped; is the file newer?"]


def test_the_standard_domain_goes_by_two_names(tmp_path: Path) -> None:
    model = linear()
    model.opset_import[0].domain = model.graph.node[0].domain = "ai.onnx"
    assert loaded(model, tmp_path).ir.opset_imports == {"": 17}


def test_repeated_and_unnamed_initializers_are_dropped(tmp_path: Path) -> None:
    model = linear()
    model.graph.initializer.append(model.graph.initializer[0])
    model.graph.initializer.append(numpy_helper.from_array(floats(2), ""))
    result = loaded(model, tmp_path)
    assert list(result.ir.graph.initializers) == ["w", "b"]
    assert any("2 unnamed or repeated" in note for note in result.notes)

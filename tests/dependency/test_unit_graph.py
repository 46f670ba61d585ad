"""The unit graph against graphs that are known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import prunecli
from prunecli.arrays import Array
from prunecli.dependency.unit_graph import UnitGraph, graph_of, unit_graph
from prunecli.errors import PruneError
from prunecli.inspection.report import graph_sections
from prunecli.report.document import Chart
from tests.model.build import floats, node, proto, save_proto

W1 = np.array([[3, 0, 1], [4, 1, 0]], np.float32)  # 2 inputs, 3 units
W2 = np.array([[1, 3], [3, 1], [0, 0]], np.float32)  # 3 units, 2 outputs; nothing reads the last unit


def chain(folder: Path, **weights: Array) -> Path:
    nodes = [node("MatMul", ["x", "w1"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w2"], ["y"])]
    return save_proto(proto(nodes, {"x": ("batch", 2)}, weights={"w1": W1, "w2": W2, **weights}), folder)


def residual(folder: Path) -> Path:
    """h = x A; y = (h + relu(h B) C) D."""
    nodes = [
        node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "b"], ["u"]), node("Relu", ["u"], ["r"]),
        node("MatMul", ["r", "c"], ["v"]), node("Add", ["h", "v"], ["s"]), node("MatMul", ["s", "d"], ["y"]),
    ]  # fmt: skip
    weights = {
        "a": floats(2, 4, seed=1),
        "b": floats(4, 3, seed=2),
        "c": floats(3, 4, seed=3),
        "d": floats(4, 2, seed=4),
    }
    return save_proto(proto(nodes, {"x": ("batch", 2)}, weights=weights), folder)


def dense(graph: UnitGraph) -> Array:
    return np.asarray(graph.edges.toarray())


def test_edges_are_norms_of_the_weights_between(tmp_path: Path) -> None:
    graph = unit_graph(chain(tmp_path))
    given, out = (int(graph.of_kind(kind)[0]) for kind in ("input", "output"))
    found = dense(graph)
    assert graph.units == 3 and graph.count == 5 and set(graph.names) == {"x", "y"}
    assert np.allclose(found[given, :3], [5, 1, 1]) and np.allclose(found[:3, out], [np.sqrt(10), np.sqrt(10), 0])
    found[given, :3] = found[:3, out] = 0
    assert not found.any()
    moments = graph_of(graph.catalogue, {"w2": np.array([4.0, 1.0, 1.0])})
    assert np.allclose(dense(moments)[:3, out], [2 * np.sqrt(10), np.sqrt(10), 0])


def test_a_table_is_read_by_the_units_of_its_columns(tmp_path: Path) -> None:
    table, reader = floats(7, 4), floats(4, 3, seed=1)
    nodes = [node("Gather", ["t", "x"], ["e"]), node("MatMul", ["e", "w"], ["y"])]
    model = proto(nodes, {"x": ("batch", 5)}, weights={"t": table, "w": reader})
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    graph = unit_graph(save_proto(model, tmp_path))
    found, rows, out = dense(graph), graph.units + graph.names.index("t"), graph.units + graph.names.index("y")
    assert graph.units == 4 and np.allclose(found[rows, :4], np.linalg.norm(table, axis=0))
    assert np.allclose(found[:4, out], np.linalg.norm(reader, axis=1))


def test_whole_blocks_are_no_nodes(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="whole blocks are no nodes"):
        unit_graph(chain(tmp_path), "channel,block")


@pytest.mark.parametrize("damping", [1.0, 0.85, 0.3])
def test_pagerank_by_hand(tmp_path: Path, damping: float) -> None:
    """The output reads both units alike. The input is worth what they are worth, times the damping."""
    graph = unit_graph(chain(tmp_path))
    given, out = (int(graph.of_kind(kind)[0]) for kind in ("input", "output"))
    rank = graph.importance(damping)
    unit = damping * damping / 2 + (1 - damping) / 2
    assert rank[out] == pytest.approx(damping) and np.allclose(rank[:3], [unit, unit, 0])
    assert rank[given] == pytest.approx(damping * 2 * unit) and rank[2] == 0
    preferred = graph.importance(damping, np.array([3.0, 1.0, 9.0]))
    assert np.allclose(preferred[:3] - rank[:3], (1 - damping) * np.array([0.25, -0.25, 0]))


@pytest.mark.parametrize("damping", [1.0, 0.85])
def test_pagerank_solves_its_equation(tmp_path: Path, damping: float) -> None:
    graph = unit_graph(residual(tmp_path))
    edges = dense(graph)
    share = edges / np.where(edges.sum(0) > 0, edges.sum(0), 1)
    start = np.zeros(graph.count)
    start[graph.of_kind("output")] = damping
    start[: graph.units] += (1 - damping) / graph.units
    assert graph.units == 7  # the sum's two sides are one unit
    wanted = np.linalg.solve(np.eye(graph.count) - damping * share, start)
    assert np.allclose(graph.importance(damping), wanted, rtol=1e-7)
    assert np.array_equal(graph.importance(damping), unit_graph(residual(tmp_path)).importance(damping))


def test_a_unit_from_which_no_path_leads_to_an_output_is_worth_nothing(tmp_path: Path) -> None:
    """Unit 2 of the first layer is read by unit 0 of the second alone, which nothing reads."""
    nodes = [
        node("MatMul", ["x", "a"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "b"], ["s"]),
        node("Relu", ["s"], ["t"]), node("MatMul", ["t", "c"], ["y"]),
    ]  # fmt: skip
    weights = {"a": floats(2, 3), "b": np.array([[0, 1, 1], [0, 0, 2], [3, 0, 0]], np.float32)}
    weights["c"] = np.array([[0, 0], [1, 2], [3, 4]], np.float32)
    rank = unit_graph(save_proto(proto(nodes, {"x": (1, 2)}, weights=weights), tmp_path)).importance()
    assert [number for number in range(6) if rank[number] == 0] == [2, 3]


CONV = [node("Conv", ["x", "a"], ["h"]), node("Relu", ["h"], ["r"]), node("Conv", ["r", "b"], ["s"])]
DOT = [
    node("MatMul", ["x", "q"], ["Q"]), node("MatMul", ["x", "k"], ["K"]), node("Transpose", ["K"], ["T"], perm=[0, 2, 1]),
    node("MatMul", ["Q", "T"], ["S"]), node("Softmax", ["S"], ["P"]), node("MatMul", ["x", "v"], ["V"]),
    node("MatMul", ["P", "V"], ["O"]), node("MatMul", ["O", "o"], ["y"]),
]  # fmt: skip
WITHOUT_WEIGHTS = {
    "a sum over channels": [*CONV[:2], node("ReduceSum", ["r", "axes"], ["y"])],
    "a sum over channels, then a layer": [*CONV[:2], node("ReduceSum", ["r", "axes"], ["e"]), node("Conv", ["e", "c"], ["y"])],
    "a product of computed values": DOT,
    "channels to places": [*CONV, node("DepthToSpace", ["s"], ["y"], blocksize=2)],
    "axes that a Reshape mixes": [*CONV, node("Reshape", ["s", "to"], ["y"])],
    "one channel": [*CONV[:2], node("Conv", ["r", "d"], ["e"]), node("Add", ["e", "one"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_operators_without_weights_hand_importance_on(name: str, tmp_path: Path) -> None:
    """With no damping all that the output is worth arrives at the input."""
    weights = {
        "a": floats(4, 2, 3, 3), "b": floats(4, 4, 1, 1, seed=1), "c": floats(2, 1, 1, 1), "d": floats(1, 4, 1, 1, seed=2),
        "q": floats(6, 4, seed=1), "k": floats(6, 4, seed=2), "v": floats(6, 3, seed=3), "o": floats(3, 6, seed=4),
        "axes": np.array([1]), "to": np.array([1, 2, 2, -1]), "one": np.float32(1),
    }  # fmt: skip
    nodes = WITHOUT_WEIGHTS[name]
    used = {key: np.asarray(array) for key, array in weights.items() if any(key in each.input for each in nodes)}
    given = (1, 5, 6) if nodes is DOT else (1, 2, 6, 6)
    graph = unit_graph(save_proto(proto(nodes, {"x": given}, weights=used), tmp_path))
    rank = graph.importance(1)
    assert (graph.importance()[: graph.units] > 0).all() and (rank[: graph.units] > 0).all()
    assert rank[graph.of_kind("input")].sum() == pytest.approx(1) == rank[graph.of_kind("output")].sum()


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="NaN or infinite"):
        unit_graph(chain(tmp_path, w1=W1 * np.float32(np.nan)))


@pytest.mark.parametrize("damping", [0.0, -1.0, 1.5])
def test_a_damping_outside_is_refused(tmp_path: Path, damping: float) -> None:
    with pytest.raises(PruneError, match="damping"):
        unit_graph(chain(tmp_path)).importance(damping)


def test_by_paths_the_weight_of_a_unit_that_nothing_reads_is_worth_nothing(tmp_path: Path) -> None:
    """synflow: the flow of ones through w1[:, 2] ends there."""
    out = tmp_path / "o.onnx"
    prunecli.gradient(chain(tmp_path), criterion="synflow", threshold=1e-9, output=out)
    left = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out).graph.initializer}
    assert np.array_equal(left["w1"], W1 * [1, 1, 0]) and np.array_equal(left["w2"], W2)


def test_the_unit_that_nothing_reads_goes_first(tmp_path: Path) -> None:
    done = prunecli.structured(
        chain(tmp_path), ratio=0.34, criterion="pagerank", round_to=1, output=tmp_path / "o.onnx", timing=False
    )
    assert [group.removed for group in done.groups] == [[0.0]] and done.recipe["damping"] == 0.85


def test_a_depthwise_kernel_lies_inside_its_unit(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "a"], ["h"]), node("Conv", ["h", "d"], ["u"], group=4), node("Conv", ["u", "b"], ["y"])]
    weights = {"a": floats(4, 1, 1, 1, seed=1), "d": floats(4, 1, 3, 3, seed=2), "b": floats(2, 4, 1, 1, seed=3)}
    graph = unit_graph(save_proto(proto(nodes, {"x": (1, 1, 6, 6)}, weights=weights), tmp_path))
    given, out = (int(graph.of_kind(kind)[0]) for kind in ("input", "output"))
    found = dense(graph)
    assert np.allclose(found[given, :4], np.abs(weights["a"].ravel())) and graph.edges.nnz == 8
    assert np.allclose(found[:4, out], np.linalg.norm(weights["b"].reshape(2, 4), axis=0))


def test_files_hold_the_graph(tmp_path: Path) -> None:
    model = chain(tmp_path)
    graph = unit_graph(model)
    for name in ("g.json", "g.graphml"):
        found = prunecli.inspect(model, graph=tmp_path / name)
        assert found.graph is not None and found.graph.edges == graph.edges.nnz
    table = json.loads((tmp_path / "g.json").read_text())
    edges = {(e["source"], e["target"]): e["weight"] for e in table["edges"]}
    rows, cols = graph.edges.nonzero()
    assert edges == {(a, b): dense(graph)[a, b] for a, b in zip(rows.tolist(), cols.tolist(), strict=True)}
    assert [n["importance"] for n in table["nodes"]] == graph.importance().tolist()
    assert [n["kind"] for n in table["nodes"]][:3] == ["channel"] * 3
    root = ElementTree.parse(tmp_path / "g.graphml").getroot()
    space = "{http://graphml.graphdrawing.org/xmlns}"
    assert (
        len(root.findall(f".//{space}node")) == graph.count and len(root.findall(f".//{space}edge")) == graph.edges.nnz
    )
    with pytest.raises(PruneError, match="format"):
        prunecli.inspect(model, graph=tmp_path / "g.png")


def test_the_drawing_has_every_unit_and_link(tmp_path: Path) -> None:
    """x, three units and y as columns; the unit that nothing reads is the lowest of its column."""
    found = prunecli.inspect(chain(tmp_path), graph=tmp_path / "g.json")
    assert found.graph is not None
    (chart,) = (s for s in graph_sections(found.graph) if isinstance(s, Chart))
    series = {s.name: s for s in chart.panels[0].series}
    points = [s for s in series.values() if s.draw == "points"]
    assert sorted(zip((x for s in points for x in s.x), (y for s in points for y in s.y), strict=True)) == [
        (0, 0.0), (1, -1.0), (1, 0.0), (1, 1.0), (2, 0.0),
    ]  # fmt: skip
    least = next(s for s in points if (1, -1.0) in list(zip(s.x, s.y, strict=True)))
    assert least.labels[list(least.y).index(-1.0)] == "w1, importance 0" and least.width == min(s.width for s in points)
    ends = {x for s in series.values() if s.draw == "path" for x, y in zip(s.x, s.y, strict=True) if y is not None}
    assert min(ends) == 0 and max(ends) == 2 and 1 in ends

"""Query heads that share keys and values, with a cache that is part of the interface."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from prunecli.errors import PruneError
from prunecli.model import Dims, concrete_shapes, load
from prunecli.runtime import Session
from prunecli.structures import cut_proof
from prunecli.structures.decide import decide
from prunecli.structures.options import StructuredOptions
from prunecli.structures.structured import structured
from prunecli.types import no_progress
from prunecli.verify import pieces
from prunecli.verify.inputs import Case, random_case, sizes_with_past
from tests.dependency.cases_parts import GROUPS, HEADS, SIZE, WITH_CACHE, grouped_cache
from tests.dependency.net import Net
from tests.structures.cuts import Carried, carry_out, edit

TOKENS = {"input_ids": ("batch", "sequence"), "attention_mask": ("batch", "total")}
PAST = {"past_key_values.0.key": ("batch", 2, "past_length", 16)}
EXPRESSION = {**TOKENS, "attention_mask": ("batch", "past_length + sequence")}

SIZES = [
    # inputs, stated sizes, sizes of tokens, mask and past
    ({**TOKENS, **PAST}, Dims(), [((1, 4), (1, 7), 3), ((2, 1), (2, 4), 3), ((2, 4), (2, 4), 0)]),
    ({**EXPRESSION, **PAST}, Dims(), [((1, 4), (1, 7), 3), ((2, 1), (2, 4), 3), ((2, 4), (2, 4), 0)]),
    ({**TOKENS, **PAST}, Dims({"batch": 1, "sequence": 6}), [((1, 6), (1, 9), 3), ((1, 6), (1, 9), 3), ((1, 6), (1, 6), 0)]),
    ({**TOKENS, **PAST}, Dims(shapes={"past_key_values.0.key": (1, 2, 5, 16)}), [((1, 4), (1, 9), 5), ((1, 1), (1, 6), 5), ((1, 4), (1, 9), 5)]),
    (TOKENS, Dims(), []),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "dims", "wanted"), SIZES)
def test_a_proof_runs_with_a_past_and_without(tmp_path: Path, inputs: Any, dims: Dims, wanted: Any) -> None:
    net = Net()
    for name, shape in inputs.items():
        net.x(*shape, name=name, limit=0 if len(shape) == 4 else 9)
    net.out(net("Cast", "input_ids", to=1))
    onnx.save(net._with([onnx.helper.make_tensor_value_info(net.outputs[0], 1, ["a", "b"])]), tmp_path / "m.onnx")
    file = load(tmp_path / "m.onnx")
    found = list(sizes_with_past(file, concrete_shapes(file, dims).inputs, dims))
    assert [(s["input_ids"], s["attention_mask"], s[next(iter(PAST))][2]) for s in found] == wanted


def cached(folder: Path, how: str, dtype: Any = np.float32) -> Path:
    net = Net(23, dtype=dtype)
    grouped_cache(net, how)
    onnx.save(net.model(), folder / "cached.onnx")
    return folder / "cached.onnx"


plain = partial(structured, granularity="head", recover="none", timing=False)


@pytest.mark.parametrize("how", WITH_CACHE)
def test_query_heads_go_and_the_cache_stays(tmp_path: Path, how: str) -> None:
    found = plain(cached(tmp_path, how), ratio=0.4, output=tmp_path / "cut.onnx")
    assert [(group.kind, group.before, group.after) for group in found.groups] == [("head", 3, 2)]
    assert (found.verification.kind, found.verification.samples >= 4) == ("exact", True)
    after = load(tmp_path / "cut.onnx")
    assert [v.shape[1] for v in after.ir.graph.inputs if v.name.startswith("past")] == [GROUPS, GROUPS]
    assert found.after.params == found.before.params - GROUPS * SIZE * (4 + 1 + 3)
    assert HEADS * SIZE - GROUPS * SIZE in {size for row in found.layers for size in row.shape_after}
    reasons = {axis.reason for axis in found.frozen if axis.size == GROUPS * SIZE}
    assert "packed" in how or reasons == {
        "heads of keys and values, and their size, are axes of the cache: past_key_values.0.key and 1 more would change"
        " in shape"
    }


WEAK = (2, 0)
"""Of each key head, the query head that adds next to nothing."""


def with_weak_heads(path: Path) -> tuple[Path, str]:
    """Make what reads one query head of each key head small; the model, and the name of what reads the heads."""
    model = onnx.load(path)
    reader = next(
        n.input[1] for n in model.graph.node if n.op_type == "MatMul" and _rows(model, n.input[1]) == HEADS * SIZE
    )
    tensor = next(t for t in model.graph.initializer if t.name == reader)
    array = numpy_helper.to_array(tensor).reshape(GROUPS, HEADS // GROUPS, -1).copy()
    for group, head in enumerate(WEAK):
        array[group, head] *= 1e-2
    tensor.CopyFrom(numpy_helper.from_array(array.reshape(HEADS * SIZE, -1), reader))
    onnx.save(model, path)
    return path, reader


def _rows(model: onnx.ModelProto, name: str) -> int:
    return next((t.dims[0] for t in model.graph.initializer if t.name == name), 0)


@pytest.mark.parametrize("how", WITH_CACHE)
def test_of_every_key_head_its_own_weakest_query_head_goes(tmp_path: Path, how: str) -> None:
    """Where a tensor has an axis of slots (five axes), the same slot goes from all."""
    path, reader = with_weak_heads(cached(tmp_path, how))
    plan = tmp_path / "plan.json"
    plain(path, ratio=0.4, output=tmp_path / "cut.onnx", save_plan=plan)
    rows = np.array(json.loads(plan.read_text())["weights"][reader]["0"]).reshape(GROUPS, SIZE)
    heads = rows[:, 0] // SIZE - HEADS // GROUPS * np.arange(GROUPS)
    assert (rows == rows[:, :1] + np.arange(SIZE)).all()
    assert tuple(heads) == WEAK if how != "five axes" else len(set(heads)) == 1


def test_heads_are_ranked_by_activations_where_the_criterion_measures_units(tmp_path: Path) -> None:
    path, _ = with_weak_heads(cached(tmp_path, "Expand"))
    rng = np.random.default_rng(0)
    shapes = {
        "x0": (1, 5, 4),
        **dict.fromkeys(("past_key_values.0.key", "past_key_values.0.value"), (1, GROUPS, 3, SIZE)),
    }
    np.savez(tmp_path / "d.npz", **{n: rng.standard_normal((4, *s[1:])).astype(np.float32) for n, s in shapes.items()})
    found = [
        plain(
            path, params=0.9, output=tmp_path / "cut.onnx", force=True, data=tmp_path / "d.npz", batch_size=1, **asked
        )
        for asked in ({"criterion": "obs", "allocate": "loss"}, {"criterion": "activation"}, {"criterion": "fisher"})
    ]
    for one in found:
        assert [tuple(order[0] for order in own) for own in one.recipe["orders"].values()] == [WEAK]
    assert found[0].recipe["orders"] == found[1].recipe["orders"] == found[2].recipe["orders"]


def test_a_plan_tells_which_heads_make_a_unit(tmp_path: Path) -> None:
    path, _ = with_weak_heads(cached(tmp_path, "Expand"))
    plan, first, second = (tmp_path / name for name in ("plan.json", "first.onnx", "second.onnx"))
    plain(path, ratio=0.4, output=first, save_plan=plan)
    structured(path, plan=plan, output=second, timing=False)
    stored = [{t.name: numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (first, second)]
    assert stored[0].keys() == stored[1].keys()
    assert all(np.array_equal(stored[0][name], stored[1][name]) for name in stored[0])


MALFORMED = [[[0, 0, 1]] * 2, [[0, 1]] * 2, [[0, 1, 2]], ["x", "y"], "xy", 3]


@pytest.mark.parametrize("orders", MALFORMED, ids=str)
def test_a_plan_with_other_orders_is_refused(tmp_path: Path, orders: Any) -> None:
    path, plan = cached(tmp_path, "Attention"), tmp_path / "plan.json"
    plain(path, ratio=0.4, output=tmp_path / "cut.onnx", save_plan=plan)
    read = json.loads(plan.read_text())
    read["recipe"]["orders"] = dict.fromkeys(read["recipe"]["orders"], orders)
    plan.write_text(json.dumps(read))
    with pytest.raises(PruneError, match=r"no such parts|how heads of a group are combined"):
        structured(path, plan=plan, output=tmp_path / "again.onnx", timing=False)


def test_later_steps_keep_the_units_of_the_first(tmp_path: Path) -> None:
    """Between steps weights are trained: other heads may be the weakest then, but what went stays gone."""
    path, _ = with_weak_heads(cached(tmp_path, "Attention"))
    options = StructuredOptions(ratio=0.4, granularity="head", criterion="l2-in")
    ask = partial(decide, path, tmp_path / "out.onnx", options, no_progress)
    first, decided = ask()
    again, _ = ask(gone=decided.removed, orders=first.how.orders)
    assert (again.units.atoms == first.units.atoms).all()
    plain_units, _ = ask(orders={})
    assert (plain_units.units.atoms != first.units.atoms).any()


# -- planted errors -----------------------------------------------------------------------------------


@pytest.fixture(params=["whole", "in pieces"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in pieces":
        monkeypatch.setattr(cut_proof, "WHOLE_UP_TO", 0)
        monkeypatch.setattr(pieces, "PIECE", 1)


Change = Callable[[np.ndarray], np.ndarray]


def heads_first(array: np.ndarray, axis: int) -> np.ndarray:
    """(heads left, size, rest), a view of a copy."""
    return np.moveaxis(array, axis, 0).reshape(-1, SIZE, array.size // array.shape[axis])


def on_heads(axis: int, change: Change) -> Change:
    def changed(array: np.ndarray) -> np.ndarray:
        new = change(heads_first(array, axis).copy())
        return np.ascontiguousarray(np.moveaxis(new.reshape(-1, new.shape[2]), 0, axis)).reshape(array.shape)

    return changed


def swapped(heads: np.ndarray) -> np.ndarray:
    """Two query heads of one key head, which the layer that reads them does not know of."""
    return heads[[1, 0, *range(2, len(heads))]]


def across(heads: np.ndarray) -> np.ndarray:
    """Query heads of different key heads."""
    return heads[[0, 2, 1, 3]]


def another_head(heads: np.ndarray) -> np.ndarray:
    """What a wrong head that went would leave in place of the last one."""
    return np.concatenate([heads[:-1], heads[:1]])


PLANTED = [
    # which weight, its axis of heads, what is wrong
    ("q", 1, swapped), ("q", 1, across), ("q", 1, another_head),
    ("o", 0, swapped), ("o", 0, across), ("o", 0, another_head),
]  # fmt: skip


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("how", ["ms.GroupQueryAttention", "Attention", "Expand"])
@pytest.mark.parametrize(("weight", "axis", "change"), PLANTED)
def test_a_planted_error_in_the_last_layer_is_found(
    tmp_path: Path, how: str, weight: str, axis: int, change: Any
) -> None:
    path, reader = with_weak_heads(cached(tmp_path, how))
    first, orders = "w0", {"w0": [[2, 0, 1], [0, 1, 2]]}
    done = carry_out(path, "head", orders=orders)
    proved = prove(done)
    assert (proved.kind, proved.samples) == ("exact", 3)
    path.with_name("cached.cut.onnx").unlink()
    spoil = edit(first if weight == "q" else reader, on_heads(axis, change))
    with pytest.raises(PruneError, match=r"does not compute what the masked original does|differs"):
        prove(carry_out(path, "head", spoil, orders=orders))


def prove(done: Carried) -> Any:
    """On a short past and on none."""

    def cases(session: Session) -> list[Case]:
        sizes = sizes_with_past(done.subject.file, done.subject.inputs, Dims())
        return [random_case(session, shapes, seed) for seed, shapes in enumerate(sizes)]

    return done.prove(cases)


def four_bits(folder: Path, block: int) -> Path:
    """Queries, keys, values and the output by MatMulNBits."""
    net, width = Net(21), 32

    def linear(x: str, inputs: int, outputs: int) -> str:
        packed = net.rng.integers(0, 256, (outputs, -(-inputs // block), block // 2)).astype(np.uint8)
        scales = net.rng.uniform(0.01, 0.05, outputs * packed.shape[1]).astype(np.float32)
        return str(
            net.ms("MatMulNBits", x, net.c(packed), net.c(scales), K=inputs, N=outputs, bits=4, block_size=block)
        )

    grouped_cache(net, "ms.GroupQueryAttention", width, linear)
    onnx.save(net.model(), folder / "bits.onnx")
    return folder / "bits.onnx"


def test_heads_of_four_bit_weights_go_in_whole_blocks(tmp_path: Path) -> None:
    """A head of 16 is a block of what reads it, or half of one, which it shares with the next head: of three query heads
    that leaves none that could go."""
    found = plain(four_bits(tmp_path, 16), ratio=0.4, output=tmp_path / "cut.onnx")
    assert [(group.before, group.after) for group in found.groups] == [(3, 2)]
    assert found.verification.kind == "exact"
    assert found.recipe["orders"]
    with pytest.raises(PruneError, match="all its positions are coupled"):
        plain(four_bits(tmp_path, 32), ratio=0.4, output=tmp_path / "cut.onnx", force=True)

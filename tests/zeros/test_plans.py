"""Plan files of masks: written as documented, replayed exactly, refused if they do not fit."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunecli.errors import PruneError
from prunecli.masks.decide import Recipe, decide
from prunecli.model import Model, SaveOptions, find_weights, load, save
from prunecli.zeros.plans import load_plan, save_plan
from prunecli.zeros.zero import Zeroed, target_of
from tests.model.build import big, floats, node, proto, save_proto

SHAPES = {"a": (3, 5), "b": (5, 7), "c": (7, 8)}


def model_in(folder: Path) -> Model:
    nodes = [node("MatMul", ["x" if i == 0 else f"h{i}", name], [f"h{i + 1}"]) for i, name in enumerate(SHAPES)]
    weights = {name: floats(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    return load(save_proto(proto(nodes, outputs=["h3"], weights=weights), folder))


def written(folder: Path, recipe: Recipe | None = None) -> tuple[Model, list[Zeroed], Path]:
    file = model_in(folder)
    recipe = recipe or Recipe(sparsity=0.5, scope="global")
    weights = find_weights(file).prunable
    decisions = decide([target_of(w) for w in weights], recipe)
    found = [Zeroed(w, d, w.tensor) for w, d in zip(weights, decisions, strict=True)]
    save_plan(folder / "plan.json", file, recipe.to_json(), found)
    return file, found, folder / "plan.json"


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    file, found, path = written(tmp_path)
    plan = json.loads(path.read_text())
    assert plan["schema"] == "prunecli-plan/1"
    assert plan["model"] == {"sha256": file.sha256}
    assert plan["recipe"]["sparsity"] == 0.5
    assert [plan[key] for key in ("weights", "tensors", "units", "frozen")] == [{}, {}, [], []]
    assert list(plan["masks"]) == list(SHAPES)
    for one in found:
        mask = plan["masks"][one.weight.name]
        bits = np.unpackbits(np.frombuffer(base64.b64decode(mask["bits"]), np.uint8))
        drop = bits[: one.size].reshape(mask["shape"]).astype(bool)
        np.testing.assert_array_equal(drop, one.decision.drop(one.values()))
        assert not bits[one.size :].any()


@pytest.mark.parametrize("recipe", [Recipe(threshold=0.4), Recipe(pattern="2:4"), Recipe(sparsity=0.3, pattern="row")])
def test_a_plan_replays_exactly(recipe: Recipe, tmp_path: Path) -> None:
    file, found, path = written(tmp_path, recipe)
    kept, decisions = load_plan(path, file, find_weights(file).all())
    assert kept == recipe.to_json()
    assert set(decisions) == set(SHAPES)
    for one in found:
        values, again = one.values(), decisions[one.weight.name]
        np.testing.assert_array_equal(again.drop(values), one.decision.drop(values))
        assert again.apply(values).tobytes() == one.decision.apply(values).tobytes()


def test_external_data_belongs_to_the_identity(tmp_path: Path) -> None:
    save(load(save_proto(big(), tmp_path)), tmp_path / "e.onnx", SaveOptions("always"))
    file = load(tmp_path / "e.onnx")
    weights = find_weights(file).prunable
    found = [Zeroed(w, d, w.tensor) for w, d in
             zip(weights, decide([target_of(w) for w in weights], Recipe(sparsity=0.5)), strict=True)]  # fmt: skip
    save_plan(tmp_path / "plan.json", file, {}, found)
    load_plan(tmp_path / "plan.json", file, weights)
    data = file.data_files[0]
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    with pytest.raises(PruneError, match="made for another model"):
        load_plan(tmp_path / "plan.json", load(tmp_path / "e.onnx"), weights)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        plan = json.loads(text)
        change(plan)
        return json.dumps(plan)

    return apply


# what is wrong with the file -> a piece of the message
BAD = [
    (lambda text: text[:-20], "is not JSON"),
    (lambda text: "[" * 100_000, "is not JSON"),
    (lambda text: "\udcff", "is not JSON"),
    (lambda text: "[]", "not a plan"),
    (edit(lambda p: p.update(schema="prunecli-plan/2")), "not a plan"),
    (edit(lambda p: p["model"].update(sha256="0" * 64)), "made for another model"),
    (edit(lambda p: p.pop("model")), "made for another model"),
    (edit(lambda p: p.update(weights={"a": {"0": [1]}})), "cuts channels"),
    (edit(lambda p: p.update(tensors={"h1": {"0": [1]}})), "cuts channels"),
    (edit(lambda p: p.update(masks={})), "holds no masks"),
    (edit(lambda p: p.update(masks=[1])), "holds no masks"),
    (edit(lambda p: p["masks"].update(z=p["masks"].pop("a"))), "names z, which is no weight"),
    (edit(lambda p: p["masks"].update(a=1)), "the mask of a does not fit"),
    (edit(lambda p: p["masks"]["a"].update(shape=[5, 3])), "the mask of a does not fit"),
    (edit(lambda p: p["masks"]["a"].update(bits="AA==")), "the mask of a does not fit"),
    (edit(lambda p: p["masks"]["a"].update(bits="A" * 1000)), "the mask of a does not fit"),
    (edit(lambda p: p["masks"]["a"].update(bits="!!!!")), "the mask of a does not fit"),
    (edit(lambda p: p["masks"]["a"].update(bits=None)), "the mask of a does not fit"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=range(len(BAD)))
def test_a_plan_that_does_not_fit_is_refused(change: Callable[[str], str], words: str, tmp_path: Path) -> None:
    file, _, path = written(tmp_path)
    path.write_bytes(change(path.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(PruneError) as caught:
        load_plan(path, file, find_weights(file).all())
    assert words in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_plan_appears_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, found, path = written(tmp_path)
    before = path.read_text()
    monkeypatch.setattr(Zeroed, "release", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_plan(path, file, {}, found, force=True)
    assert path.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "plan.json"]
    with pytest.raises(PruneError, match="cannot write the plan"):
        save_plan(tmp_path / "no" / "plan.json", model_in(tmp_path), {}, [])

"""Every pattern with every scope it makes sense with, on every layout, against plain loops."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from prunecli.errors import PruneError
from prunecli.masks.criteria import CRITERIA, INPUT_NORM, PRODUCT, Criterion, Elements, element_names
from prunecli.masks.decide import Recipe, Target, decide
from prunecli.masks.patterns import PATTERNS, Tiles, Windows, parse_pattern
from prunecli.masks.scopes import SCOPES
from tests.masks import naive

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def weights(seed: int = 0, ties: bool = False) -> list[Target]:
    """A Conv, a grouped and a depthwise Conv, a MatMul and a Gemm, of all float types, not dividing by 4."""
    rng = np.random.default_rng(seed)
    shapes = [(6, 5, 3, 3), (8, 3, 1, 2), (7, 1, 3, 3), (13, 9), (10, 11)]
    arrays = [rng.standard_normal(shape) * (1 + i) for i, shape in enumerate(shapes)]
    if ties:
        arrays = [np.round(array) / 2 for array in arrays]
    first, second, third, fourth, fifth = (array.astype(DTYPES[i % 4]) for i, array in enumerate(arrays))
    return [
        naive.conv_target(first, "conv"),
        naive.conv_target(second, "grouped", groups=2),
        naive.conv_target(third, "depthwise", groups=7),
        naive.matmul_target(fourth, "matmul"),
        naive.dense_target(fifth, "dense"),
    ]


def unit_tables(targets: list[Target], pattern: str, reduce: object) -> list[tuple[list, list, list]]:
    """Per tensor: scores, sizes and members of its units."""
    form = parse_pattern(pattern)
    assert isinstance(form, Tiles)
    tables = []
    for target in targets:
        shape = target.canonical(target.load()).shape
        members = naive.tiles_of(target, form.tile(shape))
        flat = target.load().ravel().astype(np.float64)
        tables.append(([reduce(flat[m]) for m in members], [len(m) for m in members], members))
    return tables


def spread(target: Target, members: list, drop: list[bool]) -> np.ndarray:
    mask = np.zeros(target.size, bool)
    for unit, gone in zip(members, drop, strict=True):
        mask[unit] = gone
    return mask.reshape(target.shape)


def naive_layer(targets: list[Target], tables: list, sparsity: float) -> list[np.ndarray]:
    return [
        spread(t, members, naive.drop_lowest(scores, sizes, round(sparsity * t.size)))
        for t, (scores, sizes, members) in zip(targets, tables, strict=True)
    ]


def naive_global(targets: list[Target], tables: list, sparsity: float) -> list[np.ndarray]:
    scores, sizes = ([x for table in tables for x in table[i]] for i in (0, 1))
    budget = round(sparsity * sum(t.size for t in targets))
    drop = iter(naive.drop_lowest(scores, sizes, budget))
    return [
        spread(t, members, list(itertools.islice(drop, len(members))))
        for t, (_, _, members) in zip(targets, tables, strict=True)
    ]


def naive_lamp(targets: list[Target], tables: list, sparsity: float) -> list[np.ndarray]:
    ranked = []
    for scores, sizes, members in tables:
        order = sorted(range(len(scores)), key=lambda i: (scores[i], -i))
        lamp = np.zeros(len(scores))
        for place, i in enumerate(order):
            if scores[i] > 0:
                lamp[i] = scores[i] ** 2 / sum(scores[j] ** 2 for j in order[place:])
        ranked.append((list(lamp), sizes, members))
    return naive_global(targets, ranked, sparsity)


def naive_erk(targets: list[Target], tables: list, sparsity: float) -> list[np.ndarray]:
    from prunecli.masks.allocations import LayerSize, erk

    budgets = erk([LayerSize(t.shape, t.size) for t in targets], sparsity)
    return [
        spread(t, members, naive.drop_lowest(scores, sizes, budget))
        for t, budget, (scores, sizes, members) in zip(targets, budgets, tables, strict=True)
    ]


def naive_row(targets: list[Target], tables: list, sparsity: float) -> list[np.ndarray]:
    """Units of equal (batch, rows) box are one pool."""
    masks = []
    for target, (scores, sizes, members) in zip(targets, tables, strict=True):
        places = naive.storage_place(target)
        row_of = {place: at[:2] for at, place in np.ndenumerate(places)}
        pools: dict = {}
        for unit, m in enumerate(members):
            pools.setdefault(row_of[m[0]], []).append(unit)
        drop = [False] * len(members)
        for pool in pools.values():
            budget = round(sparsity * sum(sizes[u] for u in pool))
            gone = naive.drop_lowest([scores[u] for u in pool], [sizes[u] for u in pool], budget)
            for u, flag in zip(pool, gone, strict=True):
                drop[u] = flag
        masks.append(spread(target, members, drop))
    return masks


NAIVE = {"layer": naive_layer, "global": naive_global, "lamp": naive_lamp, "erk": naive_erk, "row": naive_row}
ELEMENTS = {"l1": lambda v: np.abs(v).mean(), "l2": lambda v: np.sqrt((v * v).mean())}
"""Criteria that need no evidence: a unit's weights -> its score. Of `random` no score is known."""
TILES = ["element", "4x1", "1x4", "3x2", "20x20", "row", "column"]
PAIRS = [(p, s) for p, s in itertools.product(TILES, NAIVE) if not (s == "row" and p in ("row", "column"))]
SPARSITIES = [0.0, 0.1, 0.5, 0.9, 1.0]


def check(targets: list[Target], recipe: Recipe, want: list[np.ndarray]) -> None:
    for target, decision, mask in zip(targets, decide(targets, recipe), want, strict=True):
        array = target.load()
        assert np.array_equal(decision.drop(array), mask), (target.name, recipe)
        pruned = decision.apply(array)
        expected = np.where(mask, np.zeros((), array.dtype), array)
        assert pruned.dtype == array.dtype and pruned.tobytes() == expected.tobytes(), (target.name, recipe)


@pytest.mark.parametrize(("pattern", "scope"), PAIRS, ids=lambda x: x)
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_pattern_and_scope(pattern: str, scope: str, ties: bool) -> None:
    targets = weights(ties=ties)
    for name, reduce in ELEMENTS.items():
        if pattern == "element" and name == "l2":
            continue  # ranks elements as l1 does
        tables = unit_tables(targets, pattern, reduce)
        for sparsity in SPARSITIES:
            recipe = Recipe(pattern, scope, name, sparsity)
            check(targets, recipe, NAIVE[scope](targets, tables, sparsity))


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("pattern", ["1:2", "2:4", "3:4", "1:16", "2:40", "1:3"])
def test_windows(pattern: str, ties: bool) -> None:
    form = parse_pattern(pattern)
    assert isinstance(form, Windows)
    targets, want = weights(ties=ties), []
    for target in targets:
        view = target.canonical(np.abs(target.load().astype(np.float64)))
        mask = np.zeros(view.shape, bool)
        for b, r, t in np.ndindex(view.shape[:3]):
            for start in range(0, view.shape[3], form.window):
                line = view[b, r, t, start : start + form.window]
                gone = naive.drop_lowest(list(line), [1] * len(line), max(0, len(line) - form.keep))
                mask[b, r, t, start : start + form.window] = gone
        want.append(target.restore(mask))
    check(targets, Recipe(pattern), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.30000001, 1e9])
def test_threshold_is_numpys_where(dtype: type, threshold: float) -> None:
    array = np.random.default_rng(0).standard_normal((70, 90)).astype(dtype)
    array[:2] = [[-0.0], [0.5]]
    target = naive.dense_target(array)
    with np.errstate(over="ignore"):
        [decision] = decide([target], Recipe(threshold=threshold))
        want = np.where(np.abs(array) < threshold, 0, array)
    assert want.dtype == array.dtype
    assert decision.apply(array).tobytes() == want.tobytes()


@pytest.mark.parametrize("pattern", ["4x1", "row", "column"])
def test_threshold_of_units_is_their_mean(pattern: str) -> None:
    targets = weights()
    tables = unit_tables(targets, pattern, lambda v: np.abs(v).mean())
    want = [spread(t, table[2], [s < 1.7 for s in table[0]]) for t, table in zip(targets, tables, strict=True)]
    check(targets, Recipe(pattern, threshold=1.7), want)


@pytest.mark.parametrize("pattern", ["element", "4x1", "row", "2:4"])
def test_random_depends_on_seed_and_name_only(pattern: str) -> None:
    sparsity = None if pattern == "2:4" else 0.5

    def masks(seed: int, name: str = "w") -> np.ndarray:
        array = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        target = naive.dense_target(array, name)
        [decision] = decide([target], Recipe(pattern, None, "random", sparsity, seed=seed))
        assert np.array_equal(decision.drop(array), decision.drop(array))
        return decision.drop(array)

    assert masks(1).mean() == 0.5
    assert np.array_equal(masks(1), masks(1))
    assert not np.array_equal(masks(1), masks(2))
    assert not np.array_equal(masks(1), masks(1, "v"))


def test_lamp_of_random_scores_drops_the_asked_for() -> None:
    targets = weights()
    decisions = decide(targets, Recipe("element", "lamp", "random", 0.5))
    dropped = sum(int(d.drop(t.load()).sum()) for d, t in zip(decisions, targets, strict=True))
    assert dropped == round(0.5 * sum(t.size for t in targets))


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two criteria as a plug-in would add them: one with evidence, one that gives negative scores."""
    entries = {
        "plugged": Criterion("plugged", "", "", Elements(PRODUCT, INPUT_NORM)),
        "wrong": Criterion("wrong", "", "", Elements(lambda block: block.weights.mean(axis=1))),
    }
    known = {entry.name: entry for entry in CRITERIA}
    monkeypatch.setattr(CRITERIA, "_entries", {**known, **entries})


@pytest.mark.parametrize(
    ("pattern", "scope"), [("element", "row"), ("element", "layer"), ("2:4", None), ("4x1", "global")]
)
def test_a_criterion_with_evidence(plugged: None, pattern: str, scope: str | None) -> None:
    rng = np.random.default_rng(3)
    array, norm = rng.standard_normal((12, 16)).astype(np.float32), rng.random(12) + 0.1
    plain = naive.matmul_target(array)
    scaled = naive.matmul_target(array.astype(np.float64) * norm[:, None])
    target = Target(**{**vars(plain), "evidence": lambda: norm})
    sparsity = None if ":" in pattern else 0.5
    [by_evidence] = decide([target], Recipe(pattern, scope, "plugged", sparsity))
    [by_product] = decide([scaled], Recipe(pattern, scope, "l1", sparsity))
    assert np.array_equal(by_evidence.drop(array), by_product.drop(scaled.load()))


def test_a_negative_score_is_an_error(plugged: None) -> None:
    array = np.array([[1.0, -1.0]], np.float32)
    with pytest.raises(ValueError, match="negative"):
        decide([naive.dense_target(array)], Recipe(criterion="wrong", sparsity=0.5))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(sparsity=0.5),
        Recipe(sparsity=0.0),
        Recipe(threshold=0.1),
        Recipe("2:4"),
        Recipe(scope="row", sparsity=0.5),
        Recipe(scope="lamp", sparsity=0.5),
        Recipe("4x1", sparsity=0.5),
        Recipe("row", threshold=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_by_name(recipe: Recipe, bad: float) -> None:
    array = np.ones((9, 8), np.float32)
    array[3, 4] = bad
    target = naive.dense_target(array, "encoder.fc")
    with pytest.raises(PruneError, match=r"encoder\.fc holds 1 NaN"):
        for decision in decide([target], recipe):
            decision.drop(array)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "how much"),
        ({"sparsity": 1.5}, "outside"),
        ({"sparsity": -0.1}, "outside"),
        ({"sparsity": float("nan")}, "outside"),
        ({"threshold": -1.0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": float("inf")}, "threshold"),
        ({"threshold": 0.1, "sparsity": 0.5}, "contradict"),
        ({"threshold": 0.1, "scope": "global"}, "--scope"),
        ({"threshold": 0.1, "criterion": "l2"}, "compares"),
        ({"pattern": "2:4", "threshold": 0.1}, "--threshold"),
        ({"pattern": "2:4", "sparsity": 0.6}, "means a sparsity of 0.5"),
        ({"pattern": "2:4", "scope": "lamp"}, "--scope lamp"),
        ({"pattern": "row", "sparsity": 0.5, "scope": "row"}, "--scope row"),
        ({"pattern": "column", "sparsity": 0.5, "scope": "row"}, "--scope row"),
        ({"pattern": "4:4"}, "4:4"),
        ({"pattern": "0:4"}, "0:4"),
        ({"pattern": "0x4", "sparsity": 0.5}, "0x4"),
        ({"pattern": "2:4:8"}, "not a pattern"),
        ({"pattern": "", "sparsity": 0.5}, "not a pattern"),
        ({"pattern": "99999999999:99999999999999"}, "not a pattern"),
        ({"scope": "glob", "sparsity": 0.5}, "no scope"),
        ({"criterion": "l3", "sparsity": 0.5}, "no criterion"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_a_hint(arguments: dict, words: str) -> None:
    with pytest.raises(PruneError, match=words) as caught:
        Recipe(**arguments)
    assert caught.value.hint


def test_a_pattern_and_its_own_sparsity_agree() -> None:
    assert Recipe("2:4", "layer", sparsity=0.5).to_json() == {
        "pattern": "2:4",
        "criterion": "l1",
        "sparsity": 0.5,
        "seed": 0,
    }
    assert Recipe("1X1", sparsity=0.5).pattern == "element"
    assert Recipe("1:3", sparsity=2 / 3).sparsity


def test_no_weights_is_no_decision() -> None:
    for scope in NAIVE:
        assert decide([], Recipe(scope=scope, sparsity=0.5)) == []


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1)])
@pytest.mark.parametrize("recipe", [Recipe(p, s, None, 0.5) for p, s in PAIRS] + [Recipe("2:4")], ids=str)
def test_empty_and_tiny_weights(shape: tuple[int, int], recipe: Recipe) -> None:
    array = np.ones(shape, np.float32)
    for target in (naive.dense_target(array), naive.matmul_target(array)):
        for decision in decide([target], recipe):
            assert decision.apply(array).shape == shape
            assert decision.drop(array).sum() == 0


def test_every_choice_is_tested() -> None:
    assert {entry.name for entry in SCOPES} == set(NAIVE)
    assert set(element_names(lambda evidence: evidence is None)) == {*ELEMENTS, "random"}
    assert {entry.name for entry in PATTERNS} == {"element", "N:M", "RxC", "row", "column"}
    assert all(entry.help for registry in (SCOPES, CRITERIA, PATTERNS) for entry in registry)
    assert all(entry.formula for entry in CRITERIA)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="exists already"):
        CRITERIA.add(Criterion("l1", "again", ""))

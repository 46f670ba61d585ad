"""Which widths groups may keep: a table over targets, numbers and kinds of layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.dependency.analysis import analyse
from prunecli.dependency.catalogue import Catalogue, catalogue, parse_granularity
from prunecli.dependency.prepare import prepare
from prunecli.errors import PruneError
from prunecli.structures.choose import DEARER, Measurements, decide_units
from prunecli.structures.options import StructuredOptions
from prunecli.structures.widths import Alignment, cpu_block, multiples, read_multiple
from tests.dependency.net import Net
from tests.structures.recipes import unit_recipe

CPU = Alignment(16, "dense", 16, True, given=False)
INT8 = Alignment(16, "never", 16, given=False)


@pytest.mark.parametrize(("block", "finer"), [(16, [8, 4]), (8, [4]), (32, [16, 8]), (4, [])])
def test_finer_multiples_are_halves_and_quarters_that_onnxruntime_reads_at_once(block: int, finer: list[int]) -> None:
    assert [way.block for way in Alignment(block, "dense", block, True, given=False).finer()] == finer
    assert not list(Alignment(block).finer()), "the user's number stands"


def catalogue_of(n: Net) -> Catalogue:
    work = prepare(ir.from_proto(n.model()))
    return catalogue(analyse(work, n.shapes, n.other), parse_granularity("channel,head"))


def chain(*layers: tuple[int, int]) -> Catalogue:
    """Convolutions one after the other: (outputs, size of the kernel); the last one's outputs are the model's."""
    n = Net()
    h, last = n.x("N", 3, "H", "W"), 3
    for number, (outputs, kernel) in enumerate(layers):
        h = n.conv(h, last, outputs, kernel, pads=[kernel // 2] * 4)
        h, last = h if number == len(layers) - 1 else n("Relu", h), outputs
    return catalogue_of(n.out(h))


def flattened(pixels: int) -> Catalogue:
    """A convolution whose picture a matrix reads flat: a unit has `pixels` ** 2 positions there, and one before."""
    n = Net()
    h = n("Flatten", n("Relu", n.conv(n.x("N", 3, pixels, pixels), 3, 40, 3, pads=[1] * 4)))
    return catalogue_of(n.out(n.linear(h, 40 * pixels**2, 10)))


def grouped() -> Catalogue:
    """A convolution in four groups: a unit is a channel of each."""
    n = Net()
    h = n("Relu", n.conv(n.x("N", 3, 8, 8), 3, 32, 1))
    h = n("Relu", n.conv(h, 32, 64, 3, group=4, pads=[1] * 4))
    return catalogue_of(n.out(n.conv(h, 64, 10, 1)))


def recurrent() -> Catalogue:
    """An LSTM whose weights have four rows of a hidden unit."""
    n = Net()
    h = n("LSTM", n.x(5, 1, 12), n.w(1, 160, 12), n.w(1, 160, 40), hidden_size=40)
    return catalogue_of(n.out(n.linear(n("Squeeze", h, n.c(np.array([1]))), 40, 10)))


TAPS, POINTS = chain((40, 3), (16, 3), (8, 3), (4, 3)), chain((40, 3), (16, 1), (8, 1), (4, 1))


@pytest.mark.parametrize(
    ("units", "alignment", "widths"),
    [
        (TAPS, CPU, [(40, 32, 16, 8, 4), (16, 8, 4), (8, 4)]),
        (POINTS, CPU, [(40, 32, 16), (16,), (8,)]),
        (TAPS, INT8, [(40, 32, 16), (16,), (8,)]),
        (POINTS, Alignment(16, "all", 16, given=False), [(40, 32, 16, 8, 4), (16, 8, 4), (8, 4)]),
        (TAPS, Alignment(8), [(40, 32, 24, 16, 8), (16, 8), (8,)]),
        (flattened(4), Alignment(16), [(40, 32, 16)]),
        (flattened(4), CPU, [(40, 32, 16, 8, 4)]),
        (grouped(), Alignment(16), [(8, 4), (16, 12, 8, 4)]),
        (recurrent(), Alignment(16), [(40, 32, 16)]),
        (POINTS, Alignment(3), [(40, *range(39, 0, -3)), (16, 15, 12, 9, 6, 3), (8, 6, 3)]),
    ],
)
def test_widths_of_layers(units: Catalogue, alignment: Alignment, widths: list[tuple[int, ...]]) -> None:
    assert [alignment.widths(units, group) for group in units.groups] == widths


@given(st.integers(1, 200), st.integers(1, 40))
def test_multiples_go_down_to_the_least(count: int, step: int) -> None:
    found = multiples(count, step)
    assert found[0] == count and found == sorted(set(found), reverse=True)
    assert set(found[1:]) == {n for n in range(1, count) if n % step == 0}


def test_a_limit_holds() -> None:
    assert [CPU.widths(TAPS, group, group.count // 2) for group in TAPS.groups] == [(40, 32), (16, 8), (8, 4)]


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ({}, Alignment(cpu_block(), "dense", cpu_block(), True, given=False)),
        ({"target": "cpu-int8"}, Alignment(cpu_block(), "never", cpu_block(), given=False)),
        ({"target": "tensorrt"}, Alignment(16, "never", 16, given=False)),
        ({"target": "qnn"}, Alignment(32, "never", 32, given=False)),
        ({"round_to": 1}, Alignment(1, "never", 1, True)),
        ({"round_to": "4", "target": "npu"}, Alignment(4, "never", 16)),
    ],
)
def test_options_say_which(given_: dict[str, str | int], wanted: Alignment) -> None:
    assert StructuredOptions(macs=0.5, **given_).alignment == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0", "-8", "eight", "8.5", ""])
def test_what_is_no_number_of_channels_is_refused(text: str) -> None:
    with pytest.raises(PruneError, match="no number of channels"):
        read_multiple(text)


NARROW = chain((8, 3), (12, 1), (8, 1), (4, 1))


@pytest.mark.parametrize("alignment", [CPU, INT8], ids=["cpu", "cpu-int8"])
@pytest.mark.parametrize("recipe", [("macs", 0.5), ("params", 0.7), ("ratio", 0.5)])
def test_a_narrow_network_is_not_refused(alignment: Alignment, recipe: tuple[str, float]) -> None:
    """Less than a block everywhere: narrower widths are taken, and said."""
    kind, target = recipe
    found = decide_units(NARROW, unit_recipe(kind, target, widths=alignment))  # type: ignore[arg-type]
    assert found.removed.any()
    left = found.after[kind] / found.before[kind] if kind != "ratio" else 1 - found.removed.mean()
    assert left <= target + (0.5 if kind == "ratio" else 0)
    assert kind == "ratio" or any("cannot be met with multiples of 16" in note for note in found.notes)


def test_a_number_is_never_loosened() -> None:
    with pytest.raises(PruneError, match="cannot be reached") as error:
        decide_units(NARROW, unit_recipe("macs", 0.5, widths=Alignment(16)))
    assert "lower --round-to" in error.value.hint


WIDE = chain((64, 3), (96, 3), (48, 1), (64, 3), (8, 3))


@pytest.mark.parametrize("target", np.linspace(0.15, 0.95, 9).tolist())
def test_a_budget_is_met_or_how_far_below_it_is_said(target: float) -> None:
    found = decide_units(WIDE, unit_recipe("macs", target, widths=CPU))
    reached = found.after["macs"] / found.before["macs"]
    assert reached <= target
    assert reached >= 0.99 * target or any(f"{reached:.4g} remains, the nearest below" in note for note in found.notes)
    kept = [int((~found.removed[g.units]).sum()) for g in WIDE.groups]
    ways = [
        way for way in (CPU, *CPU.finer())
        if all(k in way.widths(WIDE, g) for k, g in zip(kept, WIDE.groups, strict=True))
    ]  # fmt: skip
    assert ways and (ways[0] is CPU or any("with multiples of 16" in note for note in found.notes))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_plain_widths_meet_a_budget_as_nearly_as_any_or_say_so(scope: str) -> None:
    """8 to 40 channels have few widths: what ranks by score overshoots."""
    units = chain((9, 3), (8, 3), (7, 3))
    for target in (0.2, 0.35, 0.5, 0.65):
        found = decide_units(units, unit_recipe("macs", target, scope=scope))  # type: ignore[arg-type]
        left = found.after["macs"] / found.before["macs"]
        told = any("the nearest below" in note and ("alike" in note) == (scope == "layer") for note in found.notes)
        assert left <= target and (left >= 0.99 * target or told)


FEW = chain((24, 3), (24, 3), (48, 3), (48, 3), (8, 3))


@given(st.lists(st.floats(1, 6), min_size=4, max_size=4), st.floats(0.3, 0.8))
@settings(max_examples=15)
def test_speed_costs_no_more_than_its_worth(powers: list[float], target: float) -> None:
    """Damage that grows with a power of how many units are gone: what goes with widths of choice scores at most DEARER
    times as high as with any finer widths."""
    measured = {
        group.name: np.diff(np.linspace(0, 1, group.count + 1) ** power)
        for group, power in zip(FEW.groups, powers, strict=True)
    }

    def lost(alignment: Alignment) -> float:
        recipe = unit_recipe("macs", target, criterion="obs", widths=alignment)
        return decide_units(FEW, recipe, evidence=Measurements(damage=measured)).lost

    assert lost(CPU) <= DEARER * min(lost(replace(way, given=True)) for way in CPU.finer()) * (1 + 1e-9)


def test_a_dear_block_is_halved_and_that_is_said() -> None:
    """Of the last two layers little may go: in steps of 16, half the work costs most of one; in steps of 8 it does not."""
    dear = {group.name: np.linspace(0, 1, group.count) ** 8 for group in FEW.groups}
    found = decide_units(
        FEW, unit_recipe("macs", 0.62, criterion="obs", widths=CPU), evidence=Measurements(damage=dear)
    )
    assert any("would cost more than 1.25 times the score with multiples of 16" in note for note in found.notes)


@pytest.mark.parametrize(
    ("power", "joint", "multiple", "why"),
    [
        (8, {}, 4, "would cost more than 1.25 times the score"),
        (8, {16: 0.20, 8: 0.19, 4: 0.19}, 16, ""),
        (8, {16: 0.22, 8: 0.22, 4: 0.19}, 4, "would change the outputs more than 1.1 times as much"),
        (1, {}, 8, "would cost more than 1.25 times the score"),
        (1, {16: 0.20, 8: 0.19, 4: 0.19}, 16, ""),
        (1, {16: 0.22, 8: 0.19, 4: 0.19}, 8, "would change the outputs more than 1.1 times as much"),
    ],
)
def test_the_damage_of_all_together_decides(power: int, joint: dict[int, float], multiple: int, why: str) -> None:
    """Where it is measured (`joint`, by the multiple of all widths that are left), sums do not count."""
    sums = {group.name: np.diff(np.linspace(0, 1, group.count + 1) ** power) for group in FEW.groups}

    def multiple_of(removed: np.ndarray) -> int:
        kept = [int((~removed[group.units]).sum()) for group in FEW.groups]
        cut = [n for n, group in zip(kept, FEW.groups, strict=True) if n < group.count]
        return max(n for n in (16, 8, 4) if not any(width % n for width in cut))

    evidence = Measurements(damage=sums, joint=(lambda removed: joint[multiple_of(removed)]) if joint else None)
    found = decide_units(FEW, unit_recipe("macs", 0.62, criterion="obs", widths=CPU), evidence=evidence)
    assert multiple_of(found.removed) == multiple
    assert [note.partition("with multiples")[0].strip() for note in found.notes if "round-to" in note] == (
        [f"--round-to auto: --macs 0.62 {why}"] if why else []
    )


def test_more_is_cut_for_a_smaller_budget() -> None:
    whole = [decide_units(WIDE, unit_recipe("macs", t, widths=CPU)).after["macs"] for t in (0.8, 0.6, 0.4, 0.2)]
    assert whole == sorted(whole, reverse=True)


@pytest.mark.parametrize(
    ("alignment", "computed"),
    [(CPU, [10, 12, 16, 32, 48]), (INT8, [16, 16, 16, 32, 48]), (Alignment(1), [4, 8, 16, 20, 48])],
)
def test_what_a_target_computes(alignment: Alignment, computed: list[float]) -> None:
    assert alignment.effective(np.array([4, 8, 16, 20, 48])).tolist() == computed

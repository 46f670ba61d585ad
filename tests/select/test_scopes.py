import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.masks.scopes import budget_of, erk_budgets

SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3)), max_size=8)


@given(SHAPES, st.floats(0, 1))
def test_erk_drops_exactly_what_is_asked(shapes: list[tuple[int, ...]], sparsity: float) -> None:
    tensors = [(shape, math.prod(shape)) for shape in shapes]
    budgets = erk_budgets(tensors, sparsity)
    total = sum(count for _, count in tensors)
    assert sum(budgets) == budget_of(total, sparsity)
    assert all(0 <= budget <= count for budget, (_, count) in zip(budgets, tensors, strict=True))


def test_erk_densities_follow_the_paper() -> None:
    """LeNet-300-100 at 80 %: the output layer would be denser than 1, so it is kept whole and e is solved
    again for the others: kept_l = e * sum(shape_l)."""
    shapes = [(300, 784), (100, 300), (10, 100)]
    counts = [math.prod(shape) for shape in shapes]
    keep = sum(counts) - budget_of(sum(counts), 0.8)
    e = (keep - 1000) / (1084 + 400)
    kept = [e * 1084, e * 400, 1000]
    assert kept[0] < counts[0] and kept[1] < counts[1]
    found = erk_budgets(list(zip(shapes, counts, strict=True)), 0.8)
    assert all(abs(count - want - budget) <= 1 for count, want, budget in zip(counts, kept, found, strict=True))


@pytest.mark.parametrize(("n", "s", "want"), [(5, 0.5, 2), (7, 0.5, 4), (10, 0.25, 2), (3, 0.0, 0), (3, 1.0, 3)])
def test_halves_round_to_even(n: int, s: float, want: int) -> None:
    assert budget_of(n, s) == want

"""Gates: how they are read, when they hold, what is said."""

from __future__ import annotations

import math

import pytest

from prunecli.errors import GateFailed, PruneError
from prunecli.evaluation.figures import known
from prunecli.evaluation.gates import OPERATORS, Gate, check_gates, parse_gate, raise_if_failed

PARSED = {
    "accuracy<0.95": ("accuracy", "<", 0.95),
    "accuracy.drop>0.01": ("accuracy.drop", ">", 0.01),
    "f1.drop>1%": ("f1.drop", ">", 0.01),
    " latency.speedup  <  1.5 ": ("latency.speedup", "<", 1.5),
    "file_bytes>2MB": ("file_bytes", ">", 2e6),
    "gzip_bytes>=500KB": ("gzip_bytes", ">=", 500e3),
    "file_bytes>1MiB": ("file_bytes", ">", 2**20),
    "params<=1.5M": ("params", "<=", 1.5e6),
    "sparsity!=50%": ("sparsity", "!=", 0.5),
    "max_abs==0": ("max_abs", "==", 0),
    "max_abs>1e-5": ("max_abs", ">", 1e-5),
    "snr_db<-3": ("snr_db", "<", -3),
    "logits/out:0.cosine<0.9": ("logits/out:0.cosine", "<", 0.9),
}


@pytest.mark.parametrize("text", PARSED)
def test_gates_are_read(text: str) -> None:
    gate = parse_gate(text)
    assert (gate.name, gate.op, gate.limit) == PARSED[text]
    assert gate.expr == text.strip()


# as it stands in the JSON -> the short name
LONG = {
    "delta.accuracy.drop": "accuracy.drop",
    "fidelity.cosine": "cosine",
    "metrics.accuracy": "accuracy",
    "latency_ms.median": "latency.median",
    "cosine": "cosine",
}


@pytest.mark.parametrize("name", LONG)
def test_names_may_be_written_as_they_stand_in_the_json(name: str) -> None:
    gate = parse_gate(f"{name}<1", dict.fromkeys(LONG.values(), (0, 2)))
    assert (gate.name, gate.expr) == (LONG[name], f"{name}<1")


@pytest.mark.parametrize("text", ["", "accuracy", "accuracy<", "<0.5", "accuracy=0.5", "accuracy<high", "a<1 b"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(PruneError, match="--fail-if"):
        parse_gate(text)


def test_unknown_names_get_close_ones() -> None:
    known = dict.fromkeys(["accuracy", "accuracy.drop", "f1", "latency.speedup"], (0, 1))
    with pytest.raises(PruneError, match="no figure named acuracy") as caught:
        parse_gate("acuracy<0.5", known)
    assert "did you mean accuracy" in caught.value.hint
    with pytest.raises(PruneError) as caught:
        parse_gate("qqqqqq<0.5", known)
    assert all(name in caught.value.hint for name in known)
    assert caught.value.exit_code == 2


# operator -> does it hold for (below, equal, above) the limit
HOLDS = {
    "<": (True, False, False),
    "<=": (True, True, False),
    ">": (False, False, True),
    ">=": (False, True, True),
    "==": (False, True, False),
    "!=": (True, False, True),
}


@pytest.mark.parametrize("op", HOLDS)
def test_a_gate_fails_when_it_holds(op: str) -> None:
    gate = parse_gate(f"a{op}1")
    assert tuple(not gate.check({"a": v}).passed for v in (0.5, 1, 1.5)) == HOLDS[op]
    assert not gate.check({"a": math.nan}).passed


# limit, value -> are they equal but for the rounding of a difference
NEAR = [
    ("1%", 0.95 - 0.94, True),
    ("1%", 0.0101, False),
    ("0.01", 0.01 + 1e-11, False),
    ("1e-13", 2e-13, False),
    ("0", 1e-300, False),
    ("40", math.inf, False),
]


@pytest.mark.parametrize(("limit", "value", "equal"), NEAR)
def test_a_limit_reached_exactly_is_not_passed_by_rounding(limit: str, value: float, equal: bool) -> None:
    result = parse_gate(f"a>{limit}").check({"a": value})
    assert result.passed is equal
    assert result.value == value


# gate -> a piece of the hint, where it is decided before anything is measured
DECIDED = {
    "accuracy.drop>1": "did you mean 1%?",
    "accuracy.drop>5": "did you mean 5%?",
    "accuracy.drop>100%": "give one that can",
    "accuracy.drop<-1": "give one that can",
    "accuracy<0": "give one that can",
    "accuracy>1": "did you mean 1%?",
    "accuracy<95": "did you mean 95%?",
    "accuracy>=1.5": "did you mean 1.5%?",
    "accuracy==2": "did you mean 2%?",
    "baseline.top5<90": "did you mean 90%?",
    "f1.gap>1": "did you mean 1%?",
    "log_loss<0": "give one that can",
    "r2>1": "did you mean 1%?",
    "cosine<-1": "give one that can",
    "cosine>1": "did you mean 1%?",
    "top1_agreement>1": "did you mean 1%?",
    "top1_agreement<99": "did you mean 99%?",
    "max_abs<0": "give one that can",
    "sparsity<50": "did you mean 50%?",
    "sparsity.rise<-1": "give one that can",
    "params<0": "give one that can",
    "macs.ratio<0": "give one that can",
    "significance.p<0": "give one that can",
    "latency.speedup<0": "give one that can",
}
OPEN = ("accuracy.drop>1%", "accuracy.drop>=1", "accuracy<1", "accuracy>0", "accuracy.drop>-50%", "r2<-3", "r2.drop>2", "mae.rise>5",
        "log_loss>2", "snr_db<-3", "macs.ratio>0.5", "params.ratio>1", "latency.speedup<1.5", "latency.median>50",
        "cosine<1", "robustness.drop>3")  # fmt: skip


@pytest.mark.parametrize("text", DECIDED)
def test_a_gate_that_is_decided_beforehand_is_refused(text: str) -> None:
    with pytest.raises(
        PruneError, match=r"decided before anything is measured: .* (lies between|is at least|is at most)"
    ) as caught:
        parse_gate(text, known({}))
    assert DECIDED[text] in caught.value.hint and caught.value.exit_code == 2


@pytest.mark.parametrize("text", OPEN)
def test_a_gate_that_may_fail_or_not_is_taken(text: str) -> None:
    assert parse_gate(text, known({})).expr == text


# gate -> a piece of the hint, where the limit is in a unit that the figure does not have
UNITS = {
    "file_bytes>50%": "file_bytes.ratio",
    "baseline.macs>50%": "macs.ratio",
    "latency.median>80%": "latency.speedup",
    "latency.p90>2MB": "3.5ms",
    "params>3ms": "120M",
    "gzip_bytes>3s": "2MB",
    "accuracy<95ms": "write a number",
    "log_loss>2k": "write a number",
    "macs.ratio>2MB": "write a number",
    "mae.rise>5%": "own unit",
    "baseline.rmse>5%": "own unit",
    "snr_db<20%": "own unit",
    "max_abs>1%": "own unit",
    "log_loss>2ms": "own unit",
}


@pytest.mark.parametrize("text", UNITS)
def test_a_limit_in_another_unit_is_refused(text: str) -> None:
    with pytest.raises(PruneError, match="is no figure in") as caught:
        parse_gate(text, known({}))
    assert UNITS[text] in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "file_bytes>2MB",
        "gzip_bytes>2M",
        "macs>1.5G",
        "latency.p10>3.5ms",
        "macs.ratio>50%",
        "r2.drop>1%",
        "mae.rise>5",
        "max_rel>1%",
    ],
)
def test_a_limit_in_the_unit_of_its_figure_is_taken(text: str) -> None:
    assert parse_gate(text, known({})).limit


def test_every_operator_is_tested() -> None:
    assert set(HOLDS) == set(OPERATORS)


def test_infinite_values_are_compared() -> None:
    assert parse_gate("snr_db<40").check({"snr_db": math.inf}).passed
    assert not parse_gate("snr_db<40").check({"snr_db": -math.inf}).passed


def test_a_failed_gate_names_itself_its_value_and_its_limit() -> None:
    results = check_gates([parse_gate("accuracy<0.95"), parse_gate("f1>2")], {"accuracy": 0.9, "f1": 0.5}, "")
    with pytest.raises(GateFailed, match=r"1 of 2 gates failed: accuracy<0.95 \(accuracy is 0.9\)") as caught:
        raise_if_failed(results)
    assert caught.value.exit_code == 1
    raise_if_failed(results[1:])


def test_a_figure_that_was_not_measured() -> None:
    with pytest.raises(PruneError, match="top5 was not measured") as caught:
        check_gates([parse_gate("top5<0.5")], {"accuracy": 1}, "this evaluation has accuracy")
    assert caught.value.exit_code == 2
    assert caught.value.hint == "this evaluation has accuracy"


# what failed -> a piece of the hint: less pruning helps no speed-up
LESS, MORE, AGAIN = "prune less, recover", "prune more (for speed", "measure again when the machine is idle"
ADVICE = [
    (["accuracy<0.95"], [LESS]),
    (["latency.speedup<2"], [MORE]),
    (["latency.speedup<2", "accuracy<0.95"], ["quality asks for less pruning"]),
    (["latency.low<2"], [AGAIN]),
    (["latency.low<2", "accuracy<0.95"], [LESS, "for what is not measurable now, " + AGAIN]),
    (["latency.low<2", "params>1"], [MORE, "for what is not measurable now, " + AGAIN]),
]


def busy(gate: Gate) -> str:
    return "others are busy" if gate.name == "latency.low" else ""


@pytest.mark.parametrize(("texts", "hints"), ADVICE, ids=[" ".join(texts) for texts, _ in ADVICE])
def test_the_hint_fits_what_failed(texts: list[str], hints: list[str]) -> None:
    values = {"accuracy": 0.9, "latency.speedup": 1.1, "latency.low": math.nan, "params": 10}
    results = check_gates([parse_gate(text) for text in texts], values, "", busy)
    with pytest.raises(GateFailed) as caught:
        raise_if_failed(results)
    assert [part for part in (LESS, MORE, AGAIN) if part in caught.value.hint] == [
        part for part in (LESS, MORE, AGAIN) if any(part in hint for hint in hints)
    ]
    assert all(hint in caught.value.hint for hint in hints)

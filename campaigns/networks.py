"""Random cuts of small networks in several spellings, checked by a program that knows nothing of this one: the plan's
positions forced to zero in the original give the outputs of the cut (tests/structures/outside.py)."""

from __future__ import annotations

from pathlib import Path
from random import Random

from onnxruntime.capi.onnxruntime_pybind11_state import Fail, NotImplemented

from campaigns.driver import Campaign, command
from tests.dependency.tables import ALL
from tests.structures.outside import TOLERANCE, compare

REFUSED = ("nothing can be cut", "nothing is removed", "is missed", "cannot be reached", "the original itself")
UNCHECKED = (RuntimeError, Fail, NotImplemented)
"""What onnxruntime raises of originals that it does not run; such a cut was made with --no-verify."""
CRITERIA = ("l1", "l2", "random", "auto")


def case(seed: int, number: int, folder: Path) -> str:
    """A network of the tables of `tests/dependency` with weights of this seed; a random share, budget and criterion."""
    chance, names = Random(f"{seed} {number}"), list(ALL)
    name = names[(seed * 7919 + number) % len(names)]
    options = ALL[name].options
    if options.get("unproven") or options.get("random"):
        return ""
    path, plan, out = folder / "m.onnx", folder / "p.json", folder / "o.onnx"
    path.write_bytes(ALL[name].net(chance.randrange(1 << 30)).model().SerializeToString())
    budget, most = chance.choice((("--ratio", 0.8), ("--params", 0.9), ("--macs", 0.9)))
    done = command(
        "structured", path, budget, f"{chance.uniform(0.2, most):.3f}", "--criterion", chance.choice(CRITERIA),
        "--seed", seed, "--granularity", chance.choice(("channel,head", "channel", "all")), "--save-plan", plan,
        "-o", out, *chance.choice(((), ("--no-verify",))),
    )  # fmt: skip
    if done.fault or done.code == 2:
        told = any(text in done.err for text in REFUSED)
        return done.fault or ("" if told else f"{name}: {done.err.splitlines()[-2][:90]}")
    if '"averaged": []' not in plan.read_text():  # approximate: no masked original computes the same
        return ""
    try:
        error = compare(path, plan, out)
    except UNCHECKED:
        return ""
    return f"{name}: off by {error:.2g}" if error > 10 * TOLERANCE else ""  # logarithms near 0 lose digits


if __name__ == "__main__":
    Campaign("cuts of small networks", "none wrong", case, 300).main()

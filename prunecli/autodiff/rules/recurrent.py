"""LSTM, GRU and RNN: the forward kernel stays whole; the backward pass is written out over time.

All hidden states are in the output Y, so every gate is recomputed for all steps in one product; only the recurrence
of the gradient itself takes a handful of small nodes per step. Shapes: T steps, B samples, H hidden, G gates.
Sources: Hochreiter and Schmidhuber 1997; Cho et al. 2014; formulas and gate order as in the ONNX operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import GradientContext, Gradients, rule

Value = ir.Value
MAX_STEPS = 512
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_ARGUMENTS = {"HardSigmoid": (0.2, 0.5)}  # alpha and beta, by default
Slope = Callable[[Ops, Value, tuple[float, ...]], Value]
SLOPES: dict[str, Slope] = {
    "Sigmoid": lambda ops, y, given: ops.mul(y, ops.one_minus(y)),
    "Tanh": lambda ops, y, given: ops.one_minus(ops.square(y)),
    "Relu": lambda ops, y, given: ops.positive(y),
    "HardSigmoid": lambda ops, y, given: ops.mul(ops.mul(ops.positive(y), ops.positive(ops.one_minus(y))), given[0]),
}
"""The derivative of each activation, from its result."""


@dataclass(frozen=True)
class Activation:
    """One of a cell's functions, by name, with its alpha and beta if it has them."""

    name: str
    given: tuple[float, ...] = ()

    def value(self, ops: Ops, z: Value) -> Value:
        named: dict[str, Any] = dict(zip(("alpha", "beta"), self.given, strict=False))
        return ops.op(self.name, z, **named)

    def slope(self, ops: Ops, y: Value) -> Value:
        return SLOPES[self.name](ops, y, self.given)


@dataclass
class Direction:
    """One direction of the layer. Sequences have shape (T, B, ...), in the order of the input's time axis.

    `order`: the steps as the layer took them. `activations`: f, g and h of the ONNX operators; `clip`: of what gates
    read, 0 for none. `h0`, `c0`: initial states (B, H). `dy`: gradient of each step's
    hidden state; `dh`, `dc`: gradients of the last states, None where unused.
    """

    ops: Ops
    x: Value
    w: Value
    r: Value
    wb: Value
    rb: Value
    y: Value
    h0: Value
    c0: Value | None
    dy: Value | None
    dh: Value | None
    dc: Value | None
    order: list[int]
    activations: list[Activation]
    clip: float = 0.0
    before_reset: bool = False

    @property
    def hidden(self) -> int:
        return self.ops.shape(self.r)[1]

    @property
    def batch(self) -> int:
        return self.ops.shape(self.x)[1]

    def previous(self, sequence: Value, initial: Value) -> Value:
        """The sequence one step earlier."""
        ops, steps = self.ops, len(self.order)
        first = ops.reshape(initial, (1, *ops.shape(initial)))
        if self.order[0] == 0:
            return ops.concat([first, *([ops.slice(sequence, [0], [0], [steps - 1])] if steps > 1 else [])], 0)
        return ops.concat([*([ops.slice(sequence, [0], [1], [steps])] if steps > 1 else []), first], 0)

    def rows(self, sequence: Value) -> Value:
        shape = self.ops.shape(sequence)
        return self.ops.reshape(sequence, (shape[0] * shape[1], shape[2]))

    def steps(self, sequence: Value) -> list[Value]:
        """The steps of a sequence, each (B, ...)."""
        ops, shape = self.ops, self.ops.shape(sequence)
        if shape[0] == 1:
            return [ops.reshape(sequence, shape[1:])]
        parts = ops.split(sequence, [1] * shape[0], 0)
        return [ops.reshape(p, shape[1:]) for p in parts]

    def in_order(self, parts: dict[int, Value]) -> Value:
        """The sequence of what the steps yield."""
        return self.ops.stack([parts[t] for t in sorted(parts)])

    def input_part(self) -> Value:
        """X W' + Wb for all steps, (T, B, G H)."""
        return self.affine(self.x, self.w, self.wb)

    def affine(self, sequence: Value, weight: Value, bias: Value) -> Value:
        flat = self.ops.op("Gemm", self.rows(sequence), weight, bias, transB=1)
        return self.ops.reshape(flat, (len(self.order), self.batch, self.ops.shape(weight)[0]))

    def gates(self, sequence: Value, count: int) -> tuple[Value, ...]:
        return self.ops.split(sequence, [self.hidden] * count, 2)

    def activate(self, which: int, z: Value, clip: bool = True) -> tuple[Value, Value]:
        """f(clip(z)) and its derivative, which is 0 outside the bounds. onnxruntime clips gates, not the cell state."""
        ops, function = self.ops, self.activations[which]
        if not (clip and self.clip):
            y = function.value(ops, z)
            return y, function.slope(ops, y)
        y = function.value(ops, ops.op("Clip", z, ops.scalar(-self.clip, z), ops.scalar(self.clip, z)))
        inside = ops.cast(ops.op("LessOrEqual", ops.op("Abs", z), ops.scalar(self.clip, z)), z)
        return y, ops.mul(function.slope(ops, y), inside)


@dataclass
class Back:
    """Gradients of one direction: of the gates as fed by x (`inner`) and by the hidden state, and of the states."""

    inner: Value
    dr: Value
    drb: Value
    dh0: Value
    dc0: Value | None = None


Cell = Callable[[Direction], Back]


def _walk(d: Direction, step: Callable[[int, Value], Value]) -> Value:
    """Run the gradient back through time: `step(t, dh)` returns the gradient of the state before step t."""
    ops = d.ops
    dys = d.steps(d.dy) if d.dy is not None else None
    carried = d.dh
    for t in reversed(d.order):
        parts = [p for p in (carried, dys[t] if dys else None) if p is not None]
        dh = ops.total(parts) if parts else ops.zeros((d.batch, d.hidden), d.x)
        carried = step(t, dh)
    assert carried is not None
    return carried


def _weight_products(d: Direction, gates: Value, states: Value) -> tuple[Value, Value]:
    """(dR, dRb) of gates = states R' + Rb."""
    rows = d.rows(gates)
    return d.ops.matmul(rows, d.rows(states), ta=True), d.ops.sum(rows, [0])


def _lstm(d: Direction) -> Back:
    """Gates i, o, f, g; c = f c' + i g; h = o h(c)."""
    ops = d.ops
    assert d.c0 is not None
    hp = d.previous(d.y, d.h0)
    z = ops.add(d.input_part(), d.affine(hp, d.r, d.rb))
    zi, zo, zf, zg = d.gates(z, 4)
    (i, di), (o, do), (f, df), (g, dg) = d.activate(0, zi), d.activate(0, zo), d.activate(0, zf), d.activate(1, zg)
    cells = _cell_states(d, f, ops.mul(i, g))
    (tc, dtc), cp = d.activate(2, cells, clip=False), d.previous(cells, d.c0)
    into_c = d.steps(ops.mul(o, dtc))
    factors = [ops.mul(g, di), ops.mul(tc, do), ops.mul(cp, df), ops.mul(i, dg)]
    wide = d.steps(ops.concat(factors, 2))
    keep = d.steps(f)
    gates: dict[int, Value] = {}
    cell = [d.dc]

    def step(t: int, dh: Value) -> Value:
        dc = ops.mul(dh, into_c[t])
        if cell[0] is not None:
            dc = ops.add(dc, cell[0])
        gates[t] = ops.mul(ops.concat([dc, dh, dc, dc], 1), wide[t])
        cell[0] = ops.mul(dc, keep[t])
        return ops.matmul(gates[t], d.r)

    dh0 = _walk(d, step)
    stacked = d.in_order(gates)
    return Back(stacked, *_weight_products(d, stacked, hp), dh0, cell[0])


def _cell_states(d: Direction, f: Value, new: Value) -> Value:
    ops = d.ops
    keep, add = d.steps(f), d.steps(new)
    c = d.c0
    states: dict[int, Value] = {}
    for t in d.order:
        assert c is not None
        c = states[t] = ops.add(ops.mul(keep[t], c), add[t])
    return d.in_order(states)


def _gru(d: Direction) -> Back:
    """Gates z, r, n; h = (1 - z) n + z h'; with `linear_before_reset` the reset acts after the product."""
    ops, n = d.ops, d.hidden
    hp = d.previous(d.y, d.h0)
    xz, xr, xn = d.gates(d.input_part(), 3)
    rz, rn = ops.slice(d.r, [0], [0], [2 * n]), ops.slice(d.r, [0], [2 * n], [3 * n])
    bz, bn = ops.slice(d.rb, [0], [0], [2 * n]), ops.slice(d.rb, [0], [2 * n], [3 * n])
    hz, hr = d.gates(d.affine(hp, rz, bz), 2)
    (z, dz), (r, dr) = d.activate(0, ops.add(xz, hz)), d.activate(0, ops.add(xr, hr))
    source = hp if d.before_reset else ops.mul(r, hp)
    q = d.affine(source, rn, bn)
    new, dnew = d.activate(1, ops.add(xn, ops.mul(r, q) if d.before_reset else q))
    kn, kz = ops.mul(ops.one_minus(z), dnew), ops.mul(ops.sub(hp, new), dz)
    if d.before_reset:
        return _gru_after(d, (kz, ops.mul(ops.mul(kn, q), dr), kn), r, z=z, hp=hp)
    return _gru_before(d, (kz, kn, ops.mul(hp, dr)), (rz, rn), states=(r, z, hp), source=source)


def _gru_after(d: Direction, factors: tuple[Value, Value, Value], r: Value, z: Value, hp: Value) -> Back:
    """Every gate's gradient is a multiple of dh."""
    ops = d.ops
    kz, kr, kn = factors
    wide, keep = d.steps(ops.concat([kz, kr, ops.mul(kn, r)], 2)), d.steps(z)
    hidden: dict[int, Value] = {}
    dhs: dict[int, Value] = {}

    def step(t: int, dh: Value) -> Value:
        dhs[t] = dh
        hidden[t] = ops.mul(ops.concat([dh, dh, dh], 1), wide[t])
        return ops.add(ops.matmul(hidden[t], d.r), ops.mul(dh, keep[t]))

    dh0 = _walk(d, step)
    through = d.in_order(dhs)
    recurrent = d.in_order(hidden)
    inner = ops.mul(ops.concat([through] * 3, 2), ops.concat([kz, kr, kn], 2))
    return Back(inner, *_weight_products(d, recurrent, hp), dh0)


def _gru_before(
    d: Direction, factors: tuple[Value, Value, Value], weights: tuple[Value, Value], states: tuple[Value, Value, Value],
    source: Value,
) -> Back:  # fmt: skip
    ops = d.ops
    r, z, hp = states
    kz, kn, kr, resets, keep = (d.steps(v) for v in (*factors, r, z))
    gates: dict[int, Value] = {}

    def step(t: int, dh: Value) -> Value:
        dn = ops.mul(dh, kn[t])
        ds = ops.matmul(dn, weights[1])
        dzr = ops.concat([ops.mul(dh, kz[t]), ops.mul(ds, kr[t])], 1)
        gates[t] = ops.concat([dzr, dn], 1)
        direct = ops.add(ops.mul(ds, resets[t]), ops.mul(dh, keep[t]))
        return ops.add(ops.matmul(dzr, weights[0]), direct)

    dh0 = _walk(d, step)
    stacked = d.in_order(gates)
    zr, n = ops.slice(stacked, [2], [0], [2 * d.hidden]), ops.slice(stacked, [2], [2 * d.hidden], [3 * d.hidden])
    dr = ops.concat([_weight_products(d, zr, hp)[0], _weight_products(d, n, source)[0]], 0)
    return Back(stacked, dr, ops.sum(d.rows(stacked), [0]), dh0=dh0)


def _rnn(d: Direction) -> Back:
    """h = f(x W' + h' R' + b)."""
    ops, hp = d.ops, d.previous(d.y, d.h0)
    if d.clip:
        slope = d.activate(0, ops.add(d.input_part(), d.affine(hp, d.r, d.rb)))[1]
    else:
        slope = d.activations[0].slope(ops, d.y)
    slopes = d.steps(slope)
    gates: dict[int, Value] = {}

    def step(t: int, dh: Value) -> Value:
        gates[t] = ops.mul(dh, slopes[t])
        return ops.matmul(gates[t], d.r)

    dh0 = _walk(d, step)
    stacked = d.in_order(gates)
    return Back(stacked, *_weight_products(d, stacked, hp), dh0)


CELLS: dict[str, Cell] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


@rule("LSTM", "GRU", "RNN")
def recurrent(g: GradientContext, *dys: Value | None) -> Gradients:
    """The gates of all steps in one product, then the gradient written out step by step."""
    _check(g)
    ops = g.ops
    directions = [_direction(g, k, [*dys, None, None][:3]) for k in range(g.shape(1)[0])]
    backs = [CELLS[g.node.op_type](d) for d in directions]
    dx = ops.total([_input(d, b) for d, b in zip(directions, backs, strict=True)]) if g.needs(0) else None
    dw = ops.stack([ops.matmul(d.rows(b.inner), d.rows(d.x), ta=True)
                        for d, b in zip(directions, backs, strict=True)])  # fmt: skip
    dr = ops.stack([b.dr for b in backs])
    db = ops.stack([ops.concat([ops.sum(d.rows(b.inner), [0]), b.drb], 0)
                        for d, b in zip(directions, backs, strict=True)])  # fmt: skip
    dh0 = ops.stack([b.dh0 for b in backs])
    dc0 = ops.stack([b.dc0 for b in backs if b.dc0 is not None]) if backs[0].dc0 is not None else None
    return [dx, dw, dr, db, None, dh0, dc0]


def _input(d: Direction, back: Back) -> Value:
    return d.ops.reshape(d.ops.matmul(d.rows(back.inner), d.w), d.ops.shape(d.x))


def _check(g: GradientContext) -> None:
    """What is outside the standard cell is refused by name."""
    node, steps = g.node, g.shape()[0]
    unknown = [a.name for a in _activations(g) if a.name not in SLOPES]
    if unknown:
        raise g.refuse(f"its activation {unknown[0]} has no rule")
    for name in ("layout", "input_forget"):
        if name in node.attributes and node.attributes[name].value:
            raise g.refuse(f"the attribute {name} is not supported")
    if g.input(7) is not None:
        raise g.refuse("peephole weights are not supported")
    if g.input(4) is not None and set(g.known(4) or ()) != {steps}:
        raise g.refuse("sequences of different lengths are not supported")
    if steps > MAX_STEPS:
        raise g.refuse(f"{steps} steps are more than the {MAX_STEPS} that are written out")


def _activations(g: GradientContext) -> list[Activation]:
    """Of every direction in turn; alphas and betas go to those that take them, in order."""
    given = g.node.attributes
    names = list(given["activations"].as_strings()) if "activations" in given else []
    lists = [iter(given[n].as_floats() if n in given else ()) for n in ("activation_alpha", "activation_beta")]
    found = []
    for name in names or _DEFAULTS[g.node.op_type] * g.shape(1)[0]:
        usual = _ARGUMENTS.get(name, ())
        found.append(Activation(name, tuple(next(own, default) for own, default in zip(lists, usual, strict=False))))
    return found


def _direction(g: GradientContext, k: int, dys: list[Value | None]) -> Direction:
    ops, steps = g.ops, g.shape()[0]

    def pick(value: Value | None, axis: int = 0) -> Value | None:
        if value is None:
            return None
        shape = ops.shape(value)
        return ops.reshape(ops.slice(value, [axis], [k], [k + 1]), (*shape[:axis], *shape[axis + 1 :]))

    def must(value: Value | None) -> Value:
        assert value is not None
        return value

    w, r = must(pick(g.x(1))), must(pick(g.x(2)))
    size, hidden = ops.shape(r)
    zeros = ops.const(np.zeros((g.shape()[1], hidden), np.float32))
    bias = pick(g.input(3)) or ops.const(np.zeros(2 * size, np.float32))
    backwards = g.text("direction", "forward") == "reverse" or k == 1
    order = list(reversed(range(steps))) if backwards else list(range(steps))
    count = len(_DEFAULTS[g.node.op_type])
    return Direction(
        ops, g.x(0), w, r=r,
        wb=ops.slice(bias, [0], [0], [size]), rb=ops.slice(bias, [0], [size], [2 * size]),
        y=must(pick(_sequence(g), 1)), h0=pick(g.input(5)) or zeros,
        c0=(pick(g.input(6)) or zeros) if g.node.op_type == "LSTM" else None,
        dy=pick(dys[0], 1), dh=pick(dys[1]), dc=pick(dys[2]), order=order,
        activations=_activations(g)[k * count : (k + 1) * count],
        clip=g.real("clip", 0.0), before_reset=bool(g.integer("linear_before_reset")),
    )  # fmt: skip


def _sequence(g: GradientContext) -> Value:
    """All hidden states (T, directions, B, H): the first output, which the model may not name."""
    y, ops = g.node.outputs[0], g.ops
    if not y.name:
        y.name = ops.fresh_name()
    if y not in ops.facts.shapes:
        ops.facts.shapes[y] = (g.shape()[0], g.shape(1)[0], g.shape()[1], g.shape(2)[2])
        ops.facts.dtypes[y] = int(ir.DataType.FLOAT)
    return y

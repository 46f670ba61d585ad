"""LSTM, GRU and RNN: the forward kernel stays whole; the backward pass is written out over time.

All hidden states are in the output Y, so every gate is recomputed for all steps in one product; only the recurrence
of the gradient itself takes a handful of small nodes per step. Shapes: T steps, B samples, H hidden, G gates.
Sources: Hochreiter and Schmidhuber 1997; Cho et al. 2014; formulas and gate order as in the ONNX operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunecli.autodiff.ops import Ops
from prunecli.autodiff.registry import Context, Gradient, rule

Value = ir.Value
MAX_STEPS = 512
_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


@dataclass
class Direction:
    """One direction of the layer. Sequences have shape (T, B, ...), in the order of the input's time axis.

    `order`: the steps as the layer took them. `h0`, `c0`: initial states (B, H). `dy`: gradient of each step's
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
        parts = ops.many("Split", sequence, ops.ints([1] * shape[0]), outputs=shape[0], axis=0)
        return [ops.reshape(p, shape[1:]) for p in parts]

    def stack(self, parts: list[Value]) -> Value:
        ops = self.ops
        return ops.concat([ops.reshape(p, (1, *ops.shape(p))) for p in parts], 0)

    def input_part(self) -> Value:
        """X W' + Wb for all steps, (T, B, G H)."""
        return self.affine(self.x, self.w, self.wb)

    def affine(self, sequence: Value, weight: Value, bias: Value) -> Value:
        flat = self.ops.op("Gemm", self.rows(sequence), weight, bias, transB=1)
        return self.ops.reshape(flat, (len(self.order), self.batch, self.ops.shape(weight)[0]))

    def gates(self, sequence: Value, count: int) -> list[Value]:
        sizes = self.ops.ints([self.hidden] * count)
        return list(self.ops.many("Split", sequence, sizes, outputs=count, axis=2))

    def slope(self, y: Value) -> Value:
        """y (1 - y): the derivative of a sigmoid with result y."""
        return self.ops.mul(y, self.ops.one_minus(y))


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
    """Gates i, o, f, g; c = f c' + i g; h = o tanh(c)."""
    ops = d.ops
    assert d.c0 is not None
    hp = d.previous(d.y, d.h0)
    z = ops.op("Add", d.input_part(), d.affine(hp, d.r, d.rb))
    zi, zo, zf, zg = d.gates(z, 4)
    i, o, f = (ops.op("Sigmoid", v) for v in (zi, zo, zf))
    g = ops.op("Tanh", zg)
    cells = _cell_states(d, f, ops.mul(i, g))
    tc, cp = ops.op("Tanh", cells), d.previous(cells, d.c0)
    into_c = d.steps(ops.mul(o, ops.one_minus(ops.mul(tc, tc))))
    factors = [ops.mul(g, d.slope(i)), ops.mul(tc, d.slope(o)), ops.mul(cp, d.slope(f)),
               ops.mul(i, ops.one_minus(ops.mul(g, g)))]  # fmt: skip
    wide = d.steps(ops.concat(factors, 2))
    keep = d.steps(f)
    gates: dict[int, Value] = {}
    cell = [d.dc]

    def step(t: int, dh: Value) -> Value:
        dc = ops.mul(dh, into_c[t])
        if cell[0] is not None:
            dc = ops.op("Add", dc, cell[0])
        gates[t] = ops.mul(ops.concat([dc, dh, dc, dc], 1), wide[t])
        cell[0] = ops.mul(dc, keep[t])
        return ops.matmul(gates[t], d.r)

    dh0 = _walk(d, step)
    stacked = d.stack([gates[t] for t in sorted(gates)])
    return Back(stacked, *_weight_products(d, stacked, hp), dh0, cell[0])


def _cell_states(d: Direction, f: Value, new: Value) -> Value:
    ops = d.ops
    keep, add = d.steps(f), d.steps(new)
    c = d.c0
    states: dict[int, Value] = {}
    for t in d.order:
        assert c is not None
        c = states[t] = ops.op("Add", ops.mul(keep[t], c), add[t])
    return d.stack([states[t] for t in sorted(states)])


def _gru(d: Direction) -> Back:
    """Gates z, r, n; h = (1 - z) n + z h'; with `linear_before_reset` the reset acts after the product."""
    ops, n = d.ops, d.hidden
    hp = d.previous(d.y, d.h0)
    xz, xr, xn = d.gates(d.input_part(), 3)
    rz, rn = ops.slice(d.r, [0], [0], [2 * n]), ops.slice(d.r, [0], [2 * n], [3 * n])
    bz, bn = ops.slice(d.rb, [0], [0], [2 * n]), ops.slice(d.rb, [0], [2 * n], [3 * n])
    hz, hr = d.gates(d.affine(hp, rz, bz), 2)
    z, r = ops.op("Sigmoid", ops.op("Add", xz, hz)), ops.op("Sigmoid", ops.op("Add", xr, hr))
    source = hp if d.before_reset else ops.mul(r, hp)
    q = d.affine(source, rn, bn)
    new = ops.op("Tanh", ops.op("Add", xn, ops.mul(r, q) if d.before_reset else q))
    kn = ops.mul(ops.one_minus(z), ops.one_minus(ops.mul(new, new)))
    kz = ops.mul(ops.sub(hp, new), d.slope(z))
    if d.before_reset:
        return _gru_after(d, (kz, ops.mul(ops.mul(kn, q), d.slope(r)), kn), r, z, hp)
    return _gru_before(d, (kz, kn), (rz, rn), (r, z, hp), source)


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
        return ops.op("Add", ops.matmul(hidden[t], d.r), ops.mul(dh, keep[t]))

    dh0 = _walk(d, step)
    through = d.stack([dhs[t] for t in sorted(dhs)])
    recurrent = d.stack([hidden[t] for t in sorted(hidden)])
    inner = ops.mul(ops.concat([through] * 3, 2), ops.concat([kz, kr, kn], 2))
    return Back(inner, *_weight_products(d, recurrent, hp), dh0)


def _gru_before(
    d: Direction, factors: tuple[Value, Value], weights: tuple[Value, Value], states: tuple[Value, Value, Value],
    source: Value,
) -> Back:  # fmt: skip
    ops = d.ops
    r, z, hp = states
    kz, kn, resets, keep = (d.steps(v) for v in (*factors, r, z))
    kr = d.steps(ops.mul(hp, d.slope(r)))
    gates: dict[int, Value] = {}

    def step(t: int, dh: Value) -> Value:
        dn = ops.mul(dh, kn[t])
        ds = ops.matmul(dn, weights[1])
        dzr = ops.concat([ops.mul(dh, kz[t]), ops.mul(ds, kr[t])], 1)
        gates[t] = ops.concat([dzr, dn], 1)
        direct = ops.op("Add", ops.mul(ds, resets[t]), ops.mul(dh, keep[t]))
        return ops.op("Add", ops.matmul(dzr, weights[0]), direct)

    dh0 = _walk(d, step)
    stacked = d.stack([gates[t] for t in sorted(gates)])
    zr, n = ops.slice(stacked, [2], [0], [2 * d.hidden]), ops.slice(stacked, [2], [2 * d.hidden], [3 * d.hidden])
    dr = ops.concat([_weight_products(d, zr, hp)[0], _weight_products(d, n, source)[0]], 0)
    return Back(stacked, dr, ops.sum(d.rows(stacked), [0]), dh0)


def _rnn(d: Direction) -> Back:
    """h = tanh(x W' + h' R' + b)."""
    ops = d.ops
    slopes = d.steps(ops.one_minus(ops.mul(d.y, d.y)))
    gates: dict[int, Value] = {}

    def step(t: int, dh: Value) -> Value:
        gates[t] = ops.mul(dh, slopes[t])
        return ops.matmul(gates[t], d.r)

    dh0 = _walk(d, step)
    stacked = d.stack([gates[t] for t in sorted(gates)])
    return Back(stacked, *_weight_products(d, stacked, d.previous(d.y, d.h0)), dh0)


CELLS: dict[str, Cell] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


@rule("LSTM", "GRU", "RNN")
def recurrent(g: Context, node: ir.Node, *dys: Value | None) -> list[Gradient]:
    """The gates of all steps in one product, then the gradient written out step by step."""
    _check(g)
    ops = g.ops
    directions = [_direction(g, k, [*dys, None, None][:3]) for k in range(g.shape(1)[0])]
    backs = [CELLS[node.op_type](d) for d in directions]
    dx = ops.total([_input(d, b) for d, b in zip(directions, backs, strict=True)]) if g.needs(0) else None
    dw = _stacked(ops, [ops.matmul(d.rows(b.inner), d.rows(d.x), ta=True)
                        for d, b in zip(directions, backs, strict=True)])  # fmt: skip
    dr = _stacked(ops, [b.dr for b in backs])
    db = _stacked(ops, [ops.concat([ops.sum(d.rows(b.inner), [0]), b.drb], 0)
                        for d, b in zip(directions, backs, strict=True)])  # fmt: skip
    dh0 = _stacked(ops, [b.dh0 for b in backs])
    dc0 = _stacked(ops, [b.dc0 for b in backs if b.dc0 is not None]) if backs[0].dc0 is not None else None
    return [dx, dw, dr, db, None, dh0, dc0]


def _stacked(ops: Ops, parts: list[Value]) -> Value:
    return ops.concat([ops.reshape(p, (1, *ops.shape(p))) for p in parts], 0)


def _input(d: Direction, back: Back) -> Value:
    return d.ops.reshape(d.ops.matmul(d.rows(back.inner), d.w), d.ops.shape(d.x))


def _check(g: Context) -> None:
    """What is outside the standard cell is refused by name."""
    node, steps = g.node, g.shape()[0]
    plain = _DEFAULTS[node.op_type] * g.shape(1)[0]
    given = node.attributes.get("activations")
    if given is not None and list(given.as_strings()) != plain:
        raise g.refuse(f"its activations are not {', '.join(plain)}")
    for name in ("clip", "layout", "input_forget"):
        if name in node.attributes and node.attributes[name].value:
            raise g.refuse(f"the attribute {name} is not supported")
    if g.input(7) is not None:
        raise g.refuse("peephole weights are not supported")
    if g.input(4) is not None and set(g.known(4) or ()) != {steps}:
        raise g.refuse("sequences of different lengths are not supported")
    if steps > MAX_STEPS:
        raise g.refuse(f"{steps} steps are more than the {MAX_STEPS} that are written out")


def _direction(g: Context, k: int, dys: list[Value | None]) -> Direction:
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
    return Direction(
        ops, g.x(0), w, r, ops.slice(bias, [0], [0], [size]), ops.slice(bias, [0], [size], [2 * size]),
        must(pick(_sequence(g), 1)), pick(g.input(5)) or zeros,
        (pick(g.input(6)) or zeros) if g.node.op_type == "LSTM" else None,
        pick(dys[0], 1), pick(dys[1]), pick(dys[2]), order, bool(g.integer("linear_before_reset")),
    )  # fmt: skip


def _sequence(g: Context) -> Value:
    """All hidden states (T, directions, B, H): the first output, which the model may not name."""
    y, ops = g.node.outputs[0], g.ops
    if not y.name:
        y.name = ops.fresh_name()
    if y not in ops.facts.shapes:
        ops.facts.shapes[y] = (g.shape()[0], g.shape(1)[0], g.shape()[1], g.shape(2)[2])
        ops.facts.dtypes[y] = int(ir.DataType.FLOAT)
    return y

"""Damaged model files: no internal error, no crash, no hang; and what onnxruntime opens is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import onnx
from google.protobuf.message import Message

from campaigns.driver import Campaign, Ran, command
from tests.dependency.tables import ALL

NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 16, 1 << 31, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -1.0, 1e-30, 3e38, float("inf"), float("nan"))
TEXTS = ("", "x0", "é", "a\0b", "n" * 70_000, "../../etc/passwd", "[red]", "%s", "batch")
UNSEEN = ("is not UTF-8 text", " needs ")
"""Of refusals: names that are no text, tensors of another size than their shape says, which onnx and onnxruntime do not
look at where nothing reads them."""
LINES = (
    ("magnitude", "--sparsity", ".5"),
    ("structured", "--ratio", ".5", "--granularity", "all"),
    ("structured", "--macs", ".6", "--no-verify"),
    ("oneshot", "--data", "synthetic", "--sparsity", ".5", "--limit", "8"),
    ("magnitude", "--pattern", "2:4", "--pack", "--external-data", "always"),
    ("evaluate", "--no-latency"),
    ("pack", "--min-saving", "-9"),
)


@cache
def corpus() -> tuple[bytes, ...]:
    """One small model per operator and spelling; weights of some stored apart from the others' kinds."""
    return tuple(case.net().model().SerializeToString() for case in ALL.values())


def in_bytes(data: bytes, chance: Random) -> bytes:
    """Bits and bytes changed, pieces lost, doubled or taken from another model."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at, size = chance.randrange(len(out) + 1), chance.choice((1, 1, 2, 4, 16, 200))
        way = chance.randrange(6)
        if way == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif way == 1 and at < len(out):
            out[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif way == 2:
            del out[at : at + size]
        elif way == 3:
            out[at:at] = out[at : at + size]
        elif way == 4:
            other = chance.choice(corpus())
            place = chance.randrange(len(other))
            out[at : at + size] = other[place : place + size]
        elif chance.random() < 0.3:
            del out[at:]
    return bytes(out)


def in_fields(data: bytes, chance: Random) -> bytes:
    """Fields changed, wherever they are in the message."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        message, described = chance.choice(list(_fields(model)))
        try:
            (_change_many if described.is_repeated else _change_one)(message, described, chance)
        except (TypeError, ValueError):  # a value that protobuf itself does not take
            continue
    return bytes(model.SerializeToString())


def _fields(message: Message) -> Iterator[tuple[Message, Any]]:
    """Every field of every message inside, those that are set; and one more of each message that is not."""
    for described, value in message.ListFields():
        yield message, described
        if described.message_type:
            for each in value if described.is_repeated else [value]:
                yield from _fields(each)
    unset = [f for f in message.DESCRIPTOR.fields if not f.is_repeated and not f.message_type]
    if unset:
        yield message, unset[len(message.ListFields()) % len(unset)]


def _value(described: Any, chance: Random, old: Any) -> Any:
    kinds: dict[Any, Callable[[], Any]] = {
        described.CPPTYPE_STRING: lambda: _text(described, chance, old),
        described.CPPTYPE_FLOAT: lambda: chance.choice(FLOATS),
        described.CPPTYPE_DOUBLE: lambda: chance.choice(FLOATS),
        described.CPPTYPE_ENUM: lambda: chance.choice([v.number for v in described.enum_type.values]),
        described.CPPTYPE_BOOL: lambda: not old,
    }
    number = chance.choice((*NUMBERS, *([old + 1, old - 1, old * 2] if isinstance(old, int) else [])))
    return kinds.get(described.cpp_type, lambda: number)()


def _text(described: Any, chance: Random, old: Any) -> Any:
    if described.type == described.TYPE_BYTES:
        return chance.choice((b"", old[:-1], old + b"\0", old[: len(old) // 2], b"\xff" * len(old)))
    node = chance.choice(onnx.ModelProto.FromString(chance.choice(corpus())).graph.node)
    return chance.choice((*TEXTS, old + "x", node.op_type, node.input[0] if node.input else "", node.output[0]))


def _change_one(message: Any, described: Any, chance: Random) -> None:
    if described.message_type or chance.random() < 0.2:
        message.ClearField(described.name)
    else:
        setattr(message, described.name, _value(described, chance, getattr(message, described.name)))


def _change_many(message: Any, described: Any, chance: Random) -> None:
    values = getattr(message, described.name)
    at, way = chance.randrange(len(values)), chance.randrange(5)
    if way == 0:
        del values[at]
    elif way == 1:
        values.append(values[at])
    elif way == 2:
        items = [*values]
        chance.shuffle(items)
        del values[:]
        values.extend(items)
    elif way == 3:
        del values[:]
    elif described.message_type:
        values[at].CopyFrom(values[chance.randrange(len(values))])
    else:
        values[at] = _value(described, chance, values[at])


def deep(data: bytes, chance: Random) -> bytes:
    """Functions that call each other, or branches in branches, thousands deep."""
    model, levels = onnx.ModelProto.FromString(data), chance.choice((10, 40, 90, 200, 2000))
    if chance.random() < 0.5:
        model.opset_import.add(domain="deep", version=1)
        for level in range(levels):
            last = level == levels - 1
            node = onnx.NodeProto(op_type="Relu" if last else f"f{level + 1}", domain="" if last else "deep",
                                  input=["a"], output=["b"])  # fmt: skip
            function = model.functions.add(domain="deep", name=f"f{level}", input=["a"], output=["b"], node=[node])
            function.opset_import.extend(model.opset_import)
        call = model.graph.node.add(op_type="f0", domain="deep", output=["deep_out"])
        call.input.append(model.graph.input[0].name)
    else:
        graph = onnx.GraphProto(name="inmost")
        graph.node.add(op_type="Identity", input=[model.graph.input[0].name], output=["y"])
        graph.output.add(name="y")
        for level in range(min(levels, 30)):  # protobuf takes 100 messages in each other
            outer = onnx.GraphProto(name=f"g{level}")
            outer.node.add(op_type="Constant", output=["c"]).attribute.add(
                name="value_int", type=onnx.AttributeProto.INT, i=1
            )
            outer.node.add(op_type="Cast", input=["c"], output=["cond"]).attribute.add(
                name="to", type=onnx.AttributeProto.INT, i=onnx.TensorProto.BOOL
            )
            branch = outer.node.add(op_type="If", input=["cond"], output=["y"])
            for name in ("then_branch", "else_branch"):
                branch.attribute.add(name=name, type=onnx.AttributeProto.GRAPH).g.CopyFrom(
                    graph if name == "then_branch" else onnx.GraphProto(name="e", node=graph.node[:0])
                )
            outer.output.add(name="y")
            graph = outer
        model.graph.node.extend(graph.node)
    return bytes(model.SerializeToString())


def damaged(seed: int, number: int) -> bytes:
    """Model `number` of this seed."""
    chance = Random(f"{seed} {number}")
    ways = [in_bytes, *[in_fields] * 7, *([deep] if number % 50 == 0 else [])]
    return (deep if number % 50 == 0 else chance.choice(ways))(chance.choice(corpus()), chance)


def case(seed: int, number: int, folder: Path) -> str:
    path = folder / "m.onnx"
    path.write_bytes(damaged(seed, number))
    name, *options = LINES[number % len(LINES)]
    seen = command("inspect", path)
    if not seen.fault and seen.code == 0:
        seen = command(name, path, *options)
        return seen.fault and f"{name}: {seen.fault}"
    return (seen.fault and f"inspect: {seen.fault}") or _refused(seen, path)


def _refused(seen: Ran, path: Path) -> str:
    """What is wrong with refusing this file: that it is ONNX, and onnxruntime opens it."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnx.checker.check_model(str(path))  # what is no ONNX may be refused, whatever onnxruntime makes of it
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception:
        return ""
    message = seen.err[seen.err.rindex("error: ") :].splitlines()[0].replace(str(path), "M")
    if any(text in message for text in UNSEEN):
        return ""
    return "onnxruntime opens what is refused: " + re.sub(r"'[^']*'|\[[^]]*\]|\d+", "_", message)[:110]


if __name__ == "__main__":
    Campaign("damaged models", "none wrong of 20,000", case, 2000).main()

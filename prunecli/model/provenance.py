"""What a saved model says about how it was made, in its metadata_props."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import onnx

from prunecli._version import __version__
from prunecli.types import Json

PREFIX = "prunecli."
HISTORY = PREFIX + "history"
KEYS = ("version", "command", "recipe", "input_sha256")


@dataclass(frozen=True)
class Provenance:
    """`command` is the name of the command, `recipe` its options as JSON: enough to do it again."""

    command: str
    recipe: Json = field(default_factory=dict)


def record(proto: onnx.ModelProto, provenance: Provenance, input_sha256: str) -> None:
    """Write the entries; those of an earlier run move to the end of `prunecli.history`, a JSON list."""
    old = {p.key: p.value for p in proto.metadata_props if p.key.startswith(PREFIX)}
    kept = [(p.key, p.value) for p in proto.metadata_props if p.key not in old]
    new = {
        PREFIX + "version": __version__,
        PREFIX + "command": provenance.command,
        PREFIX + "recipe": _compact(provenance.recipe),
        PREFIX + "input_sha256": input_sha256,
    }
    if history := _history(old):
        new[HISTORY] = _compact(history)
    del proto.metadata_props[:]
    for key, value in sorted([*kept, *new.items()]):
        proto.metadata_props.add(key=key, value=value)


def _history(old: dict[str, str]) -> list[Json]:
    try:
        earlier = json.loads(old.get(HISTORY, "[]"))
    except ValueError:
        earlier = []
    last = {key: old[PREFIX + key] for key in KEYS if PREFIX + key in old}
    return [*(earlier if isinstance(earlier, list) else []), *([last] if last else [])]


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))

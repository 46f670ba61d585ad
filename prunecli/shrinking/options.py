"""The options of `prune shrink`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from prunecli.errors import PruneError
from prunecli.options.declare import SELECT, Option
from prunecli.options.groups import Batched, Reporting, Running, Samples, Saving, Seeded, Sized

VOCABULARY = "Vocabulary"


def _check_names(text: str) -> None:
    if not text.replace(",", "").strip():
        raise PruneError(f"{text!r} names no output", "name one that is to stay")


@dataclass(frozen=True, kw_only=True)
class ShrinkOptions(Saving, Reporting, Samples, Batched, Seeded, Sized, Running):
    """Remove what a model carries for nothing: the outputs stay what they are, and that is proved.

    Channels, neurons, heads and recurrent units go that nothing reads, that are always zero or the same (masked by
    training, dead behind a Relu), or that are there twice; constants go into biases, equal units into one. So do branches
    that add zero, and tensors stored twice. Everything else is asked for: fewer tokens, outputs or positions.
    """

    tolerance: Annotated[
        float | None,
        Option("with --data: units that are constant on it to this go too, 0 for those that never fire; true of that data"
               " only", SELECT, "T", least=0),
    ] = None  # fmt: skip
    outputs: Annotated[
        tuple[str, ...],
        Option("keep these outputs only, names separated by commas; what only others used goes; repeatable", SELECT, "NAME",
               check=_check_names),
    ] = ()  # fmt: skip
    dead_inputs: Annotated[bool, Option("inputs that nothing reads go", SELECT)] = False
    last_token: Annotated[
        bool, Option("a language model's head computes the last position only: (batch, 1, vocabulary)", SELECT)
    ] = False
    vocabulary: Annotated[
        Path | None,
        Option("keep the tokens of this file only: a token or id per line, a JSON list, ids as .npy or .npz, or, with"
               " --tokenizer, a text whose tokens are kept", VOCABULARY, "FILE"),
    ] = None  # fmt: skip
    tokenizer: Annotated[
        Path | None, Option("the model's tokenizer.json", VOCABULARY, "FILE")
    ] = None  # fmt: skip
    remap: Annotated[
        Literal["auto", "tokenizer", "graph"],
        Option("where tokens get their new ids: in a tokenizer written beside the model (default with --tokenizer), or inside"
               " the graph, which takes the old ids and makes those that went the unknown token", VOCABULARY),
    ] = "auto"  # fmt: skip
    unknown_token: Annotated[
        str | None, Option("the token, or its id, for ids that went; default the tokenizer's", VOCABULARY, "TOKEN")
    ] = None
    token_input: Annotated[str | None, Option("the input of token ids, where several could be", VOCABULARY, "NAME")] = (
        None
    )

    def check(self) -> None:
        super().check()
        if self.tolerance is not None and self.data is None:
            raise PruneError("--tolerance is of the values on --data", "add --data")
        if self.vocabulary is None:
            given = {"tokenizer": self.tokenizer, "unknown-token": self.unknown_token, "token-input": self.token_input}
            named = [name for name, value in given.items() if value is not None]
            named += ["remap"] if self.remap != "auto" else []
            if named:
                raise PruneError(f"--{named[0]} is of a vocabulary that is cut", "add --vocabulary")
        if self.remap == "tokenizer" and self.tokenizer is None:
            raise PruneError("--remap tokenizer has no tokenizer to rewrite", "add --tokenizer, or use --remap graph")

    @property
    def remaps_in_graph(self) -> bool:
        """Whether the model takes the old ids."""
        return self.remap == "graph" or (self.remap == "auto" and self.tokenizer is None)

    @property
    def kept_outputs(self) -> tuple[str, ...]:
        """Names of outputs to keep; none: all."""
        return tuple(name.strip() for text in self.outputs for name in text.split(",") if name.strip())

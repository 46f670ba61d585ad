"""A tokenizer.json with fewer tokens, which splits what it can still say as before.

The format of the `tokenizers` library: WordPiece, WordLevel, BPE and Unigram models. A reduced tokenizer splits a text
whose tokens are all kept into the same tokens: the longest match of WordPiece is still the longest, the merges of BPE
that lead to a kept token are kept with it, and the best segmentation of Unigram is still the best.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prunecli.errors import PruneError
from prunecli.types import Json

KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")
LARGEST = 1 << 28
"""Bytes of a tokenizer file."""


@dataclass(frozen=True)
class TokenizerFile:
    """A parsed tokenizer.json."""

    path: Path
    content: Json

    @classmethod
    def read(cls, path: Path) -> TokenizerFile:
        """Raises PruneError: the file is no tokenizer.json of a known kind."""
        content = read_json(path, "tokenizer")
        model = content.get("model") if isinstance(content, dict) else None
        kind = model.get("type") if isinstance(model, dict) else None
        if kind not in KINDS:
            found = f"of type {kind!r}" if kind else "without a model"
            raise PruneError(f"{path} is a tokenizer {found}, which is not known", f"known are {', '.join(KINDS)}")
        made = cls(path, content)
        try:
            assert made.ids and all(isinstance(number, int) for number in made.ids.values())
        except (AssertionError, AttributeError, KeyError, LookupError, TypeError, ValueError):
            raise PruneError(f"{path} has no vocabulary that can be read", "export the tokenizer again") from None
        return made

    @property
    def model(self) -> Json:
        return self.content["model"]  # type: ignore[no-any-return]

    @property
    def kind(self) -> str:
        return str(self.model["type"])

    @property
    def added(self) -> Sequence[Json]:
        """Special and other tokens beside the vocabulary."""
        return self.content.get("added_tokens") or []

    @cached_property
    def ids(self) -> dict[str, int]:
        """Every token's id."""
        vocabulary = self.model["vocab"]
        listed = {entry[0]: number for number, entry in enumerate(vocabulary)} if self.kind == "Unigram" else vocabulary
        return {**listed, **{str(token["content"]): token["id"] for token in self.added}}

    @property
    def unknown(self) -> int | None:
        """The id of the unknown token; None where every text has tokens."""
        if self.kind == "Unigram":
            return self.model.get("unk_id")
        token = self.model.get("unk_token")
        return self.ids.get(token) if token is not None else None

    # -- what has to stay -------------------------------------------------------------------------

    def needed(self, wanted: Iterable[int]) -> list[int]:
        """The wanted ids and those without which they, or any text, cannot be had, ascending."""
        kept = set(wanted)
        kept |= {int(token["id"]) for token in self.added} | set(self._mentioned(self.content.get("post_processor")))
        if self.unknown is not None:
            kept.add(self.unknown)
        if self.kind == "BPE":
            kept = self._with_merges(kept | set(self._bytes()))
        elif self.kind == "Unigram":
            kept |= self._least(kept) | set(self._bytes())
        return sorted(kept)

    def _bytes(self) -> Iterator[int]:
        """Tokens of single bytes or characters that a text falls back to."""
        fallback = self.model.get("byte_fallback")
        level = "ByteLevel" in json.dumps([self.content.get("pre_tokenizer"), self.content.get("decoder")])
        for token, number in self.model["vocab"].items() if self.kind == "BPE" else self.ids.items():
            single = len(token) == 1 and self.kind == "BPE" and level
            if single or (fallback and len(token) == 6 and token.startswith("<0x")):
                yield number

    def _with_merges(self, kept: set[int]) -> set[int]:
        """With the parts of every kept token, and theirs."""
        ids, made = self.ids, dict[int, list[int]]()
        for left, right in self.merges:
            whole = ids.get(left + right)
            if whole is not None and left in ids and right in ids:
                made.setdefault(whole, []).extend((ids[left], ids[right]))
        queue, kept = list(kept), set(kept)
        while queue:
            for part in made.get(queue.pop(), ()):
                if part not in kept:
                    kept.add(part)
                    queue.append(part)
        return kept

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        """Pairs that BPE joins, in order; the file has them as lists or as texts with a space between."""
        pairs = [entry.split(" ") if isinstance(entry, str) else entry for entry in self.model.get("merges", ())]
        return [(pair[0], pair[1]) for pair in pairs]

    def _least(self, kept: set[int]) -> set[int]:
        """The token of the lowest score: unknown characters are scored below it."""
        scores = [entry[1] for entry in self.model["vocab"]]
        return {min(range(len(scores)), key=scores.__getitem__)} if scores else set()

    def _mentioned(self, part: Any) -> Iterator[int]:
        """Ids that a post-processor adds."""
        for pair in _pairs(part):
            yield int(pair[1])
        for entry in _templates(part):
            yield from (int(number) for number in entry["ids"])

    # -- the smaller file -------------------------------------------------------------------------

    def reduced(self, kept: Sequence[int]) -> Json:
        """The tokenizer with these tokens only, numbered in their order."""
        new = {old: number for number, old in enumerate(kept)}
        content = copy.deepcopy(self.content)
        model = content["model"]
        if self.kind == "Unigram":
            beyond = {int(token["id"]) for token in self.added} - set(range(len(model["vocab"])))
            model["vocab"] = [model["vocab"][old] for old in kept if old not in beyond]
            if model.get("unk_id") is not None:
                model["unk_id"] = new[model["unk_id"]]
        else:
            model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
        if self.kind == "BPE":
            names = model["vocab"]
            whole = zip(model["merges"], self.merges, strict=True)
            model["merges"] = [entry for entry, (a, b) in whole if a in names and b in names and a + b in names]
        for token in content.get("added_tokens") or ():
            token["id"] = new[token["id"]]
        if isinstance(content.get("padding"), dict):
            content["padding"]["pad_id"] = new.get(content["padding"]["pad_id"], 0)
        for pair in _pairs(content.get("post_processor")):
            pair[1] = new[pair[1]]
        for entry in _templates(content.get("post_processor")):
            entry["ids"] = [new[number] for number in entry["ids"]]
        return content

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of each line, special tokens included.

        Raises:
            PruneError: the library `tokenizers` is not there, or does not read the file.
        """
        return encoded(json.dumps(self.content), lines, self.path)


def encoded(content: str, lines: Sequence[str], path: Path) -> list[list[int]]:
    """The ids of each line by a tokenizer.json, neither cut off nor padded."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise PruneError("a text can only be split into tokens by the library tokenizers",
                         "pip install 'prunecli[tokenizers]', or give a list of tokens") from None  # fmt: skip
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the library raises plain exceptions
        raise PruneError(f"{path} is not read by the library tokenizers: {error}", "export it again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        return [list(one.ids) for one in tokenizer.encode_batch(list(lines))]
    except Exception as error:  # as above
        raise PruneError(f"{path} cannot split the text: {error}", "give the tokenizer's own text, or ids") from error


def _pairs(part: Any) -> Iterator[list[Any]]:
    """`["[SEP]", 102]` of BertProcessing and RobertaProcessing."""
    if isinstance(part, dict):
        for key in ("sep", "cls"):
            if isinstance(part.get(key), list) and len(part[key]) == 2:
                yield part[key]
        for inner in part.get("processors") or ():
            yield from _pairs(inner)


def _templates(part: Any) -> Iterator[Json]:
    """`{"id": "[SEP]", "ids": [102]}` of TemplateProcessing."""
    if isinstance(part, dict):
        if part.get("type") == "TemplateProcessing":
            yield from (part.get("special_tokens") or {}).values()
        for inner in part.get("processors") or ():
            yield from _templates(inner)


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        PruneError: it cannot be read.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise PruneError(f"{path} is too large for a {what}", "give the right file")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PruneError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise PruneError(f"{path} is no JSON: {error}", f"give the {what} as JSON") from error

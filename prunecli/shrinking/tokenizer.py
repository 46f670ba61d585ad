"""Reduce a tokenizer.json to fewer tokens.

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
"""Bytes that a tokenizer file may have."""


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
        """Tokens that the file adds to the vocabulary, as special ones."""
        return self.content.get("added_tokens") or []

    @cached_property
    def ids(self) -> dict[str, int]:
        """Map every token to its id."""
        vocabulary = self.model["vocab"]
        listed = {entry[0]: number for number, entry in enumerate(vocabulary)} if self.kind == "Unigram" else vocabulary
        return {**listed, **{str(token["content"]): token["id"] for token in self.added}}

    @property
    def unknown(self) -> int | None:
        """The id of the unknown token; None if the tokenizer needs none."""
        if self.kind == "Unigram":
            return self.model.get("unk_id")
        token = self.model.get("unk_token")
        return self.ids.get(token) if token is not None else None

    # -- what has to stay -------------------------------------------------------------------------

    def needed(self, wanted: Iterable[int]) -> list[int]:
        """Return the wanted ids, ascending, with all that the tokenizer needs besides: special tokens, the unknown
        token, single bytes, and the parts that are merged into a kept token."""
        kept = set(wanted)
        kept |= {int(token["id"]) for token in self.added} | set(self._mentioned(self.content.get("post_processor")))
        if self.unknown is not None:
            kept.add(self.unknown)
        if self.kind == "BPE":
            kept = self._with_merges(kept | set(self._bytes()))
        elif self.kind == "Unigram":
            kept |= self._least() | set(self._bytes())
        return sorted(kept)

    def _bytes(self) -> Iterator[int]:
        """Yield the tokens of single bytes or characters, into which any text can be split."""
        fallback = self.model.get("byte_fallback")
        level = "ByteLevel" in json.dumps([self.content.get("pre_tokenizer"), self.content.get("decoder")])
        for token, number in self.model["vocab"].items() if self.kind == "BPE" else self.ids.items():
            single = len(token) == 1 and self.kind == "BPE" and level
            if single or (fallback and len(token) == 6 and token.startswith("<0x")):
                yield number

    def _with_merges(self, kept: set[int]) -> set[int]:
        """Return the kept ids with the parts that are merged into them, the parts of these, and so on."""
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
        """The pairs that BPE merges, in order. The file has each as a list, or as a text with a space between."""
        pairs = [entry.split(" ") if isinstance(entry, str) else entry for entry in self.model.get("merges", ())]
        return [(pair[0], pair[1]) for pair in pairs]

    def _least(self) -> set[int]:
        """Return the token of the lowest score: Unigram scores unknown characters relative to it."""
        scores = [entry[1] for entry in self.model["vocab"]]
        return {min(range(len(scores)), key=scores.__getitem__)} if scores else set()

    def _mentioned(self, part: Any) -> Iterator[int]:
        """Yield the ids that a post-processor adds to a text."""
        for pair in _pairs(part):
            yield int(pair[1])
        for entry in _templates(part):
            yield from (int(number) for number in entry["ids"])

    # -- the smaller file -------------------------------------------------------------------------

    def reduced(self, kept: Sequence[int]) -> Json:
        """Return the content of the file with these tokens only, numbered in their order."""
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
        """Return the ids of each line, special tokens included.

        Raises:
            PruneError: the library `tokenizers` is missing, or does not read the file.
        """
        return encoded(json.dumps(self.content), lines, self.path)


def encoded(content: str, lines: Sequence[str], path: Path) -> list[list[int]]:
    """Return the ids of each line, neither truncated nor padded. `content`: of a tokenizer.json; `path`: of the
    file."""
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
    """Yield the entries `["[SEP]", 102]` of BertProcessing and RobertaProcessing."""
    if isinstance(part, dict):
        for key in ("sep", "cls"):
            if isinstance(part.get(key), list) and len(part[key]) == 2:
                yield part[key]
        for inner in part.get("processors") or ():
            yield from _pairs(inner)


def _templates(part: Any) -> Iterator[Json]:
    """Yield the entries `{"id": "[SEP]", "ids": [102]}` of TemplateProcessing."""
    if isinstance(part, dict):
        if part.get("type") == "TemplateProcessing":
            yield from (part.get("special_tokens") or {}).values()
        for inner in part.get("processors") or ():
            yield from _templates(inner)


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file. `what`: its name in messages.

    Raises:
        PruneError: the file is too large, cannot be read, or is no JSON.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise PruneError(f"{path} is too large for a {what}", "give the right file")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PruneError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise PruneError(f"{path} is no JSON: {error}", f"give the {what} as JSON") from error

"""The base classes of results: what reports may read of any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, cast

from prunecli.report.document import Document
from prunecli.types import FileRef, Json, Totals, Verification


class Reported:
    """A result is data. `to_json` and `to_document` are functions of the module `reporter` of its room."""

    reporter: ClassVar[str] = "report"

    def to_json(self) -> Json:
        """The report's JSON, with the keys of the contract."""
        return cast("Json", _module(self).to_json(self))

    def to_document(self) -> Document:
        """The report for people."""
        return cast("Document", _module(self).to_document(self))


def _module(result: Reported) -> Any:
    package = type(result).__module__.rpartition(".")[0]
    return import_module(f"{package}.{result.reporter}")


@dataclass(frozen=True, kw_only=True)
class ModelResult(Reported):
    """The common fields of results about one model before and after.

    `output` is None where nothing was written, as in a dry run. `plan` is the file of the decision, if one was saved.
    """

    model: FileRef
    output: FileRef | None
    before: Totals
    after: Totals
    verification: Verification
    notes: Sequence[str] = ()
    plan: str | None = None
    dry_run: bool = False
    seconds: float = 0.0

    @property
    def unchanged(self) -> bool:
        """Whether no file was written because the model is already what it should become."""
        return False

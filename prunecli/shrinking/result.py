"""What `prune shrink` did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prunecli.report.result import ModelResult
from prunecli.shrinking.folding import Branch
from prunecli.shrinking.interface import Dropped, LastToken
from prunecli.shrinking.rounds import UnitRow
from prunecli.shrinking.tidying import Tidied
from prunecli.shrinking.vocabulary import VocabularyCut
from prunecli.types import Json, LayerRow


@dataclass(frozen=True)
class Removed:
    """Everything that went. `units`: rows of groups, one for each round in which some of a group went."""

    units: Sequence[UnitRow] = ()
    branches: Sequence[Branch] = ()
    interface: Sequence[Dropped] = ()
    last_token: LastToken | None = None
    vocabulary: VocabularyCut | None = None
    tidied: Tidied = field(default_factory=Tidied)

    @property
    def nothing(self) -> bool:
        """Whether the file stays what it is."""
        asked = self.interface or self.last_token or self.vocabulary
        return not (self.units or self.branches or asked or self.tidied.duplicates)


@dataclass(frozen=True, kw_only=True)
class ShrinkResult(ModelResult):
    """`output` is None where nothing could be removed, and of a dry run. `tokenizer`: the path of the one written."""

    recipe: Json
    removed: Removed
    layers: Sequence[LayerRow] = ()
    tokenizer: str | None = None

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to remove."""
        return self.removed.nothing and not self.dry_run

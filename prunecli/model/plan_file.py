"""What every plan has in common, whether it zeroes or cuts: its schema, and the model that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

from prunecli.errors import PruneError
from prunecli.model.loading import Model, file_sha256
from prunecli.types import Json

SCHEMA = "prunecli-plan/1"


def identity(model: Model) -> Json:
    """What ties a plan to one model: hashes of the .onnx file and of its external data."""
    data = [file_sha256(path) for path in model.data_files]
    return {"sha256": model.sha256, **({"data_sha256": data} if data else {})}


def read_plan(path: Path, model: Model, most: int | None = None) -> Json:
    """The plan's object, for this very model. `most`: bytes that it may take, None for no bound.

    Raises:
        PruneError: not a plan, too large a one, or one for another model.
    """
    try:
        if most is not None and path.stat().st_size > most:
            raise PruneError(f"{path} is too large for a plan", "give a file that --save-plan wrote")
        plan = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PruneError(f"cannot read the plan {path}: {error.strerror}", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise PruneError(f"{path} is not JSON", "give a file that --save-plan wrote") from error
    if not isinstance(plan, dict) or plan.get("schema") != SCHEMA:
        raise PruneError(f"{path} is not a plan of this program", "give a file that --save-plan wrote")
    if plan.get("model") != identity(model):
        raise PruneError(f"{path} was made for another model than {model.path}", "give the model it was made for")
    return plan

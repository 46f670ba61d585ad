"""The kinds of data the command line reads, one module each; importing the package fills the registry."""

from prunecli.data.sources import csv, images, loader, npy, npz, zoo  # noqa: F401 - they register themselves
from prunecli.data.sources.registry import SOURCES, DataSource, Request
from prunecli.errors import PruneError

__all__ = ["DataSource", "Request", "find_source"]


def find_source(request: Request) -> DataSource:
    """The source that takes the request.

    Raises:
        PruneError: none does, the file is missing, or an option does not go with the source.
    """
    path = request.path
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise PruneError(f"{request.text} is neither a file nor a folder", "data cannot be read from a pipe or device")
    chosen = next((s for s in SOURCES.values() if s.takes(request)), None)
    readable = "; ".join(s.description for s in SOURCES.values())
    if chosen is None:
        what = "is not a readable data source" if path.exists() else "does not exist"
        raise PruneError(f"{request.text} {what}", f"readable are: {readable}")
    if chosen.name != "loader" and not path.exists():
        raise PruneError(f"{request.text} does not exist", "check the path given to --data")
    for option, value in (("--labels", request.labels), ("--label-column", request.label_column)):
        if value is not None and option not in chosen.options:
            owners = [s.name for s in SOURCES.values() if option in s.options]
            raise PruneError(f"{option} does not go with {request.text}", f"it is for {', '.join(owners)} data")
    if request.images.given and chosen.name != "images":
        raise PruneError(f"{request.images.given[0]} does not go with {request.text}", "it is for a folder of images")
    return chosen

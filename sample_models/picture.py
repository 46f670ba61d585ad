"""Makes `docs/report.svg`: a chart of the report on the digits network at half its work, as a file of its own.

python sample_models/picture.py
"""

from __future__ import annotations

from pathlib import Path

import prunecli
from prunecli.report.document import Bars
from prunecli.report.draw import draw

HERE = Path(__file__).parent
CHART = "Parameters by layer"
STYLE = (
    "svg { --fg: #1b1f24; --bg: #fff; --dim: #59636e; --line: #d8dee4; --c0: #2a6fb5; --c1: #c8590b;"
    " background: var(--bg); color: var(--fg); font-family: system-ui, sans-serif }"
    " @media (prefers-color-scheme: dark) { svg { --fg: #e6edf3; --bg: #0f1419; --dim: #9aa5b1; --line: #2d353f;"
    " --c0: #62a8ea; --c1: #f0914a } }"
)


def picture() -> str:
    """Return the chart; colours follow light and dark as on the page of the report."""
    found = prunecli.structured(
        HERE / "digits-cnn.onnx", macs=0.5, data=HERE / "digits-calib.npz", threads=1, dry_run=True, timing=False
    )
    chart = next(one for one in found.to_document().sections if isinstance(one, Bars) and one.title == CHART)
    opening, rest = draw(chart).split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{rest}\n'


if __name__ == "__main__":
    (HERE.parent / "docs" / "report.svg").write_text(picture(), encoding="utf-8")

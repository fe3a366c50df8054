"""Pictures of a heatmap, with matplotlib (``wetink[plot]``). The terminal needs nothing of it."""

import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wetink.command_line import Failure
from wetink_client.tables import label_text
from wetink_client.values import NANOSECONDS_A_SECOND

if TYPE_CHECKING:
    from wetink_client import Heatmap

WIDTH_INCHES: Final = 11.0
ROW_INCHES: Final = 0.14
HEIGHT_INCHES_MAX: Final = 60.0
"""Bound on a picture: 1024 rows are thinner then, and still told apart."""

LABEL_CHARACTERS: Final = 56
"""Bound on the name beside a row: a path may have thousands of characters, and would leave no room for the picture."""


def draw_heatmap(found: "Heatmap", path: Path) -> None:
    """Draw address by time into a file, in the form that its ending says.

    Raises:
        Failure: The extra is not installed, there is nothing to draw, or the file cannot be written.
    """
    if not found.rows:
        message = f"no page of {found.history.name} was written in that time: there is nothing to draw"
        raise Failure(message)
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (an extra)
    except ImportError as error:
        message = "pictures need the extra `plot`: pip install 'wetink[client,plot]'"
        raise Failure(message) from error
    height = min(HEIGHT_INCHES_MAX, 1.5 + ROW_INCHES * max(1, len(found.rows)))
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = figure.add_subplot()
    shares = [
        [count / max(1, row.page_count) for count in counts]
        for row, counts in zip(found.rows, found.page_counts, strict=True)
    ]
    begin = found.columns[0].since_time_ns if found.columns else 0
    edges = [0.0, *((column.until_time_ns - begin) / NANOSECONDS_A_SECOND for column in found.columns)]
    mesh = axes.pcolormesh(edges, list(range(len(found.rows) + 1)), shares, cmap="inferno", vmin=0, vmax=1)
    # Files may be called anything: between two dollar signs matplotlib would read a formula, and fail where it is none.
    axes.set_yticks(
        [at + 0.5 for at in range(len(found.rows))],
        [f"{label_text(row.label, LABEL_CHARACTERS)}  {row.start_address:#x}".strip() for row in found.rows],
        fontsize=6,
        parse_math=False,
    )
    moment = datetime.fromtimestamp(begin / NANOSECONDS_A_SECOND, UTC)
    axes.set_xlabel(f"seconds since {moment:%Y-%m-%d %H:%M:%S} UTC")
    axes.set_title(f"{found.history.name}: written pages, as a share of each part's")
    figure.colorbar(mesh, ax=axes, pad=0.01)
    try:
        with warnings.catch_warnings():
            # Characters that its font does not have are boxes in the picture.
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(path, dpi=120)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise Failure(message) from error

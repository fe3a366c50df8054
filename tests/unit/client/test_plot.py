"""Pictures of heatmaps."""

import warnings
from pathlib import Path

import pytest

from wetink.v1 import insight_pb2 as pb
from wetink.v1.types_pb2 import AddressRange
from wetink_client.insight import heatmap_of
from wetink_client.plot import draw_heatmap

LABELS = (
    "/srv/of $x_{$ no formula",
    "/srv/\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C}, in no font of matplotlib's",
    "/srv/with\nlines and \x1b[2J",
    "/srv/" + "longer than there is room " * 40,
)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_files_may_be_called_anything(tmp_path: Path, ending: str) -> None:
    """What is mapped there is a name and nothing else, and no name leaves a warning or takes the picture's place."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"heat.{ending}"
    found = pb.GetHeatmapResponse(
        history=pb.HistoryStatus(name="h/1@2", page_size=4096),
        rows=[
            pb.HeatmapRow(range=AddressRange(start_address=number << 20, size_bytes=4096), page_count=1, label=label)
            for number, label in enumerate(LABELS)
        ],
        columns=[pb.HeatmapColumn(since_time_ns=10**18, until_time_ns=10**18 + 10**9, first_round=2, last_round=2)],
        page_counts=[1] * len(LABELS),
    )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_heatmap(heatmap_of(found), picture)

    assert picture.stat().st_size > 1000

from tests.bench import prediction_report
from tests.conventions.tools import ROOT

DOCS = ROOT / "docs"


def test_the_page_is_what_its_lines_say() -> None:
    """No figure is by hand, and the README has the short table."""
    lines = prediction_report.read(DOCS / "predictions.jsonl")

    assert (DOCS / "predictions.md").read_text(encoding="utf-8") == prediction_report.page(lines)
    assert prediction_report.spread(lines) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_wrong_verdict_is_said() -> None:
    """Neither a table nor its summary hides one."""
    line = {
        "figure": "prediction",
        "value": 1.0,
        "workload": "any",
        "bandwidth_mib": 16,
        "predicted_mib": 10.0,
        "measured_mib": 12.0,
        "bytes_error": -0.1667,
        "predicted_downtime_ms": 100,
        "predicted_downtime_p95_ms": 120,
        "measured_downtime_ms": 400,
        "measured_converges": False,
        "verdict_right": False,
        "downtime_near": False,
    }

    shown = prediction_report.page([line])

    assert "does not, predicted otherwise" in shown
    assert "Verdict right in 0 of 1." in shown
    assert "in 0 of 1" in shown
    assert "-16.7 %" in shown

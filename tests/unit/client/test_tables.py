import pytest
from pyroaring import BitMap64

from wetink.v1 import dirty_pb2, insight_pb2, prediction_pb2, types_pb2
from wetink_client import Consistency, DirtyCounts, DirtySet, TargetDirty
from wetink_client.clean import ChangedMapping, Verdict
from wetink_client.events import Event, EventBatch
from wetink_client.insight import Heatmap, HeatmapColumn, HeatmapRow, history_of, working_sets_of
from wetink_client.insight_tables import InsightPrinter
from wetink_client.migration_messages import drain_plan_of
from wetink_client.migration_tables import MigrationPrinter
from wetink_client.tables import Printer, age_text, bytes_text, printable
from wetink_client.values import Uncertainty, host_of, status_of, target_of

NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


@pytest.mark.parametrize(
    "size_bytes,text",
    [
        (0, "0 B"),
        (998, "998 B"),
        (4096, "4 KiB"),
        (1 << 20, "1 MiB"),
        (1000 << 10, "0.977 MiB"),
        ((1 << 30) * 3 // 2, "1.5 GiB"),
        (1 << 64, "16384 PiB"),
    ],
)
def test_size_has_three_digits(size_bytes: int, text: str) -> None:
    """Enough to compare, short enough to read."""
    assert bytes_text(size_bytes) == text


@pytest.mark.parametrize(
    "seconds,text",
    [(-3, "0.0 s"), (0.25, "0.2 s"), (59.9, "59.9 s"), (90, "2 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_age_is_in_its_largest_unit(seconds: float, text: str) -> None:
    """And never negative, whatever the clocks of two hosts say."""
    assert age_text(seconds) == text


def test_process_cannot_speak_to_the_terminal() -> None:
    """A process may call itself anything."""
    assert printable("ls\x1b[2J\n\u202e") == "ls?[2J??"
    assert printable("größe [red]") == "größe [red]"


def test_nothing_is_cut_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe has no width: each target is one whole line."""
    name = f"{'h' * 253}/4294967295@18446744073709551615"
    target = dirty_pb2.TargetInfo(
        name=name,
        command="c" * 256,
        live=True,
        incarnation=2,
        round=77,
        as_of_time_ns=NOW_NS - 3 * SECOND_NS,
        page_size=4096,
        backend=types_pb2.BACKEND_WP_ASYNC,
        populated_page_count=262_144,
        last_written_page_count=3000,
        last_window_ns=2 * SECOND_NS,
        backend_reason="a probe saw it",
        pace=types_pb2.Pace(interval_ms=1500, agent_share=0.0123, target_share=0.0004),
    )

    Printer(NOW_NS).targets([target_of(target)])

    heading, line, _, reason = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "TARGET"
    assert name in line
    assert "c" * 256 in line
    for text in (
        "live",
        "1 GiB",
        "11.7 MiB",
        "1,500 pages/s",
        "3.0 s ago",
        "2.77",
        "1.5 s",
        "1.2 % + 0.0 %",
        "wp-async",
    ):
        assert text in line
    assert reason == "wp-async: a probe saw it"


def test_target_that_ended_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    """And one whose agent is away is told apart from one that lives."""
    ended = dirty_pb2.TargetInfo(name="h/1@1", end_reason=types_pb2.END_REASON_EXITED)
    away = dirty_pb2.TargetInfo(name="h/2@1")

    Printer(NOW_NS).targets([target_of(ended), target_of(away)])

    _, first, second = capsys.readouterr().out.splitlines()
    assert "exited" in first
    assert "agent away" in second
    assert "never" in second


def test_empty_list_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty table would look like a failure."""
    Printer().hosts([])
    Printer().targets([])

    assert capsys.readouterr().out.splitlines() == [
        "no host has an agent here yet: start `wetink-agent --collector ADDR` on one",
        "no target: `wetink track HOST PID` begins to track a process",
    ]


def test_host_line_says_whether_its_agent_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """It is what one looks for when a target does not answer."""
    host = dirty_pb2.Host(host_id="h", last_seen_time_ns=NOW_NS - 120 * SECOND_NS, target_count=3, agent_version="1")

    Printer(NOW_NS).hosts([host_of(host)])

    _, line = capsys.readouterr().out.splitlines()
    assert line.split() == ["h", "away", "2", "min", "ago", "3", "0", "B", "0", "1"]


def test_dirty_shows_the_first_ranges_and_how_many_more(capsys: pytest.CaptureFixture[str]) -> None:
    """A person sees where a process writes; the whole is for programs."""
    written = BitMap64(range(0, 40, 2))
    part = TargetDirty(
        name="h/1@2",
        incarnation=2,
        round=5,
        as_of_time_ns=NOW_NS - SECOND_NS,
        complete=True,
        incomplete_reason=None,
        incomplete_message="",
        end_reason=None,
        exact=False,
        frozen=False,
        written_page_count=20,
        vanished_page_count=1,
        populated_page_count=100,
        page_size=4096,
        uncertain_page_count=1,
        lenient=True,
        uncertain=BitMap64([9]),
        written=written,
        vanished=BitMap64([1]),
    )
    answer = DirtySet(
        cursor="c" * 300,
        complete=True,
        exact=False,
        consistency=Consistency.FROZEN,
        as_of_time_ns=None,
        targets={part.name: part},
    )

    Printer(NOW_NS).dirty(answer)

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        "h/1@2",
        "20",
        "80",
        "KiB",
        "20",
        "1",
        "1",
        "left",
        "out",
        "yes",
        "no",
        "1.0",
        "s",
        "ago",
    ]
    assert lines[3:6] == ["written in h/1@2", "  0x0-0x1000  4 KiB", "  0x2000-0x3000  4 KiB"]
    assert lines[12:] == ["  and 12 more, which --json prints", "", "consistency frozen", f"cursor {'c' * 300}"]


def test_watch_line_says_what_falls_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Only where it does: a line that is whole has nothing more to say."""
    status = dirty_pb2.TargetStatus(name="h/1@2", incarnation=2, round=5, written_page_count=3, page_size=4096)
    answer = DirtyCounts(
        cursor="c",
        complete=False,
        exact=False,
        consistency=Consistency.NONE,
        as_of_time_ns=None,
        targets={"h/1@2": status_of(status)},
    )

    Printer(NOW_NS).counts(answer)

    (line,) = capsys.readouterr().out.splitlines()
    assert line.split("  ", 1)[1].split() == (
        ["h/1@2", "3", "pages", "12", "KiB", "0", "vanished", "round", "2.5", "not", "complete", "not", "exact"]
    )


def test_verdict_names_each_mapping(capsys: pytest.CaptureFixture[str]) -> None:
    """How many pages, how they may change unseen, and where the first is; one line where there are none."""
    changed = (
        ChangedMapping("/memfd:\x1b", Uncertainty.SHARED, BitMap64([5, 7])),
        ChangedMapping("x", None, BitMap64([9])),
    )

    Printer(NOW_NS).verdict("h/1@2", Verdict(10, 3, changed))
    Printer(NOW_NS).verdict("h/1@2", Verdict(10, 3, ()))

    first, _, *rows, clean = capsys.readouterr().out.splitlines()
    assert first == "h/1@2: 10 pages called clean were compared, 3 have changed unseen; 3 were reported"
    assert [row.split() for row in rows] == [["2", "shared", "0x5000", "/memfd:?"], ["1", "-", "0x9000", "x"]]
    assert clean.endswith("compared, 0 have changed unseen; 3 were reported")


def test_an_event_without_a_time_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Not every backend can tell it; 1970 would be a lie."""
    times = (None, NOW_NS)
    events = tuple(Event(4096, None, 7, "main", time_ns, 0, None) for time_ns in times)

    Printer(NOW_NS).events(EventBatch(1, 2, 2, events, 0, 0))

    without, timed = capsys.readouterr().out.splitlines()
    assert without.split() == ["-", "7", "main", "0x1000", "kernel"]
    assert timed.split()[0].endswith(".000000")
    assert without.index("main") == timed.index("main")


def test_part_that_was_written_whole_has_the_darkest_shade(capsys: pytest.CaptureFixture[str]) -> None:
    """However small it is; one page of very many shows, too."""
    rows = tuple(HeatmapRow(index << 20, 4096 * pages, pages, "") for index, pages in enumerate((1, 2, 10_000), 1))
    columns = tuple(HeatmapColumn(NOW_NS, NOW_NS, number, number, exact=True) for number in (1, 2))
    history = history_of(insight_pb2.HistoryStatus(name="h/1@2", first_round=1, last_round=2, page_size=4096))

    InsightPrinter(NOW_NS).heatmap(Heatmap(history, rows, columns, ((0, 1), (1, 2), (1, 10_000))))

    shown = [line.split()[3] for line in capsys.readouterr().out.splitlines() if line.startswith("0x")]
    assert shown == ["@", "+@", ".@"]


def test_group_names_the_targets_of_which_it_is_not_known_what_they_share(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Shared pages of theirs count for each: that they count once would be a lie."""
    targets = [
        insight_pb2.TargetWorkingSet(history=insight_pb2.HistoryStatus(name=name, last_round=2, page_size=4096))
        for name in ("h/1@2", "h/3@4")
    ]
    for unknown in ([], ["h/3@4"]):
        group = insight_pb2.GroupWorkingSet(targets_without_mappings=unknown)

        InsightPrinter(NOW_NS).working_sets(
            working_sets_of(insight_pb2.GetWorkingSetResponse(targets=targets, group=group))
        )

        shown = capsys.readouterr().out
        assert ("it is not known what they share: h/3@4" in shown) == bool(unknown)


@pytest.mark.parametrize("left_out,said", [(0, "no target is tracked there"), (1, "nothing can be moved")])
def test_plan_without_moves_compares_nothing(capsys: pytest.CaptureFixture[str], left_out: int, said: str) -> None:
    """Of no migration there is neither a time nor one that would not converge."""
    reasons = [prediction_pb2.LeftOut(name="h/1@2", reason="It is so.")] * left_out

    MigrationPrinter(NOW_NS).drain_plan(drain_plan_of(prediction_pb2.PlanDrainResponse(cannot_move=reasons)))

    first, _costs, *rest = capsys.readouterr().out.splitlines()
    assert (first, len(rest)) == (said, left_out)

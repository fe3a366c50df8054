"""The commands about migrations, run as a person or a program does."""

import json
from collections.abc import Iterator
from typing import Final

import pytest

from tests.integration.client.command import failure, wetink
from tests.integration.collector.wire import Agent, target
from tests.support.collector import running_collector
from wetink_client.migration_commands import bandwidth_of

HOST: Final = "node-1"
NAME: Final = f"{HOST}/1@100"
SPEED: Final = "400KiB"
"""A hundred pages a second."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Give a collector that knows two targets: one that writes in cycles, and one of which nothing is known yet."""
    rounds = [range(1000)]
    rounds += [range(3) if number % 20 >= 12 else range(number % 7, 300) for number in range(100)]
    with running_collector() as collector, Agent(collector.address, HOST) as agent:
        agent.hello()
        agent.deliver(target(1, host_id=HOST), *rounds)
        agent.deliver(target(2, host_id=HOST), range(10))
        yield collector.address


def lines(address: str, *arguments: str) -> list[dict[str, object]]:
    """Run a command with ``--json``, and give its lines."""
    ended = wetink("--collector", address, *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def text(address: str, *arguments: str) -> str:
    """Run a command for people."""
    ended = wetink("--collector", address, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_predict_has_a_line_for_each_bandwidth(address: str) -> None:
    """With everything that an answer has, and the name of its target first."""
    slow, fast = lines(address, "predict", NAME, "--bandwidth", SPEED, "--bandwidth", "10MB", "--downtime", "0.5")

    assert next(iter(slow)) == "target"
    assert slow["target"] == fast["target"] == NAME
    assert (slow["bandwidth_bytes_per_second"], fast["bandwidth_bytes_per_second"]) == (409_600, 10_000_000)
    assert (slow["converges"], fast["converges"]) == (False, True)
    assert fast["prediction_id"]
    assert isinstance(fast["rounds"], list)


def test_predict_for_people_says_what_it_rests_on(address: str) -> None:
    """The history, the costs, the least bandwidth, and how much to rely on it."""
    shown = text(address, "predict", NAME, "--bandwidth", "10MB", "--policy", "qemu")

    assert "BANDWIDTH" in shown
    assert "policy qemu, downtime aimed at 300 ms" in shown
    assert "smallest bandwidth that converges" in shown
    assert "confidence is low" in shown


def test_window_is_found_or_told_why_not(address: str) -> None:
    """The next quiet stretch of the cycle, and none for whoever needs more than it has."""
    (found,) = lines(address, "window", NAME, "--bandwidth", "4MB")
    shown = text(address, "window", NAME, "--bandwidth", "4MB")
    short = text(address, "window", NAME, "--bandwidth", "200KiB")

    assert found["window"] is not None
    assert "window from" in shown
    assert "no window" in short


def test_rank_and_drain_plan_say_who_is_left_out(address: str) -> None:
    """Of the second target there is one round only."""
    ranked = lines(address, "rank", "--host", HOST, "--bandwidth", "4MB")
    (plan,) = lines(address, "drain-plan", HOST, "--bandwidth", "4MB", "--parallel", "2")
    shown = text(address, "drain-plan", HOST, "--bandwidth", "4MB")

    assert [one["left_out"] for one in ranked] == [False, True]
    assert "first round" in str(ranked[1]["reason"])
    assert plan["host"] == HOST
    assert len(plan["moves"]) == len(plan["cannot_move"]) == 1  # type: ignore[arg-type]
    assert "cannot be moved: node-1/2@100" in shown
    assert "left out: node-1/2@100" in text(address, "rank", "--host", HOST, "--bandwidth", "4MB")
    assert [one["name"] for one in lines(address, "rank", "--tree", f"{HOST}/1", "--bandwidth", "4MB")] == [NAME]


def test_report_is_scored_and_shown(address: str) -> None:
    """By the prediction that it names; what nobody predicted teaches only the costs."""
    (said,) = lines(address, "predict", NAME, "--bandwidth", "4MB")
    went = ["--bandwidth", "4MB", "--round", "4096000:1.03", "--round", "1000000:0.26", "--final", "100000"]
    (scored,) = lines(
        address,
        "report-migration",
        NAME,
        *went,
        "--downtime",
        "0.05",
        "--met",
        "--prediction",
        str(said["prediction_id"]),
    )
    again = text(address, "report-migration", NAME, *went, "--downtime", "0.05", "--met")
    (error,) = lines(address, "accuracy")

    assert scored["error"] == error
    assert error["measured_bytes"] == 5_196_000
    assert "no prediction to be scored" in again
    assert "verdict right in 1 of 1" in text(address, "accuracy")


@pytest.mark.parametrize(
    "arguments,code",
    [
        (["predict", NAME, "--bandwidth", "fast"], 2),
        (["predict", NAME, "--bandwidth", "0"], 2),
        (["predict", NAME, "--bandwidth", "1MB", "--policy", "hope"], 2),
        (["predict", NAME, "--bandwidth", "1MB", "--downtime", "-1"], 2),
        (["predict", f"{HOST}/2", "--bandwidth", "1MB"], 1),
        (["window", f"{HOST}/9", "--bandwidth", "1MB"], 4),
        (["rank", "--bandwidth", "1MB"], 2),
        (["rank", "--bandwidth", "1MB", "--tree", f"{HOST}/3"], 4),
        (["rank", "--bandwidth", "1MB", "--tree", HOST], 2),
        (["drain-plan", "node-9", "--bandwidth", "1MB"], 4),
        (["report-migration", NAME, "--bandwidth", "1MB", "--round", "7"], 2),
        (["accuracy", "--limit", "5000"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistake_is_2_and_refusal_is_1(address: str, arguments: list[str], code: int) -> None:
    """Each is one sentence."""
    assert failure("--collector", address, *arguments)[0] == code


@pytest.mark.parametrize(
    "text, bytes_a_second",
    [
        ("125000000", 125_000_000),
        ("125MB", 125_000_000),
        ("125 MB/s", 125_000_000),
        ("1Gbit", 125_000_000),
        ("1 Gbit/s", 125_000_000),
        ("2.5gbit", 312_500_000),
        ("32MiB", 33_554_432),
        ("1.5KiB", 1536),
        ("1TiB", 1 << 40),
        ("100k", 100_000),
        ("10Gbps", 1_250_000_000),
        ("1Gb/s", 125_000_000),
        ("1 gbits/s", 125_000_000),
        ("8b", 1),
        ("10GBps", 10_000_000_000),
        ("1 Mbytes/s", 1_000_000),
    ],
)
def test_bandwidth_is_read_with_its_unit(text: str, bytes_a_second: int) -> None:
    """Bytes with decimal and binary prefixes, and bits."""
    assert bandwidth_of(text) == bytes_a_second

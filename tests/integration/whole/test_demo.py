"""The main job from start to end, as ``make demo`` runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

pytestmark = [pytest.mark.needs("kernel", "root"), pytest.mark.timeout(180)]


CALLERS: Final = {
    "WETINK_AGENT_BACKEND": "nonsense",
    "WETINK_AGENT_SPOOL": "/proc/nosuch",
    "WETINK_COLLECTOR": "unix:/nosuch/socket",
    "WETINK_COLLECTOR_METRICS": "0.0.0.0:1",
    "WETINK_COLLECTOR_TOKENS": "/nosuch/tokens",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense",
}
"""What a caller may have exported for an agent and a collector that are not those of the demonstration."""


def demo(*options: str, path: str = os.environ["PATH"]) -> list[dict[str, Any]]:
    """Run the demonstration, which must succeed, whatever the caller has exported for others; its JSON lines."""
    done = subprocess.run(
        [sys.executable, "-m", "wetink_client.demo", "--json", *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, **CALLERS, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.needs("redis")
def test_redis_under_load_is_moved_whole() -> None:
    """Every page of redis-server, written all the while, is identical in a copy made from dirty sets alone."""
    *rounds, result = demo()

    assert result["workload"].startswith("redis-server")
    assert result["pages_identical"] == result["pages_compared"] > 10_000
    assert [done["frozen"] for done in rounds] == [False] * (len(rounds) - 1) + [True]
    assert len(rounds) >= 2
    # What is left for the downtime, in bytes: how long the machine takes for them is a matter of what else it does.
    assert rounds[-1]["copied_bytes"] * 2 < result["stop_and_copy_bytes"]
    assert result["downtime_seconds"] == rounds[-1]["answer_seconds"] + rounds[-1]["copy_seconds"]
    assert result["stop_and_copy_seconds_estimated"] == rounds[0]["copy_seconds"]


@pytest.fixture
def without_redis(tmp_path: Path) -> str:
    """Give a search path in which there is none."""
    for name in ("env", "sh"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    return str(tmp_path)


def test_without_redis_a_writer_of_our_own_is_moved(without_redis: str) -> None:
    """A machine without redis-server sees the same on a writer of ours."""
    result = demo(path=without_redis)[-1]

    assert result["workload"].startswith("a writer")
    assert result["pages_identical"] == result["pages_compared"] > 20_000


def test_what_did_not_start_says_why(without_redis: str) -> None:
    """At once, in the words of the part that ended: here an agent that does not take its host's name."""
    source = "import wetink_client.demo as d\nd.HOST = 'no name'\nd.main()\n"
    done = subprocess.run(
        [sys.executable, "-c", source],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": without_redis},
    )

    assert done.returncode == 1
    assert done.stderr.startswith("make demo: the agent did not connect to the collector: wetink-agent ended with exit")
    assert "code 2: wetink-agent: " in done.stderr
    assert "'no name'" in done.stderr


def test_without_root_it_says_so_kindly() -> None:
    """One sentence, and how to go on."""
    source = "import wetink_client.demo as d, os\nos.geteuid = lambda: 1000\nd.main()\n"
    done = subprocess.run([sys.executable, "-c", source], check=False, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs root" in done.stderr
    assert "sudo make demo" in done.stderr

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.raw_agent import RawAgent

ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("plain_stub.py")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules made from the .proto now, by the public generator alone."""
    into = tmp_path_factory.mktemp("generated")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={ROOT / 'protos'}",
            f"--python_out={into}",
            f"--grpc_python_out={into}",
            *(f"wetink/v1/{name}.proto" for name in ("types", "dirty")),
        ],
        check=True,
    )
    return into


def test_stub_made_from_the_proto_needs_nothing_else(
    collector: str, agent: RawAgent, generated: Path, name: str
) -> None:
    """Reflection says what there is; track, barrier and dirty work with no line of ours on the caller's side."""
    # -S leaves out the .pth file that would find our own modules.
    path = os.pathsep.join([str(generated), sysconfig.get_path("platlib")])
    agent.start(7, [1, 2, 3])
    ended = subprocess.run(
        [sys.executable, "-S", PROGRAM, collector, agent.host_id, "7"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert Path(found["generated"]).is_relative_to(generated)
    assert {"wetink.v1.DirtyService", "wetink.v1.IngestService", "grpc.health.v1.Health"} <= set(found["services"])
    assert {"Track", "Barrier", "GetDirty", "Watch"} <= set(found["methods"])
    assert found["target"] == name
    assert found["reached"] == [True]
    assert found["written"] == [1, 2, 3]
    assert found["complete"]
    assert found["cursor"]

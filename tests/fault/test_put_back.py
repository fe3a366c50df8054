"""A store that is put back to an older copy: somebody restored a backup, against all advice. No answer is too small."""

import shutil
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.agent import HOST, running_agent
from tests.support.collector import CollectorProcess, start_collector
from tests.support.reader import Reader
from wetink_client import Collector
from wetink_client.shadow import ShadowCopy
from wetink_client.verify import differences

pytestmark = [pytest.mark.needs("kernel", "root", "cc"), pytest.mark.timeout(300)]


def test_copies_are_right_after_an_older_store_was_put_back(tmp_path: Path) -> None:
    """
    The agent has let go of rounds that the collector acknowledged and does not have any more, and one reader is ahead
    of the store: agent and readers begin anew, both of them, and end with what the target holds, byte by byte.
    """
    listen, data, saved = f"unix:{tmp_path}/collector.sock", tmp_path / "data", tmp_path / "saved"
    collector = CollectorProcess(start_collector(data, listen=listen), data)
    with (
        programs.running("writer", "munmap_same", 3) as writer,
        Collector(listen) as client,
        ShadowCopy(writer.pid) as first,
        ShadowCopy(writer.pid) as second,
        running_agent(listen, "--pid", str(writer.pid)) as agent,
    ):
        behind, ahead = (Reader(client, f"{HOST}/{writer.pid}", copy) for copy in (first, second))
        try:
            before = max(reader.read_complete().target.round for reader in (behind, ahead))
            collector.close()
            shutil.copytree(data, saved)
            collector = CollectorProcess(start_collector(data, listen=listen), data)
            while ahead.read_complete().target.round < before + 5:
                pass
            # Its barrier was told after that the rounds before it are durable: by now the agent has let go of them.
            ahead.read_complete()
            collector.kill()
            collector.close()
            shutil.rmtree(data)
            shutil.copytree(saved, data)
            collector = CollectorProcess(start_collector(data, listen=listen), data)

            agent.wait_for_log("resynchronising")
            for reader in (behind, ahead):
                reader.read_complete()
            writer.stop()
            for reader, copy in ((behind, first), (ahead, second)):
                last = reader.read_complete()
                assert last.consistency.name == "FROZEN"
                assert reader.resynchronised == 1
                assert differences(writer.pid, copy.pages)[1] == []
        finally:
            collector.close()

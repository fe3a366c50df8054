from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from wetink.tls import Security, SecurityUnusable
from wetink_client import InvalidRequest
from wetink_client.connection import Connection

ADDRESS = "unix:/nosuch/socket"


@dataclass(eq=False)
class Channel:
    """What a connection would close."""

    credentials: grpc.ChannelCredentials | None


def connection(token: Path | None) -> Connection[Channel, str]:
    """Make one that connects nowhere."""
    return Connection(ADDRESS, Security(token_file=token), lambda _, credentials: (Channel(credentials), "stubs"))


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """Give a file with a token."""
    path = tmp_path / "token"
    path.write_text("the-first-token-of-all\n")
    return path


def test_calls_share_a_channel(token: Path) -> None:
    """As long as nothing changes there is one."""
    shared = connection(token)

    first, second = shared.take(), shared.take()

    assert first is second
    assert shared.give_back(first) == []
    assert shared.give_back(second) == []
    assert shared.close() == [first.channel]


def test_changed_file_takes_later_calls_to_another_channel(token: Path) -> None:
    """The older one is closed when its last call is over, and not before."""
    shared = connection(token)
    watching = shared.take()
    token.write_text("the-second-token-is-longer\n")

    later = shared.take()

    assert later.channel is not watching.channel
    assert shared.give_back(later) == []
    assert set(shared.close()) == {watching.channel, later.channel}
    assert shared.give_back(watching) == [watching.channel]
    assert shared.close() == [later.channel]


def test_closed_gives_no_channel() -> None:
    """The caller's mistake, which to ask again does not mend."""
    shared = connection(None)
    shared.close()

    with pytest.raises(InvalidRequest, match=f"this client of collector {ADDRESS} was closed: make another"):
        shared.take()


@pytest.mark.parametrize("text", ["", "short", "two words of a token"])
def test_file_that_is_being_written_changes_nothing_yet(token: Path, text: str) -> None:
    """The next call looks again."""
    shared = connection(token)
    first = shared.take()
    token.write_text(text)

    assert shared.take() is first
    token.write_text("the-second-token-is-longer\n")
    assert shared.take() is not first


def test_file_that_cannot_be_used_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    """Told before anything is sent."""
    with pytest.raises(InvalidRequest, match="cannot be read: No such file"):
        connection(tmp_path / "none")


def test_file_with_a_nul_character_in_its_name_is_a_mistake_of_the_caller() -> None:
    """No file can have one, and the system calls that would be asked take none."""
    with pytest.raises(InvalidRequest, match="no file has a NUL character in its name"):
        connection(Path("a\0b")).take()


def test_without_files_it_speaks_in_the_clear() -> None:
    """As it always did."""
    assert connection(None).take().channel.credentials is None


@pytest.mark.parametrize(
    "names, said",
    [
        ({"tls_cert"}, "go together"),
        ({"tls_key"}, "go together"),
        ({"tls_cert", "tls_key"}, "need --tls-ca"),
        ({"token_file"}, "needs --tls-ca"),
    ],
)
def test_file_without_another_is_refused(names: set[str], said: str, token: Path) -> None:
    """A token would travel in the clear; a certificate alone proves nothing."""
    with pytest.raises(SecurityUnusable, match=said):
        Security(**dict.fromkeys(names, token)).credentials("127.0.0.1:7419")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"-----BEGIN CERTIFICATE-----\nnonsense\n",
        b"-----BEGIN CERTIFICATE-----\n\xff\n",
        b"\xff" * 10,
    ],
)
def test_authority_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    """By the file's name."""
    path = tmp_path / "ca.pem"
    path.write_bytes(content)

    with pytest.raises(SecurityUnusable, match=r"ca\.pem"):
        Security(tls_ca=path).credentials("127.0.0.1:7419")

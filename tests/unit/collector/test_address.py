import socket
from pathlib import Path

import pytest

from wetink_collector.address import AddressUnusable, UnixAddress, parse_address


@pytest.mark.parametrize("path", ["a%20b", "a?b", "a#b", "a,b", "a\nb", "a\0b", "\udcff"])
def test_path_that_no_client_can_write_is_refused(path: str) -> None:
    """To gRPC it is another path, or none."""
    with pytest.raises(AddressUnusable, match="no path that clients can write"):
        parse_address(f"unix:/tmp/{path}")


@pytest.mark.parametrize("path", ["socket", "a b", "t\u00fcr", "[a]", "a:b@c"])
def test_any_other_path_is_taken(path: str) -> None:
    """As it stands."""
    assert parse_address(f"unix:/tmp/{path}") == UnixAddress(f"/tmp/{path}")  # noqa: S108 (nothing is made there)


@pytest.mark.parametrize(
    "name, said",
    [
        ("none/socket", "No such file or directory"),
        ("file", "Address already in use"),
        ("file/socket", "Not a directory"),
        ("l" * 108, "path too long"),
    ],
)
def test_socket_that_cannot_be_made_is_told(tmp_path: Path, name: str, said: str) -> None:
    """Before gRPC tries, and what is there stays."""
    (tmp_path / "file").write_text("precious")

    with pytest.raises(AddressUnusable, match=f"cannot listen on unix:.*{said}; give another address"):
        UnixAddress(f"{tmp_path}/{name}").check_free()

    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_socket_is_free_where_nobody_listens(tmp_path: Path) -> None:
    """Nothing is left of the try, nor of a run that was killed; what somebody listens on stays."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as used:
        used.bind(str(path))
        used.listen()
        with pytest.raises(AddressUnusable, match="another process listens there"):
            UnixAddress(str(path)).check_free()
        assert path.is_socket()

    UnixAddress(str(path)).check_free()
    assert not path.exists()
    UnixAddress(str(path)).check_free()
    assert not path.exists()

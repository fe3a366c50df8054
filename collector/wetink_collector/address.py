"""Where the collector listens: ``HOST:PORT`` or ``unix:PATH``."""

import ipaddress
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PORT_MAX: Final = 65535

_READ_OTHERWISE: Final = re.compile(r"[%?#,]")
"""What an address is to gRPC besides a path: escapes, a query, a fragment, a list of several."""


class AddressUnusable(Exception):
    """An address that cannot be listened on. The sentence says why."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket."""

    path: str

    def __str__(self) -> str:
        """Give it in the form gRPC takes."""
        return f"unix:{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether only this host can connect."""
        return True

    def check_free(self) -> None:
        """Find out whether it can be listened on, and remove what an earlier run left.

        gRPC replaces a socket that is there, even one in use, and of what else it cannot do it says nothing to us.

        Raises:
            AddressUnusable: Somebody listens on it, or it cannot be made.
        """
        try:
            self._remove_left()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.bind(self.path)
            Path(self.path).unlink()
        except OSError as error:
            # Python itself says that a path is too long, and has no number for that.
            message = f"cannot listen on {self}: {error.strerror or error}; give another address"
            raise AddressUnusable(message) from error

    def _remove_left(self) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(self.path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if stat.S_ISSOCK(Path(self.path).lstat().st_mode):
                Path(self.path).unlink()
            return
        message = f"cannot listen on {self}: another process listens there; stop it, or give another address"
        raise AddressUnusable(message)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port. Port 0 means any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        """Give it in the form gRPC takes."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this host can connect. A name counts as local where each of its addresses is.

        Raises:
            AddressUnusable: It is no address, and no name of one.
        """
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            message = f"cannot listen on {self}: {error.strerror}; give another address"
            raise AddressUnusable(message) from error
        return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)

    def check_free(self) -> None:
        """Find out whether it can be listened on: gRPC does not say why it cannot.

        Raises:
            AddressUnusable: It is in use, or no address of this host.
        """
        try:
            family, kind, protocol, _, name = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(name)
                probe.listen(1)
        except OSError as error:
            message = f"cannot listen on {self}: {error.strerror}; stop what is there, or give another address"
            raise AddressUnusable(message) from error


Address = UnixAddress | TcpAddress
"""Where a server listens."""


def parse_address(text: str) -> Address:
    """Read ``HOST:PORT``, ``[HOST]:PORT`` or ``unix:PATH``.

    Raises:
        AddressUnusable: It is none of these.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        if _READ_OTHERWISE.search(text) or not text.isprintable():
            message = f"{text!r} is no path that clients can write: leave out % ? # , and what cannot be printed"
            raise AddressUnusable(message)
        return UnixAddress(text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
        message = f"{text!r} is no address: write HOST:PORT or unix:PATH"
        raise AddressUnusable(message)
    return TcpAddress(host, int(port))

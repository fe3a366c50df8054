"""How agent and client connect to a collector: in the clear, over TLS, with a certificate or a token of their own.

Who may do what is for the collector to say; ``README.md`` beside this package has the statuses.
"""

import re
import ssl
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import grpc

PEM_BYTES_MAX: Final = 1 << 20
"""Bound on a file of certificates: that of all public authorities together is a quarter of it."""

TOKEN_CHARACTERS_MIN: Final = 16
TOKEN_CHARACTERS_MAX: Final = 4096
"""Bounds on a bearer token: a shorter one can be guessed, and gRPC takes no more than 8 KiB of metadata."""

UNIX: Final = "unix:"
"""What the address of a Unix socket begins with."""

_NOT_ASCII: Final = re.compile(rb"[\x80-\xff]")


class SecurityUnusable(Exception):
    """Certificates, keys or tokens that cannot be used. The sentence names the file and never what is in it."""


@dataclass(frozen=True, slots=True)
class Security:
    """The files that prove a collector to its peer, and the peer to the collector. None at all: in the clear.

    Attributes:
        tls_ca: Certificates that the collector's is checked against.
        tls_cert: The peer's own certificate, with those between it and its authority.
        tls_key: The private key to it.
        token_file: The peer's bearer token, alone in the file.
    """

    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(self._files())

    def stamp(self) -> tuple[object, ...]:
        """Give what is different once a file was written or put in another's place."""
        return tuple(stamp(file) for file in self._files())

    def credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """Read the files, and make the credentials of a channel; None means in the clear.

        Args:
            address: The collector's, ``HOST:PORT`` or ``unix:PATH``.

        Raises:
            SecurityUnusable: A file cannot be read or is none, one is missing beside another, or the token would travel
                in the clear.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            message = "--tls-cert and --tls-key go together: give both, or leave both out"
            raise SecurityUnusable(message)
        if self.tls_cert and not self.tls_ca:
            message = "--tls-cert and --tls-key need --tls-ca, which the collector's certificate is checked against"
            raise SecurityUnusable(message)
        if self.token_file and not self.tls_ca and not address.startswith(UNIX):
            message = (
                f"--token-file over {address} needs --tls-ca: without TLS everybody on the way could read the token"
            )
            raise SecurityUnusable(message)
        token = read_token(self.token_file) if self.token_file else None
        if self.tls_ca:
            of_channel = self._tls(self.tls_ca)
        elif token is None:
            return None
        else:
            of_channel = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
        if token is None:
            return of_channel
        return grpc.composite_channel_credentials(of_channel, grpc.access_token_call_credentials(token))

    def _tls(self, tls_ca: Path) -> grpc.ChannelCredentials:
        authorities = read_authorities(tls_ca)
        if self.tls_cert is None or self.tls_key is None:
            return grpc.ssl_channel_credentials(authorities)
        certificate, key = read_pem(self.tls_cert), read_pem(self.tls_key)
        check_pair(self.tls_cert, self.tls_key)
        return grpc.ssl_channel_credentials(authorities, key, certificate)

    def _files(self) -> tuple[Path | None, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


def stamp(file: Path | None) -> tuple[int, ...] | None:
    """Give what is different once a file was written or put in another's place; None where there is no file."""
    try:
        found = file.stat() if file else None
    except (OSError, ValueError):  # the latter of a name with a NUL character
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) if found else None


def read_pem(file: Path) -> bytes:
    """Read a file of certificates or a key.

    Raises:
        SecurityUnusable: It cannot be read, or is no PEM file.
    """
    content = read_bounded(file)
    if b"-----BEGIN " not in content:
        message = f"{file} is no PEM file: it has no line that begins with -----BEGIN"
        raise SecurityUnusable(message)
    return content


def read_authorities(file: Path) -> bytes:
    """Read the certificates that others are checked against.

    Raises:
        SecurityUnusable: It cannot be read, or one in it is no certificate.
    """
    content = read_pem(file)
    # Between the certificates may stand words in any language. In one of them, base64 takes no question mark either.
    ascii_only = _NOT_ASCII.sub(b"?", content).decode("ascii")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ascii_only)
    except (ssl.SSLError, ValueError) as error:
        message = f"{file} has no certificates that can be read: give PEM certificates of the authority"
        raise SecurityUnusable(message) from error
    return content


def check_pair(certificate: Path, key: Path) -> None:
    """Accept a certificate and its private key.

    Raises:
        SecurityUnusable: One is none, the key is of another certificate, or it is encrypted.
    """
    try:
        # Without the password OpenSSL would ask for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        message = f"{certificate} and {key} are no certificate with its private key, in PEM and without a password"
        raise SecurityUnusable(message) from error


def read_token(file: Path) -> str:
    """Read a bearer token, alone in its file.

    Raises:
        SecurityUnusable: It cannot be read, or cannot be a token.
    """
    try:
        token = read_bounded(file).decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not is_token(token):
        message = (
            f"{file} has no token: write {TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX} printable ASCII characters "
            "without a space, and nothing else"
        )
        raise SecurityUnusable(message)
    return token


def is_token(text: str) -> bool:
    """Whether a text can be a bearer token."""
    return (
        TOKEN_CHARACTERS_MIN <= len(text) <= TOKEN_CHARACTERS_MAX
        and text.isascii()
        and text.isprintable()
        and " " not in text
    )


def read_bounded(file: Path) -> bytes:
    """Read a file that is not huge.

    Raises:
        SecurityUnusable: It cannot be read, or is over ``PEM_BYTES_MAX``.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}"
        raise SecurityUnusable(message) from error
    except ValueError as error:
        message = f"{str(file)!r} cannot be read: no file has a NUL character in its name"
        raise SecurityUnusable(message) from error
    if len(content) > PEM_BYTES_MAX:
        message = f"{file} has more than {PEM_BYTES_MAX} bytes"
        raise SecurityUnusable(message)
    return content

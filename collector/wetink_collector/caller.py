"""Who calls: what a certificate or a bearer token says about the peer, and the one role it gives.

What a role may do is in ``access``.
"""

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Final

import structlog
from cryptography.x509 import load_pem_x509_certificate

from wetink.names import HOST_ID
from wetink.tls import TOKEN_CHARACTERS_MAX, TOKEN_CHARACTERS_MIN, SecurityUnusable, is_token, read_bounded, stamp

TOKENS_MAX: Final = 4096
"""Bound on the tokens of a file: each call compares with all of them, for which this is about a millisecond."""

CERTIFICATES_KEPT_MAX: Final = 4096
"""Bound on the certificates whose expiry is remembered: to read it again takes each call longer than all else here."""

TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
"""SPIFFE-ID, section 2.1."""

_URI: Final = re.compile(
    rf"spiffe://(?P<domain>{TRUST_DOMAIN.pattern})/wetink/(?P<role>agent|reader|admin)/(?P<name>[A-Za-z0-9._-]{{1,253}})"
)
_COMMON_NAME: Final = re.compile(r"(?P<role>agent|reader|admin):(?P<name>[A-Za-z0-9._-]{1,253})")
_DIGEST: Final = re.compile(r"sha256:(?P<digest>[0-9a-fA-F]{64})")
_TOKEN_FIELDS: Final = (2, 3)

log = structlog.get_logger()


class Role(StrEnum):
    """What a peer is."""

    AGENT = "agent"
    READER = "reader"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """A peer that is known.

    Attributes:
        name: Of the host, the reader or the admin.
        roles: One, or all where nobody has to say who they are.
        host_id: The only host it may write for; None means any.
    """

    name: str
    roles: frozenset[Role]
    host_id: str | None = None

    @property
    def role(self) -> str:
        """The role, for logs."""
        return ",".join(sorted(self.roles))


EVERYBODY: Final = Caller("everybody", frozenset(Role))
"""Who calls where neither certificates nor tokens are asked for: whoever can connect is everything."""

CALLER: ContextVar[Caller] = ContextVar("CALLER", default=EVERYBODY)
"""Who makes the call that is being served."""


def of_certificate(auth_context: Mapping[str, Iterable[bytes]], trust_domains: Collection[str] = ()) -> Caller | None:
    """Give whom a certificate names, or None where it names no role.

    A URI counts before the common name, which is looked at only where there is no URI at all: an authority that writes
    URIs has said what it had to say. Of several that name a role, none counts.

    Args:
        auth_context: As ``ServicerContext.auth_context`` gives it, of a certificate that was verified.
        trust_domains: Those of which a URI must be; a common name, which is of none, then says nothing. Without any,
            the authority alone counts.
    """
    uris = [uri.decode("utf-8", "replace") for uri in auth_context.get("peer_uri", ())]
    names = [name.decode("utf-8", "replace") for name in auth_context.get("x509_common_name", ())]
    found = [match for uri in uris if (match := _URI.fullmatch(uri))]
    if not uris and not trust_domains:
        found = [match for name in names if (match := _COMMON_NAME.fullmatch(name))]
    if len(found) != 1 or (trust_domains and found[0]["domain"] not in trust_domains):
        return None
    return _caller(Role(found[0]["role"]), found[0]["name"])


def expiry_of(auth_context: Mapping[str, Iterable[bytes]]) -> datetime | None:
    """Give until when a peer's certificate is good; None where it showed none."""
    return next((_expiry(pem) for pem in auth_context.get("x509_pem_cert", ())), None)


class Tokens:
    """The bearer tokens of a file, read again when it changes.

    One a line: the role, the name (for agents the host id; others may leave it out), the token or ``sha256:`` and its
    SHA-256 in hex. Empty lines and those that begin with ``#`` say nothing.
    """

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            SecurityUnusable: It cannot be read, or has a line that is none of these.
        """
        self._file = file
        self._stamp = stamp(file)
        self._callers = _read(file)

    def caller(self, token: str) -> Caller | None:
        """Give whose token it is, or None; how long that takes does not tell how near it comes to one."""
        self._refresh()
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def version(self) -> object:
        """Give what is different once the file was read again."""
        self._refresh()
        return self._stamp

    def _refresh(self) -> None:
        now = stamp(self._file)
        if now == self._stamp:
            return
        # Also where it fails: it is told once, and tried again when the file changes again.
        self._stamp = now
        try:
            self._callers = _read(self._file)
        except SecurityUnusable as error:
            log.error("tokens_unusable", why=str(error), consequence="those from before stay in use")  # noqa: TRY400 (the sentence says it all)
        else:
            log.info("tokens_loaded", file=str(self._file), token_count=len(self._callers))


@lru_cache(CERTIFICATES_KEPT_MAX)
def _expiry(pem: bytes) -> datetime:
    return load_pem_x509_certificate(pem).not_valid_after_utc


def _caller(role: Role, name: str) -> Caller:
    return Caller(name, frozenset((role,)), name if role is Role.AGENT else None)


def _read(file: Path) -> list[tuple[bytes, Caller]]:
    try:
        lines = read_bounded(file).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        message = f"{file} is no text"
        raise SecurityUnusable(message) from error
    callers: dict[bytes, Caller] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        digest, caller = _entry(words, f"{file} line {number}", number)
        if digest in callers:
            message = f"{file} line {number} has a token that stands in it before: give each peer its own"
            raise SecurityUnusable(message)
        callers[digest] = caller
    if len(callers) > TOKENS_MAX:
        message = f"{file} has {len(callers)} tokens, at most {TOKENS_MAX} are possible: use certificates"
        raise SecurityUnusable(message)
    return list(callers.items())


def _entry(words: list[str], where: str, number: int) -> tuple[bytes, Caller]:
    """Read one line. What stands in it is in no sentence: it may be a token.

    Raises:
        SecurityUnusable: It is none.
    """
    if (
        len(words) not in _TOKEN_FIELDS
        or words[0] not in list(Role)
        or (words[0] == "agent" and len(words) == min(_TOKEN_FIELDS))
    ):
        message = f"{where} is none of: agent HOST TOKEN, reader [NAME] TOKEN, admin [NAME] TOKEN"
        raise SecurityUnusable(message)
    name = words[1] if len(words) == max(_TOKEN_FIELDS) else f"line-{number}"
    if not HOST_ID.fullmatch(name):
        message = f"{where} has a name of other than 1 to 253 letters, digits, dots, underscores and hyphens"
        raise SecurityUnusable(message)
    return _digest(words[-1], where), _caller(Role(words[0]), name)


def _digest(text: str, where: str) -> bytes:
    if match := _DIGEST.fullmatch(text):
        return bytes.fromhex(match["digest"])
    if not is_token(text) or text.startswith("sha256:"):
        message = (
            f"{where} has no token: write {TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX} printable ASCII characters, "
            "or sha256: and 64 hex digits"
        )
        raise SecurityUnusable(message)
    return hashlib.sha256(text.encode("ascii")).digest()

import hashlib
from pathlib import Path

import pytest

from wetink.tls import SecurityUnusable
from wetink_collector.caller import TOKENS_MAX, Caller, Role, Tokens, of_certificate

SECRET = "a-token-nobody-may-see"  # noqa: S105 (of this test alone)
OTHER = "another-token-of-a-peer"
HASHED = f"sha256:{hashlib.sha256(OTHER.encode()).hexdigest()}"


def certificate(*uris: str, name: str = "") -> Caller | None:
    """Say who calls with a certificate of these names."""
    proofs = {"peer_uri": [uri.encode() for uri in uris], "x509_common_name": [name.encode()] if name else []}
    return of_certificate({key: value for key, value in proofs.items() if value})


def tokens(path: Path, text: str) -> Tokens:
    """Write a file of tokens, and read it."""
    path.write_text(text)
    return Tokens(path)


@pytest.mark.parametrize(
    "uri, expected",
    [
        ("spiffe://a.example/wetink/agent/host-1", Caller("host-1", frozenset({Role.AGENT}), "host-1")),
        ("spiffe://a.example/wetink/reader/mover", Caller("mover", frozenset({Role.READER}))),
        ("spiffe://a.example/wetink/admin/root", Caller("root", frozenset({Role.ADMIN}))),
    ],
)
def test_uri_names_role_and_host(uri: str, expected: Caller) -> None:
    """Only an agent is kept to a host."""
    assert certificate(uri) == expected


@pytest.mark.parametrize(
    "uris, name, counts",
    [
        (["spiffe://a.example/wetink/admin/root"], "", True),
        (["spiffe://b.example/wetink/admin/root"], "", True),
        (["spiffe://c.example/wetink/admin/root"], "", False),
        (["spiffe://a.example.c.example/wetink/admin/root"], "", False),
        (["spiffe://c.example/wetink/admin/root", "spiffe://a.example/wetink/admin/root"], "", False),
        ([], "admin:root", False),
        (["spiffe://c.example/wetink/admin/root"], "admin:root", False),
    ],
)
def test_trust_domain_confines(uris: list[str], name: str, *, counts: bool) -> None:
    """What the authority signs for others is nothing here, and a common name is of no domain."""
    proofs = {"peer_uri": [uri.encode() for uri in uris], "x509_common_name": [name.encode()] if name else []}
    found = of_certificate({key: value for key, value in proofs.items() if value}, {"a.example", "b.example"})

    assert (found is not None) == counts


def test_common_name_counts_where_there_is_no_uri() -> None:
    """As the URI does."""
    assert certificate(name="agent:host-1") == Caller("host-1", frozenset({Role.AGENT}), "host-1")
    assert certificate(name="admin:root") == Caller("root", frozenset({Role.ADMIN}))


@pytest.mark.parametrize(
    "uris, name",
    [
        ([], ""),
        ([], "root"),
        ([], "admin:"),
        ([], "superuser:root"),
        ([], "admin:root "),
        ([], "agent:a/../b"),
        (["https://a.example/wetink/admin/root"], ""),
        (["spiffe://a.example/wetink/admin"], ""),
        (["spiffe://a.example/wetink/admin/root/more"], ""),
        (["spiffe://a.example/x/wetink/admin/root"], ""),
        (["spiffe://a.example/ns/default/sa/other"], "admin:root"),
        (["spiffe://a.example/wetink/reader/r", "spiffe://a.example/wetink/admin/a"], ""),
    ],
)
def test_anything_else_names_nobody(uris: list[str], name: str) -> None:
    """A certificate for something else, one with two roles, and a common name beside a URI that says otherwise."""
    assert certificate(*uris, name=name) is None


def test_file_names_who_has_which_token(tmp_path: Path) -> None:
    """As text or hashed, with a name or without, and comments between."""
    known = tokens(tmp_path / "tokens", f"# ours\n\nagent host-1 {SECRET}\n  reader mover {HASHED}\nadmin {'x' * 16}\n")

    assert known.caller(SECRET) == Caller("host-1", frozenset({Role.AGENT}), "host-1")
    assert known.caller(OTHER) == Caller("mover", frozenset({Role.READER}))
    assert known.caller("x" * 16) == Caller("line-5", frozenset({Role.ADMIN}))


@pytest.mark.parametrize("token", ["", SECRET[:-1], SECRET + "x", SECRET.upper(), HASHED, "ü" * 20, "\ud800" * 20])
def test_other_token_is_nobodys(tmp_path: Path, token: str) -> None:
    """Nor is the hash a token, nor text that is none."""
    assert tokens(tmp_path / "tokens", f"admin a {SECRET}\nreader b {HASHED}\n").caller(token) is None


@pytest.mark.parametrize(
    "line",
    [
        f"agent {SECRET}",
        f"root name {SECRET}",
        f"admin a b {SECRET}",
        "admin short",
        f"admin na/me {SECRET}",
        "admin name sha256:1234",
        "reader",
    ],
)
def test_line_that_is_none_is_told_by_its_number(tmp_path: Path, line: str) -> None:
    """And by nothing that stands in it: it may be a token."""
    with pytest.raises(SecurityUnusable) as caught:
        tokens(tmp_path / "tokens", f"# first\n{line}\n")

    assert "line 2" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "short" not in str(caught.value)


def test_token_of_two_peers_is_refused(tmp_path: Path) -> None:
    """Which of them it is could not be told."""
    with pytest.raises(SecurityUnusable, match="line 2"):
        tokens(tmp_path / "tokens", f"reader a {OTHER}\nadmin b {HASHED}\n")


def test_too_many_tokens_are_refused(tmp_path: Path) -> None:
    """Each call is compared with all of them."""
    lines = "".join(f"reader r{number} token-of-reader-{number:06}\n" for number in range(TOKENS_MAX + 1))

    with pytest.raises(SecurityUnusable, match=str(TOKENS_MAX)):
        tokens(tmp_path / "tokens", lines)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """It is named, with the reason."""
    with pytest.raises(SecurityUnusable, match="No such file"):
        Tokens(tmp_path / "none")


def test_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """What is not in it any more is nobody's; a file that went wrong leaves what was there."""
    path = tmp_path / "tokens"
    known = tokens(path, f"admin a {SECRET}\n")

    path.write_text(f"reader b {OTHER}\n")
    assert known.caller(SECRET) is None
    assert known.caller(OTHER) == Caller("b", frozenset({Role.READER}))

    fresh = tmp_path / "fresh"
    fresh.write_text("nonsense\n")
    fresh.replace(path)
    assert known.caller(OTHER) == Caller("b", frozenset({Role.READER}))

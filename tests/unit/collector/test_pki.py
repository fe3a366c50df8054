import datetime as dt
import errno
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from wetink_collector import pki

EVERYTHING = {"ca", "collector", "agent-node1", "agent-node2", "reader", "admin"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A first set-up for two hosts."""
    pki.initialise(tmp_path / "pki", ["node1", "node2"], ["collector.example", "192.0.2.7"])
    return tmp_path / "pki"


def certificate(directory: Path, name: str) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate((directory / f"{name}.pem").read_bytes())


def alternatives(of: x509.Certificate) -> x509.SubjectAlternativeName:
    """Give the alternative names in a certificate."""
    return of.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_everything_for_a_first_set_up_is_there(directory: Path) -> None:
    """Each certificate has its key beside it, and nothing else is written."""
    assert {path.name for path in directory.iterdir()} == {
        f"{name}.{kind}" for name in EVERYTHING for kind in ("pem", "key")
    }
    for name in EVERYTHING:
        key = load_pem_private_key((directory / f"{name}.key").read_bytes(), None)
        assert key.public_key() == certificate(directory, name).public_key()


def test_private_keys_are_for_their_owner_alone(directory: Path) -> None:
    """Whatever the umask was; certificates are for anybody."""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}

    assert {mode for name, mode in modes.items() if name.endswith(".key")} == {0o600}
    assert {mode for name, mode in modes.items() if name.endswith(".pem")} == {0o644}


@pytest.mark.parametrize(
    "name, uri",
    [
        ("agent-node1", "spiffe://wetink.internal/wetink/agent/node1"),
        ("agent-node2", "spiffe://wetink.internal/wetink/agent/node2"),
        ("reader", "spiffe://wetink.internal/wetink/reader/reader"),
        ("admin", "spiffe://wetink.internal/wetink/admin/admin"),
    ],
)
def test_peers_are_named_by_a_spiffe_id_and_may_only_be_clients(directory: Path, name: str, uri: str) -> None:
    """One id each, as SPIFFE wants it; an agent's certificate cannot pose as a collector."""
    found = certificate(directory, name)

    assert alternatives(found).get_values_for_type(x509.UniformResourceIdentifier) == [uri]
    assert len(list(alternatives(found))) == 1
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_collector_is_found_by_its_names_and_may_only_be_a_server(directory: Path) -> None:
    """Those that are given, and those of its own host; it can pose as no client."""
    found = certificate(directory, "collector")

    assert {"localhost", "collector", "collector.example"} <= set(alternatives(found).get_values_for_type(x509.DNSName))
    addresses = {str(one) for one in alternatives(found).get_values_for_type(x509.IPAddress)}
    assert {"127.0.0.1", "::1", "192.0.2.7"} == addresses
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_the_authority_signs_them_all_and_they_no_others(directory: Path) -> None:
    """What a peer signs is worth nothing, and an authority under this one neither."""
    signer = certificate(directory, "ca")

    for name in EVERYTHING - {"ca"}:
        certificate(directory, name).verify_directly_issued_by(signer)
        of_leaf = certificate(directory, name).extensions.get_extension_for_class(x509.BasicConstraints).value
        assert not of_leaf.ca
    assert signer.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(
        ca=True, path_length=0
    )


def test_they_are_good_for_a_year(directory: Path) -> None:
    """And from an hour ago, since clocks differ."""
    found = certificate(directory, "reader")
    now = dt.datetime.now(dt.UTC)

    assert now - dt.timedelta(hours=2) < found.not_valid_before_utc < now
    assert now + dt.timedelta(days=365) < found.not_valid_after_utc < now + dt.timedelta(days=400)


@pytest.mark.parametrize("name", ["ca.pem", "admin.key", "agent-node9.key"])
def test_nothing_is_overwritten_and_then_nothing_is_written(tmp_path: Path, name: str) -> None:
    """A second authority over the first would lock everybody out."""
    (tmp_path / name).write_text("precious")

    with pytest.raises(pki.PkiRefused, match=f"{name} is there already, and nothing was written"):
        pki.initialise(tmp_path, ["node9"], [])

    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Also not one to nowhere: it would say where the key goes."""
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki/ca.key").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(pki.PkiRefused, match="is there already"):
        pki.initialise(tmp_path / "pki", [], [])

    assert not (tmp_path / "elsewhere").exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """In one sentence, with the place."""
    (tmp_path / "file").write_text("")

    with pytest.raises(pki.PkiRefused, match="file/pki cannot be written: Not a directory"):
        pki.initialise(tmp_path / "file/pki", [], [])


def test_a_host_whose_files_cannot_be_named_so_is_told_first(tmp_path: Path) -> None:
    """A host id may have more characters than a file has room for: then nothing is written for others either."""
    pki.initialise(tmp_path / "longest", ["h" * 245], [])

    with pytest.raises(pki.PkiRefused, match="of 256 characters, where 255 are possible, and nothing was written"):
        pki.initialise(tmp_path / "pki", ["node1", "h" * 246], [])

    assert not (tmp_path / "pki").exists()


def test_what_was_written_before_a_failure_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a set of files would refuse the next try."""
    opened = os.open

    def fail_at_a_key(path: Path, flags: int, mode: int = 0o777, **rest: int | None) -> int:
        if path == tmp_path / "agent-node1.key":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return opened(path, flags, mode, **rest)

    with monkeypatch.context() as full:
        full.setattr(os, "open", fail_at_a_key)
        with pytest.raises(pki.PkiRefused, match=r"agent-node1\.key cannot be written: No space left"):
            pki.initialise(tmp_path, ["node1"], [])

    assert list(tmp_path.iterdir()) == []
    pki.initialise(tmp_path, ["node1"], [])


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a b", "collector.example:7419", "https://collector.example", "a/b", "-a", "a-", "a..b", ".a", "a."),
        *("192.0.2.256", "a.*.b", "*", "b\u00fccher.example", "a\0b", "a\n", "l" * 64, "l." * 127 + "l"),
    ],
)
def test_what_nobody_can_ask_for_is_no_name(tmp_path: Path, text: str) -> None:
    """It would stand in a certificate that fits no collector, and nobody would be told."""
    with pytest.raises(pki.PkiRefused, match="neither a DNS name nor an IP address"):
        pki.initialise(tmp_path / "pki", [], [text])

    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize("text", ["a", "collector.example", "my_host", "*.example", "3com.example", "::1", "192.0.2.7"])
def test_what_can_be_asked_for_is_a_name(text: str) -> None:
    """Of hosts, of services in a container's network, and by address."""
    assert list(alternatives(pki.collector(pki.authority(), [text]).certificate))


def test_a_host_with_a_long_name_has_it_in_the_uri_alone() -> None:
    """A common name has no room for more than 64 characters."""
    host = "h" * 253
    issued = pki.peer(pki.authority(), "agent", host)

    assert not list(issued.certificate.subject)
    assert alternatives(issued.certificate).get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://wetink.internal/wetink/agent/{host}"
    ]

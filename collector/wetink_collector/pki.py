"""Certificates for a first set-up: an authority, and what it has signed for the collector, its agents and its readers.

Who has an authority of their own needs none of this: the collector looks only at who signed, and at the name.
"""

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS: Final = 3650
"""How long the authority is good: longer than anybody keeps a first set-up."""

DAYS: Final = 397
"""How long all others are good: the longest that public authorities may sign for, and a month over a year."""

SKEW: Final = dt.timedelta(hours=1)
"""How long before now they begin to be good: clocks differ."""

TRUST_DOMAIN: Final = "wetink.internal"
"""The domain in the SPIFFE ids; the collector takes any."""

COMMON_NAME_CHARACTERS_MAX: Final = 64
"""``ub-common-name`` of RFC 5280. A longer name stands in the SPIFFE id alone."""

NAMES: Final = ("localhost", "127.0.0.1", "::1", "collector", "wetink-collector")
"""Where a collector is asked for in any case: on its own host, and as the service of that name in a container's
network."""

FILE_NAME_BYTES_MAX: Final = 255
"""``NAME_MAX`` of Linux."""

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME: Final = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_DNS_NAME_CHARACTERS_MAX: Final = 253


class PkiRefused(Exception):
    """Nothing was written. The sentence says why."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate, for anybody."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, for its owner alone."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def authority(name: str = "wetink") -> Issued:
    """Make an authority that can sign others."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, name, key, dt.timedelta(days=AUTHORITY_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Issued(builder.sign(key, hashes.SHA256()), key)


def collector(signer: Issued, names: Sequence[str], *, good_for: dt.timedelta = dt.timedelta(days=DAYS)) -> Issued:
    """Make the collector's certificate.

    Args:
        signer: The authority.
        names: DNS names and addresses that it is asked for by.
        good_for: From now on; less than nothing makes one that has expired.
    """
    san = [_alternative(name) for name in dict.fromkeys(names)]
    return sign(signer, "collector", san, ExtendedKeyUsageOID.SERVER_AUTH, good_for)


def peer(signer: Issued, role: str, name: str, *, good_for: dt.timedelta = dt.timedelta(days=DAYS)) -> Issued:
    """Make the certificate of an agent, reader or admin.

    Args:
        signer: The authority.
        role: ``agent``, ``reader`` or ``admin``.
        name: Of an agent, its host id.
        good_for: As of ``collector``.
    """
    san = [x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/wetink/{role}/{name}")]
    return sign(signer, f"{role}:{name}", san, ExtendedKeyUsageOID.CLIENT_AUTH, good_for)


def sign(
    signer: Issued,
    name: str,
    san: Sequence[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    good_for: dt.timedelta,
) -> Issued:
    """Sign a certificate that signs no others.

    Args:
        signer: The authority.
        name: The common name; one of more than 64 characters is left out.
        san: The alternative names.
        purpose: The one extended key usage.
        good_for: From now on; less than nothing makes one that has expired.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    (issuer,) = signer.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    builder = _builder(name, str(issuer.value), key, good_for)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    # Without a common name the alternative names are all there is to go by.
    builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=len(name) > COMMON_NAME_CHARACTERS_MAX)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return Issued(builder.sign(signer.key, hashes.SHA256()), key)


def initialise(directory: Path, hosts: Sequence[str], names: Sequence[str]) -> list[Path]:
    """Write an authority and what it signs into a directory: the collector, an agent for each host, a reader, an admin.

    Args:
        directory: Made where it is not there.
        hosts: Host ids of agents.
        names: Where the collector is asked for, besides ``NAMES``.

    Returns:
        What was written. Private keys are for their owner alone.

    Raises:
        PkiRefused: A name is none, or a file is there already or cannot be written. No file is ever overwritten, and
            none is left where not all could be written.
    """
    for host in hosts:
        _check_file_name(host)
    signer = authority()
    issued = {
        "ca": signer,
        "collector": collector(signer, (*NAMES, *names)),
        **{f"agent-{host}": peer(signer, "agent", host) for host in hosts},
        "reader": peer(signer, "reader", "reader"),
        "admin": peer(signer, "admin", "admin"),
    }
    files = {directory / f"{name}.pem": (one.certificate_pem, 0o644) for name, one in issued.items()}
    files |= {directory / f"{name}.key": (one.key_pem, 0o600) for name, one in issued.items()}
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for path in files:
            _refuse_existing(path)
        _write_all(files)
    except OSError as error:
        message = f"{error.filename or directory} cannot be written: {error.strerror}"
        raise PkiRefused(message) from error
    return list(files)


def is_dns_name(text: str) -> bool:
    """Whether a collector can be asked for by a text in DNS, or in a container's network; a wildcard stands first."""
    return (
        len(text) <= _DNS_NAME_CHARACTERS_MAX
        and _DNS_NAME.fullmatch(text) is not None
        and not text.rpartition(".")[2].isdigit()  # what ends like that is a wrong IP address
    )


def _check_file_name(host: str) -> None:
    size_bytes = len(f"agent-{host}.pem")
    if size_bytes > FILE_NAME_BYTES_MAX:
        message = (
            f"the certificate of host {host[:32]}... would need a file name of {size_bytes} characters, where "
            f"{FILE_NAME_BYTES_MAX} are possible, and nothing was written: give the host a shorter --host-id"
        )
        raise PkiRefused(message)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        message = f"{path} is there already, and nothing was written: take another directory, or move what is there"
        raise PkiRefused(message)


def _write_all(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Write new files, or none."""
    made: list[Path] = []
    try:
        for path, (content, mode) in files.items():
            # Nobody else can read it even while it is written.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            made.append(path)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(content)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def _builder(
    name: str, issuer: str, key: ec.EllipticCurvePrivateKey, good_for: dt.timedelta
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW + min(good_for, dt.timedelta()))
        .not_valid_after(now + good_for)
    )


def _name(text: str) -> x509.Name:
    if len(text) > COMMON_NAME_CHARACTERS_MAX:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not is_dns_name(name):
        message = (
            f"{name[:300]!r} is neither a DNS name nor an IP address: give a name in its ASCII form, without a port"
        )
        raise PkiRefused(message)
    return x509.DNSName(name)

"""Certificates in files, as an operator has them, good and bad; and channels that use them."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from wetink_collector import pki

YESTERDAY: Final = dt.timedelta(days=-1)
"""How long what has expired was good."""


@dataclass(frozen=True)
class Proof:
    """A certificate and its key, in files."""

    cert: Path
    key: Path


class Authority:
    """An authority that signs into a directory."""

    def __init__(self, directory: Path, name: str = "wetink") -> None:
        """Make it, and write its certificate."""
        self._directory = directory
        self._issued = pki.authority(name)
        self.ca = directory / f"{name}-ca.pem"
        self.ca.write_bytes(self._issued.certificate_pem)

    def collector(self, *, good_for: dt.timedelta = dt.timedelta(days=1)) -> Proof:
        """Give the collector's certificate; a later one takes its place in the files, as a rename does it."""
        return self._write("collector", pki.collector(self._issued, pki.NAMES, good_for=good_for))

    def peer(self, role: str, name: str, *, good_for: dt.timedelta = dt.timedelta(days=1)) -> Proof:
        """Give the certificate of an agent, reader or admin."""
        return self._write(f"{role}-{name}", pki.peer(self._issued, role, name, good_for=good_for))

    def named(self, file: str, common_name: str, *uris: str, dns: str | None = None) -> Proof:
        """Give a client's certificate with any names."""
        san: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        san += [x509.DNSName(dns)] if dns else []
        good_for = dt.timedelta(days=1)
        return self._write(file, pki.sign(self._issued, common_name, san, ExtendedKeyUsageOID.CLIENT_AUTH, good_for))

    def _write(self, name: str, issued: pki.Issued) -> Proof:
        stem = f"{self.ca.stem}-{name}"
        proof = Proof(self._directory / f"{stem}.pem", self._directory / f"{stem}.key")
        for path, content in ((proof.cert, issued.certificate_pem), (proof.key, issued.key_pem)):
            fresh = path.with_suffix(".fresh")
            fresh.write_bytes(content)
            fresh.replace(path)
        return proof


def serial_of(proof: Proof) -> int:
    """Give the number by which a certificate is told from another."""
    return x509.load_pem_x509_certificate(proof.cert.read_bytes()).serial_number


def credentials(ca: Path, proof: Proof | None = None, token: str | None = None) -> grpc.ChannelCredentials:
    """Give what a client connects with."""
    channel = grpc.ssl_channel_credentials(
        ca.read_bytes(), proof.key.read_bytes() if proof else None, proof.cert.read_bytes() if proof else None
    )
    if token is None:
        return channel
    return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token))

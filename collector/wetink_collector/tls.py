"""The collector's side of TLS: its certificate, and the authorities of its peers', read again when the files change.

Streams that are open go on with the certificate they began with; a new connection sees the new one.
"""

import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from wetink.tls import SecurityUnusable, read_authorities, read_pem, stamp
from wetink_collector import metrics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificate and key are, and the authorities of clients' certificates; without those, clients need none."""

    cert: Path
    key: Path
    client_ca: Path | None = None


class ServerTls:
    """The certificate in use. gRPC asks for it at each new connection, from threads of its own."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            SecurityUnusable: One cannot be used.
        """
        self._files = files
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._configuration = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Give what a port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._newest,  # type: ignore[arg-type] # None, for no change, is not in types-grpcio
            require_client_authentication=self._files.client_ca is not None,
        )

    def _newest(self) -> grpc.ServerCertificateConfiguration | None:
        """Read the files again where they changed; None means the same as before."""
        with self._lock:
            now = self._stamp_now()
            if now == self._stamp:
                return None
            # Also where it fails: it is told once, and tried again when they change again.
            self._stamp = now
            try:
                return self._read()
            except SecurityUnusable as error:
                log.error("certificate_unusable", why=str(error), consequence="the one from before stays in use")  # noqa: TRY400 (the sentence says it all)
                return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        files = self._files
        certificate, key = read_pem(files.cert), read_pem(files.key)
        try:
            (leaf, *_) = x509.load_pem_x509_certificates(certificate)
            fits = load_pem_private_key(key, password=None).public_key() == leaf.public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            message = (
                f"{files.cert} and {files.key} are no certificate with its private key, in PEM, without a password"
            )
            raise SecurityUnusable(message) from error
        _check_usable(files.cert, leaf)
        if not fits:
            message = f"{files.key} is not the private key of the certificate {files.cert}"
            raise SecurityUnusable(message)
        authorities = read_authorities(files.client_ca) if files.client_ca else None
        metrics.CERTIFICATE_EXPIRY.set(leaf.not_valid_after_utc.timestamp())
        log.info("certificate_loaded", file=str(files.cert), valid_until=leaf.not_valid_after_utc.isoformat())
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)

    def _stamp_now(self) -> tuple[object, ...]:
        return tuple(stamp(file) for file in (self._files.cert, self._files.key, self._files.client_ca))


def _check_usable(file: Path, leaf: x509.Certificate) -> None:
    """Accept a certificate that gRPC's clients accept: with others every handshake fails.

    Raises:
        SecurityUnusable: It has expired, or its key is of a kind that gRPC's TLS signs nothing with.
    """
    key = leaf.public_key()
    if not isinstance(key, RSAPublicKey) and not (
        isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1 | SECP384R1)
    ):
        message = f"{file} has a key of a kind that gRPC cannot use: make one with RSA, P-256 or P-384"
        raise SecurityUnusable(message)
    if leaf.not_valid_after_utc < datetime.now(UTC):
        message = f"{file} expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: renew it"
        raise SecurityUnusable(message)

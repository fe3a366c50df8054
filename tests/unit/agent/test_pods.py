"""Lists of pods: what is read of them, and that one that is late, huge or broken costs labels and nothing else."""

import json
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from wetink_agent import pods
from wetink_agent.pods import PodList, PodSource, PodsUnusable, parse, read

UID = "3f8c1a2b-4d5e-6f70-8192-a3b4c5d6e7f8"
ID = "4e1f" * 16
SIDECAR = "77aa" * 16


def item(name: str = "cart-0", **statuses: object) -> dict[str, object]:
    """Give one pod as the API server writes it, with less of what is not read."""
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": UID, "annotations": None},
        "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "wetink"}]},
        "status": statuses,
    }


def written(directory: Path, *items: object) -> PodSource:
    """Write a list into a file."""
    path = directory / "pods.json"
    path.write_text(json.dumps({"kind": "PodList", "items": items}), encoding="utf-8")
    return PodSource(str(path))


def running(name: str, container_id: str) -> dict[str, str]:
    """Give a container's status."""
    return {"name": name, "containerID": f"containerd://{container_id}"}


def test_each_container_has_its_name(tmp_path: Path) -> None:
    """Init containers too: a native sidecar is one."""
    source = written(
        tmp_path,
        item(containerStatuses=[running("app", ID)], initContainerStatuses=[running("wetink", SIDECAR)]),
    )
    found = PodList(source)

    assert found.find(UID, ID) == {"pod": "cart-0", "namespace": "shop", "container": "app"}
    assert found.find("", SIDECAR) == {"pod": "cart-0", "namespace": "shop", "container": "wetink"}
    assert found.find("another", "another") == {}


def test_container_without_an_id_yet_is_of_its_pod_all_the_same(tmp_path: Path) -> None:
    """Kubelet reports ids late. Which container it is, is known where there is only one."""
    young = item(containerStatuses=[{"name": "app", "containerID": ""}])
    lone = item()
    lone["spec"] = {"containers": [{"name": "app"}]}

    assert PodList(written(tmp_path, young)).find(UID, ID) == {"pod": "cart-0", "namespace": "shop", "container": ""}
    assert PodList(written(tmp_path, lone)).find(UID, ID)["container"] == "app"


def test_pod_of_kubelet_itself_is_found_by_its_hash(tmp_path: Path) -> None:
    """Its cgroup has the hash of its file, and not the uid that the API server gave its mirror."""
    static = item()
    static["metadata"] = {
        "name": "etcd",
        "namespace": "kube-system",
        "uid": UID,
        "annotations": {"kubernetes.io/config.hash": "d8f9" * 8},
    }

    assert PodList(written(tmp_path, static)).find("d8f9" * 8, ID)["pod"] == "etcd"


def test_list_is_read_again_for_what_is_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that came after the last read is found; what is known needs no reading."""
    monkeypatch.setattr(pods, "AGAIN_SECONDS", 0.0)
    found = PodList(written(tmp_path))
    assert found.find(UID, ID) == {}

    source = written(tmp_path, item(containerStatuses=[running("app", ID)]))
    assert found.find(UID, ID)["pod"] == "cart-0"
    Path(source.location).unlink()
    assert found.find(UID, ID)["pod"] == "cart-0"


def test_new_list_is_not_read_again_at_once(tmp_path: Path) -> None:
    """A thousand processes in unknown containers do not ask the API server a thousand times."""
    found = PodList(written(tmp_path))
    assert found.find(UID, ID) == {}
    written(tmp_path, item(containerStatuses=[running("app", ID)]))

    assert found.find(UID, ID) == {}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"items": 7}',
        b'{"items": [{}]}',
        b'{"items": [{"metadata": {"name": 1, "namespace": "n", "uid": "u"}}]}',
        b'{"items": [{"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "status": {"containerStatuses": 5}}]}',
        b"[" * 100_000,
    ],
    ids=["empty", "list", "no text", "number", "nothing in it", "name", "statuses", "deep"],
)
def test_what_is_no_list_of_pods_is_refused(text: bytes) -> None:
    """With one error, whatever it is."""
    with pytest.raises(PodsUnusable):
        list(parse(text))


def test_list_that_cannot_be_read_is_said_once_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It costs labels; the log names the file."""
    found = PodList(PodSource(str(tmp_path / "absent")))

    assert found.find(UID, ID) == {}
    assert found.find(UID, ID) == {}
    assert capsys.readouterr().out.count("pods_unreadable") == 1


def test_list_over_its_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large it is, no more than the bound is kept."""
    monkeypatch.setattr(pods, "LIST_BYTES_MAX", 100)

    with pytest.raises(PodsUnusable, match="over 100 bytes"):
        read(written(tmp_path, item()))


class Server(ThreadingHTTPServer):
    """Answers as it was told, and keeps what it was asked."""

    def __init__(self, body: bytes, *, status: int = 200, pause_seconds: float = 0.0) -> None:
        """Listen on a free port."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = body
        self.status = status
        self.pause_seconds = pause_seconds
        self.asked: list[tuple[str, Mapping[str, str]]] = []


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self) -> None:
        """Answer, byte by byte where there is a pause."""
        assert isinstance(self.server, Server)
        self.server.asked.append((self.path, dict(self.headers)))
        self.send_response(self.server.status)
        self.end_headers()
        for byte in self.server.body if self.server.pause_seconds else ():
            time.sleep(self.server.pause_seconds)
            try:
                self.wfile.write(bytes([byte]))
            except OSError:
                return
        if not self.server.pause_seconds:
            self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """Serve while the body runs; where."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_list_at_a_url(tmp_path: Path) -> None:
    """The query goes along. Without TLS the token does not."""
    (tmp_path / "token").write_text("secret\n", encoding="ascii")
    server = Server(Path(written(tmp_path, item(containerStatuses=[running("app", ID)])).location).read_bytes())
    with serving(server) as url:
        source = PodSource(f"{url}/api/v1/pods?fieldSelector=spec.nodeName=n", tmp_path / "token")
        assert PodList(source).find(UID, ID)["pod"] == "cart-0"

    ((path, headers),) = server.asked
    assert path == "/api/v1/pods?fieldSelector=spec.nodeName=n"
    assert "Authorization" not in headers


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = directory / f"{name}.pem", directory / f"{name}-key.pem"
    certificate_path.write_bytes(made.public_bytes(Encoding.PEM))
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate_path, key_path


def test_list_at_a_url_of_https_takes_token_and_authority(tmp_path: Path) -> None:
    """The token is the file's; a server that the authority does not vouch for gets none."""
    (tmp_path / "token").write_text("secret\n", encoding="ascii")
    cert, key = certificate(tmp_path, "server")
    other, _ = certificate(tmp_path, "other")
    server = Server(Path(written(tmp_path, item(containerStatuses=[running("app", ID)])).location).read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server) as url:
        trusted = PodSource(url.replace("http:", "https:"), tmp_path / "token", cert)
        assert PodList(trusted).find(UID, ID)["container"] == "app"
        with pytest.raises(PodsUnusable, match="CERTIFICATE_VERIFY_FAILED"):
            read(PodSource(trusted.location, trusted.token, other))

    assert [headers["Authorization"] for _, headers in server.asked] == ["Bearer secret"]


def test_url_that_refuses_says_so() -> None:
    """A missing right is an answer with a number."""
    with serving(Server(b"no", status=403)) as url, pytest.raises(PodsUnusable, match="refused: 403"):
        read(PodSource(url))


def test_list_that_drips_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and the whole does not."""
    monkeypatch.setattr(pods, "READ_SECONDS_MAX", 0.3)
    with serving(Server(b"x" * 1000, pause_seconds=0.05)) as url:
        began = time.monotonic()
        assert PodList(PodSource(url)).find(UID, ID) == {}
        with pytest.raises(PodsUnusable, match="too long"):
            read(PodSource(url))
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "location, token",
    [
        ("https://127.0.0.1:9/pods", "SECRET\nsecond line"),
        ("https://127.0.0.1:9/pods", "SECRET\u2026"),
        ("https://[::1/pods", "SECRET"),
        ("pods\0.json", "SECRET"),
    ],
)
def test_address_or_token_that_no_request_can_carry(tmp_path: Path, location: str, token: str) -> None:
    """One sentence, without the token in it or behind it."""
    file = tmp_path / "token"
    file.write_text(token, encoding="utf-8")
    authority, _ = certificate(tmp_path, "127.0.0.1")

    with pytest.raises(PodsUnusable, match="malformed") as caught:
        read(PodSource(location, token=file, authority=authority))

    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__

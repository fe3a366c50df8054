import datetime as dt
import socket
import ssl
import time
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.integration.collector.wire import Agent, Reader, batch, refused, target
from tests.integration.security.audit import Audit
from tests.integration.security.conftest import wanting_certificates
from tests.support.certificates import YESTERDAY, Authority, Proof, credentials, serial_of
from tests.support.collector import CollectorProcess, start_collector
from wetink.v1 import dirty_pb2 as pb

ONE = target()
NAME = "host-1/1@100"

LARGE_PAGES = 6_000_000
"""Every other page of so many takes 750 KB: fewer than a batch may have, more than a part of an answer."""


def reader(collector: CollectorProcess, authority: Authority, proof: Proof | None) -> Reader:
    """Connect as an orchestrator."""
    return Reader(collector.address, credentials(authority.ca, proof))


def agent(collector: CollectorProcess, authority: Authority, proof: Proof, host_id: str = "host-1") -> Agent:
    """Connect as an agent."""
    return Agent(collector.address, host_id, credentials=credentials(authority.ca, proof))


def served_serial(collector: CollectorProcess, authority: Authority, proof: Proof) -> int:
    """Give the number of the certificate that a new connection sees."""
    context = ssl.create_default_context(cafile=authority.ca)
    context.load_cert_chain(proof.cert, proof.key)
    host, _, port = collector.address.rpartition(":")
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
        found = tls.getpeercert()
    assert found
    return int(str(found["serialNumber"]), 16)


def test_each_role_does_what_is_its_own(collector: CollectorProcess, audit: Audit, authority: Authority) -> None:
    """An agent delivers, a reader reads, an admin reads and tracks; what changes something is in the audit."""
    with agent(collector, authority, authority.peer("agent", "host-1")) as one:
        one.hello()
        one.deliver(ONE, [1, 2])

        assert reader(collector, authority, authority.peer("reader", "ci")).dirty(NAME).written == {NAME: {1, 2}}
        admin = reader(collector, authority, authority.peer("admin", "ops"))
        assert admin.dirty(NAME).written == {NAME: {1, 2}}
        with refused(grpc.StatusCode.NOT_FOUND):
            admin.stub.Track(pb.TrackRequest(host_id="nowhere", pid=7), timeout=20)

    line = audit.wait_for(method="Track", result="NOT_FOUND", target="nowhere/7")
    assert "ops" in line["caller"]
    assert line["role"] == "admin"
    assert line["peer"].startswith("ipv4:127.0.0.1:")


def test_barrier_is_in_the_audit(collector: CollectorProcess, audit: Audit, authority: Authority) -> None:
    """It holds targets up for a moment: who asked, what for, and how it ended."""
    two = target(host_id="host-2")
    with agent(collector, authority, authority.peer("agent", "host-2"), "host-2") as one:
        one.hello()
        one.deliver(two, [1])
        orchestrator = reader(collector, authority, authority.peer("reader", "ci"))
        asked = orchestrator.stub.Barrier.future(
            pb.BarrierRequest(selection=pb.Selection(targets=["host-2/1@100"]), timeout_ms=5000), timeout=20
        )
        one.harvest(one.hear("barrier").barrier, batch(two, 2, written=[5]))
        assert asked.result().targets[0].complete
        selection = pb.Selection(targets=["host-2/1@100"])
        for barrier in (False, True):
            # To its end: who leaves before may have left before that was written, and the audit says so.
            list(
                orchestrator.stub.GetDirty(
                    pb.GetDirtyRequest(selection=selection, barrier=barrier, barrier_timeout_ms=50), timeout=20
                )
            )

    for method in ("Barrier", "GetDirty"):
        line = audit.wait_for(method=method, result="OK", role="reader")
        assert "host-2/1@100" in line["target"]


def test_reader_that_leaves_in_the_middle_of_an_answer_is_in_the_audit(
    collector: CollectorProcess, audit: Audit, authority: Authority
) -> None:
    """With CANCELLED, and the collector goes on. What asks a call that is gone for its peer ends the process."""
    three = target(host_id="host-3")
    orchestrator = reader(collector, authority, authority.peer("reader", "leaver"))
    with agent(collector, authority, authority.peer("agent", "host-3"), "host-3") as one:
        one.hello()
        one.deliver(three, *(range(first, first + LARGE_PAGES, 2) for first in (0, LARGE_PAGES)))
        answer = orchestrator.stub.GetDirty(
            pb.GetDirtyRequest(selection=pb.Selection(targets=["host-3/1@100"]), barrier=True), timeout=20
        )
        one.harvest(one.hear("barrier").barrier, batch(three, 3, written=[3]))
        # More follows than can be on the way, so that the collector waits with the rest of it.
        next(answer)
        answer.cancel()

        line = audit.wait_for(method="GetDirty", result="CANCELLED", target="host-3/1@100")
        assert "leaver" in line["caller"]
        assert line["peer"].startswith("ipv4:127.0.0.1:")
        assert "host-3" in [host.host_id for host in orchestrator.hosts()]


@pytest.mark.parametrize(
    "make, why",
    [
        (lambda _authority, _other: None, "the peer showed no certificate"),
        (lambda _authority, other: other.peer("admin", "evil"), "unable to get local issuer certificate"),
        (lambda authority, _other: authority.peer("reader", "old", good_for=YESTERDAY), "certificate has expired"),
        (lambda authority, _other: authority.collector(), "unsupported certificate purpose"),
    ],
    ids=["no certificate", "another authority's", "expired", "the collector's own"],
)
def test_certificate_that_is_not_valid_ends_in_the_handshake(
    collector: CollectorProcess,
    audit: Audit,
    authority: Authority,
    make: Callable[[Authority, Authority], Proof | None],
    why: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """UNAVAILABLE, since there is no connection to say more on; the audit says why."""
    other = Authority(tmp_path_factory.mktemp("other"), "other")

    with refused(grpc.StatusCode.UNAVAILABLE):
        reader(collector, authority, make(authority, other)).hosts()

    line = audit.wait_for(method="connect", result="UNAVAILABLE")
    assert why in line["why"]
    reader(collector, authority, authority.peer("reader", "ci")).hosts()


def test_peer_that_speaks_no_tls_is_let_go(collector: CollectorProcess, audit: Audit) -> None:
    """UNAVAILABLE for a gRPC client, and an audit line."""
    with refused(grpc.StatusCode.UNAVAILABLE):
        Reader(collector.address).hosts()

    assert "TLS" in audit.wait_for(method="connect", result="UNAVAILABLE")["why"]


def test_tls_older_than_1_2_is_not_spoken(collector: CollectorProcess, authority: Authority) -> None:
    """1.2 and 1.3 are."""
    proof = authority.peer("reader", "ci")
    host, _, port = collector.address.rpartition(":")
    spoken = set()
    for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=authority.ca)
        context.load_cert_chain(proof.cert, proof.key)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        with socket.create_connection((host, int(port))) as plain:
            try:
                with context.wrap_socket(plain, server_hostname=host) as tls:
                    spoken.add(tls.version())
            except (ssl.SSLError, OSError):
                pass

    assert spoken == {"TLSv1.2", "TLSv1.3"}


@pytest.mark.parametrize(
    "common_name, uris, dns",
    [
        ("somebody", (), None),
        ("admin:", (), None),
        ("root:ops", (), None),
        ("Admin:ops", (), None),
        ("admin:a/b", (), None),
        ("admin:ops", ("spiffe://other.example/ns/default/sa/x",), None),
        ("x", ("spiffe://a/wetink/admin/x", "spiffe://a/wetink/reader/x"), None),
        ("x", ("spiffe://a/wetink/admin",), None),
        ("x", ("spiffe://a/wetink/admin/x/y",), None),
        ("x", ("https://a/wetink/admin/x",), None),
        ("x", ("spiffe://a/elsewhere/wetink/admin/x",), None),
    ],
)
def test_certificate_that_names_no_role_is_nobody(
    collector: CollectorProcess,
    audit: Audit,
    authority: Authority,
    common_name: str,
    uris: Sequence[str],
    dns: str | None,
) -> None:
    """UNAUTHENTICATED, however much it looks like one; the sentence says how one is named."""
    proof = authority.named("odd", common_name, *uris, dns=dns)

    with refused(grpc.StatusCode.UNAUTHENTICATED) as refusal:
        reader(collector, authority, proof).hosts()

    assert "spiffe://" in refusal.message
    assert audit.wait_for(method="ListHosts", result="UNAUTHENTICATED")["caller"] is None


@pytest.mark.parametrize(
    "common_name, uris",
    [("reader:ci", ()), ("whatever", ("spiffe://prod.example/wetink/reader/ci",)), ("reader:ci", ("https://x/y",))],
)
def test_role_is_named_by_uri_or_common_name(
    collector: CollectorProcess, authority: Authority, common_name: str, uris: Sequence[str]
) -> None:
    """The trust domain is whatever the authority signs."""
    proof = authority.named("good", common_name, *uris)

    if uris and not uris[0].startswith("spiffe:"):
        with refused(grpc.StatusCode.UNAUTHENTICATED):
            reader(collector, authority, proof).hosts()
    else:
        reader(collector, authority, proof).hosts()


def test_agent_writes_for_its_own_host_alone(collector: CollectorProcess, audit: Audit, authority: Authority) -> None:
    """PERMISSION_DENIED before anything of it is taken, and the other host's stream goes on."""
    three = target(host_id="host-3")
    with agent(collector, authority, authority.peer("agent", "host-3"), "host-3") as own:
        own.hello()
        own.deliver(three, [1])
        with (
            agent(collector, authority, authority.peer("agent", "host-4"), "host-3") as other,
            refused(grpc.StatusCode.PERMISSION_DENIED, "HOST_FORBIDDEN") as refusal,
        ):
            other.hello()
        own.say(batch(three, 2, written=[2]))
        own.acknowledged(three, 2)

    assert "host-3" in refusal.message
    assert "host-4" in refusal.message
    line = audit.wait_for(method="Stream", result="PERMISSION_DENIED")
    assert "host-4" in line["caller"]
    hosts = reader(collector, authority, authority.peer("reader", "ci")).hosts()
    assert "host-4" not in {host.host_id for host in hosts}


@pytest.mark.parametrize(
    "role, method",
    [
        ("reader", "Track"),
        ("reader", "Untrack"),
        ("reader", "Stream"),
        ("admin", "Stream"),
        ("agent", "ListHosts"),
        ("agent", "ListTargets"),
        ("agent", "ListMappings"),
        ("agent", "GetDirty"),
        ("agent", "Watch"),
        ("agent", "StreamEvents"),
        ("agent", "Barrier"),
        ("agent", "Track"),
        ("agent", "Untrack"),
    ],
)
def test_role_that_may_not_is_refused(
    collector: CollectorProcess, audit: Audit, authority: Authority, role: str, method: str
) -> None:
    """PERMISSION_DENIED whatever the request, and an audit line with who it was."""
    proof = authority.peer(role, "host-1")
    caller = reader(collector, authority, proof)
    requests = {
        "Track": pb.TrackRequest(host_id="host-1", pid=1),
        "Untrack": pb.UntrackRequest(target=NAME),
        "ListHosts": pb.ListHostsRequest(),
        "ListTargets": pb.ListTargetsRequest(),
        "ListMappings": pb.ListMappingsRequest(),
        "GetDirty": pb.GetDirtyRequest(),
        "Watch": pb.WatchRequest(),
        "StreamEvents": pb.StreamEventsRequest(),
        "Barrier": pb.BarrierRequest(),
    }
    with refused(grpc.StatusCode.PERMISSION_DENIED) as refusal:
        if method == "Stream":
            with agent(collector, authority, proof) as one:
                one.hello()
        elif method in ("GetDirty", "Watch", "StreamEvents"):
            list(getattr(caller.stub, method)(requests[method], timeout=20))
        else:
            getattr(caller.stub, method)(requests[method], timeout=20)

    assert refusal.reason
    assert method in refusal.message
    line = audit.wait_for(method=method, result="PERMISSION_DENIED")
    assert line["role"] in (role, None)


def test_token_gives_a_role_to_a_certificate_that_names_none(
    start: Callable[..., CollectorProcess], tmp_path: Path
) -> None:
    """As those of a service mesh do. Alone it does not get in, and a role that is certified is not changed by it."""
    authority = Authority(tmp_path)
    known = "reader-token-0123456789"
    (tmp_path / "tokens").write_text(f"reader ci {known}\n")
    collector = start(*wanting_certificates(authority), "--tokens", str(tmp_path / "tokens"))
    nobody, agents = authority.named("mesh", "x", "spiffe://mesh/ns/a/sa/b"), authority.peer("agent", "host-1")

    Reader(collector.address, credentials(authority.ca, nobody, known)).hosts()
    with refused(grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_UNKNOWN"):
        Reader(collector.address, credentials(authority.ca, nobody)).hosts()
    with refused(grpc.StatusCode.UNAVAILABLE):
        Reader(collector.address, credentials(authority.ca, token=known)).hosts()
    with refused(grpc.StatusCode.PERMISSION_DENIED, "ROLE_LACKING"):
        Reader(collector.address, credentials(authority.ca, agents, known)).hosts()


@pytest.mark.parametrize(
    "names, part",
    [
        (["--tls-cert", "--tls-key"], "nobody there has to say who they are"),
        (["--tls-cert", "--tls-key", "--tls-client-ca", "--metrics"], "--metrics 0.0.0.0:0 can be reached from"),
        (["--tls-cert"], "--tls-cert and --tls-key go together"),
        (["--tls-client-ca"], "--tls-client-ca needs --tls-cert and --tls-key"),
        ([], "nothing is encrypted"),
    ],
)
def test_open_address_needs_certificates_that_say_who_calls(tmp_path: Path, names: list[str], part: str) -> None:
    """Encrypted for everybody is open to everybody: one sentence, and exit code 2."""
    process = start_collector(listen="0.0.0.0:0", options=_open_options(tmp_path, names))
    _, error = process.communicate(timeout=60)
    (sentence,) = error.splitlines()

    assert process.returncode == 2
    assert part in sentence


@pytest.mark.parametrize("names", [["--tls-cert", "--tls-key", "--tls-client-ca"], ["--tls-cert", "--tls-key"]])
def test_open_address_with_certificates_or_what_is_said_in_full(
    start: Callable[..., CollectorProcess], tmp_path: Path, names: list[str]
) -> None:
    """Where callers say who they are, nothing more is needed; where they do not, --insecure."""
    more = [] if "--tls-client-ca" in names else ["--insecure"]
    collector = start(*_open_options(tmp_path, names), *more, "--health", "127.0.0.1:0", listen="0.0.0.0:0")

    assert collector.address.startswith("0.0.0.0:")


def _open_options(directory: Path, names: list[str]) -> list[str]:
    authority = Authority(directory)
    own = authority.collector()
    values = {
        "--tls-cert": str(own.cert),
        "--tls-key": str(own.key),
        "--tls-client-ca": str(authority.ca),
        "--metrics": "0.0.0.0:0",
    }
    return [word for name in names for word in (name, values[name])]


def test_callers_are_confined_to_trust_domains(start: Callable[..., CollectorProcess], tmp_path: Path) -> None:
    """One authority may sign for many: who is of none of the domains is nobody, and hears which they are."""
    authority = Authority(tmp_path)
    domains = ["--trust-domain", "a.example", "--trust-domain", "b.example"]
    collector = start(*wanting_certificates(authority), *domains)
    audit = Audit(collector)
    known = authority.named("known", "known", "spiffe://b.example/wetink/reader/known")

    assert Reader(collector.address, credentials(authority.ca, known)).hosts() == []
    for stranger in (authority.peer("reader", "ci"), authority.named("plain", "reader:plain")):
        with refused(grpc.StatusCode.UNAUTHENTICATED, "IDENTITY_UNKNOWN"):
            Reader(collector.address, credentials(authority.ca, stranger)).hosts()

    why = audit.wait_for(method="ListHosts", result="UNAUTHENTICATED")["why"]
    assert "where DOMAIN is a.example or b.example" in why


def test_certificate_is_swapped_under_open_streams(start: Callable[..., CollectorProcess], tmp_path: Path) -> None:
    """The stream goes on, and a new connection sees the new certificate."""
    authority = Authority(tmp_path)
    collector = start(*wanting_certificates(authority))
    proof = authority.peer("agent", "host-1")
    probe = authority.peer("reader", "ci")
    with agent(collector, authority, proof) as one:
        one.hello()
        one.deliver(ONE, [1])
        before = served_serial(collector, authority, probe)

        swapped = authority.collector()
        after = served_serial(collector, authority, probe)
        one.say(batch(ONE, 2, written=[2]))
        one.acknowledged(ONE, 2)

        assert after == serial_of(swapped) != before
        assert reader(collector, authority, probe).dirty(NAME).written == {NAME: {1, 2}}
        assert "DEPOSED" not in collector.log


def test_authority_is_swapped_under_open_streams(
    start: Callable[..., CollectorProcess], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Streams go on; who connects from now on needs the new authority's word."""
    authority = Authority(tmp_path)
    collector = start(*wanting_certificates(authority))
    other = Authority(tmp_path_factory.mktemp("next"), "next")
    with agent(collector, authority, authority.peer("agent", "host-1")) as one:
        one.hello()
        one.deliver(ONE, [1])

        authority.ca.with_suffix(".fresh").write_bytes(other.ca.read_bytes())
        roots = authority.ca.read_bytes()
        authority.ca.with_suffix(".fresh").replace(authority.ca)
        old, new = authority.peer("reader", "ci"), other.peer("reader", "ci")
        keys = [(proof.key.read_bytes(), proof.cert.read_bytes()) for proof in (old, new)]
        of_old, of_new = (Reader(collector.address, grpc.ssl_channel_credentials(roots, *pair)) for pair in keys)
        with refused(grpc.StatusCode.UNAVAILABLE):
            of_old.hosts()
        assert of_new.dirty(NAME).written == {NAME: {1}}
        one.say(batch(ONE, 2, written=[2]))
        one.acknowledged(ONE, 2)


def test_metrics_say_until_when_the_certificate_is_good(start: Callable[..., CollectorProcess], tmp_path: Path) -> None:
    """Of the one in use, also after a swap; what is refused is counted from 0, by reason."""
    authority = Authority(tmp_path)
    collector = start(*wanting_certificates(authority), "--metrics", "127.0.0.1:0")
    expiry = "wetink_certificate_expiry_timestamp_seconds"
    before = metrics_of(collector)
    assert before[expiry] == pytest.approx(time.time() + 24 * 3600, abs=60)
    authority.collector(good_for=dt.timedelta(days=9))
    assert before['wetink_calls_refused_total{reason="IDENTITY_UNKNOWN"}'] == 0
    with refused(grpc.StatusCode.UNAUTHENTICATED):
        Reader(collector.address, credentials(authority.ca, authority.named("stranger", "nobody"))).hosts()

    after = metrics_of(collector)
    assert after[expiry] == pytest.approx(time.time() + 9 * 24 * 3600, abs=60)
    assert after['wetink_calls_refused_total{reason="IDENTITY_UNKNOWN"}'] == 1


def metrics_of(collector: CollectorProcess) -> dict[str, float]:
    """Give the value of each series."""
    with urllib.request.urlopen(f"http://{collector.metrics_address}/metrics", timeout=20) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def of_another_kind(cert: Path, key: Path) -> None:
    """Write a certificate that is good in all but its key, which gRPC signs nothing with."""
    private = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    cert.write_bytes(made.sign(private, None).public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize("damage", ["garbage", "another key", "gone", "expired", "ed25519"])
def test_swap_that_went_wrong_changes_nothing(
    start: Callable[..., CollectorProcess], tmp_path: Path, damage: str
) -> None:
    """The certificate from before stays in use, the log says why, and the next swap is taken."""
    authority = Authority(tmp_path)
    collector = start(*wanting_certificates(authority))
    probe = authority.peer("reader", "ci")
    before = served_serial(collector, authority, probe)
    key = authority.ca.with_name(f"{authority.ca.stem}-collector.key")
    if damage == "garbage":
        key.write_text("no key\n\n")
    elif damage == "another key":
        key.write_bytes(probe.key.read_bytes())
    elif damage == "expired":
        authority.collector(good_for=YESTERDAY)
    elif damage == "ed25519":
        of_another_kind(key.with_suffix(".pem"), key)
    else:
        key.unlink()

    assert served_serial(collector, authority, probe) == before
    assert served_serial(collector, authority, probe) == before
    collector.wait_for_log("certificate_unusable")  # what is logged comes after what is answered
    assert len([line for line in collector.log.splitlines() if "certificate_unusable" in line]) == 1

    swapped = authority.collector()
    assert served_serial(collector, authority, probe) == serial_of(swapped)

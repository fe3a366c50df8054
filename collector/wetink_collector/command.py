"""The ``wetink-collector`` command."""

import asyncio
import resource
import shlex
import signal
import socket
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from wetink import logs
from wetink.command_line import ConfigOption, ExitCode, Failure, run
from wetink.names import NameMalformed, check_host_id
from wetink.tls import SecurityUnusable
from wetink_collector import care_commands, tracing
from wetink_collector.address import Address, AddressUnusable, TcpAddress, parse_address
from wetink_collector.caller import TRUST_DOMAIN
from wetink_collector.limits import MIB, PAGES_DEFAULT, RATE_MIB_DEFAULT, TARGETS_DEFAULT, Limits
from wetink_collector.retention import Retention, RetentionMalformed
from wetink_collector.retention import parse as parse_retention
from wetink_collector.server import Settings, serve
from wetink_collector.store.interface import StoreUnusable
from wetink_collector.tls import TlsFiles
from wetink_collector.unix_peers import Allowed, PeersMalformed, parse_allowed


def main() -> None:
    """Run ``wetink-collector``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(collector)
    app.command()(init_pki)
    app.command()(care_commands.check)
    app.command()(care_commands.compact)
    run(app, "wetink-collector")


def collector(
    context: typer.Context,
    *,
    config: ConfigOption = None,  # noqa: ARG001 - its callback reads the file before the others are looked at
    listen: Annotated[
        str,
        typer.Option(
            envvar="WETINK_COLLECTOR_LISTEN",
            metavar="ADDR",
            help="Where agents and orchestrators connect: HOST:PORT, unix:PATH; port 0 means any free one.",
        ),
    ] = "127.0.0.1:7419",
    data: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_DATA",
            metavar="DIR",
            help="Keep everything in this directory, made where it is not there. Without it: in memory.",
            show_default=False,
        ),
    ] = None,
    retention_age: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_RETENTION_AGE",
            metavar="TIME",
            help="Answer no cursor that is older (30m, 12h, 7d) and that no session needs, and keep less. Without it: "
            "as long as its incarnation goes on.",
            show_default=False,
        ),
    ] = None,
    retention_size: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_RETENTION_SIZE",
            metavar="SIZE",
            help="Where more is kept than this (500MiB, 20GiB), forget targets that have ended, then old cursors.",
            show_default=False,
        ),
    ] = None,
    agent_rate: Annotated[
        int,
        typer.Option(
            envvar="WETINK_COLLECTOR_AGENT_RATE",
            metavar="MIB",
            min=1,
            max=1 << 20,
            help="Read so many MiB a second of one agent; one that sends more keeps and unites rounds.",
        ),
    ] = RATE_MIB_DEFAULT,
    agent_targets: Annotated[
        int,
        typer.Option(
            envvar="WETINK_COLLECTOR_AGENT_TARGETS",
            metavar="N",
            min=1,
            max=1 << 22,
            help="Take so many targets of one agent; each beyond is refused, and answers say that it is not covered.",
        ),
    ] = TARGETS_DEFAULT,
    target_pages: Annotated[
        int,
        typer.Option(
            envvar="WETINK_COLLECTOR_TARGET_PAGES",
            metavar="N",
            min=1,
            max=1 << 36,
            help="Take targets of so many populated pages; a larger one is refused likewise.",
        ),
    ] = PAGES_DEFAULT,
    metrics: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_METRICS",
            metavar="ADDR",
            help="Serve Prometheus metrics on HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    metrics_in_clear: Annotated[
        bool,
        typer.Option(
            "--metrics-in-clear",
            envvar="WETINK_COLLECTOR_METRICS_IN_CLEAR",
            help="Serve them beyond this host too: to whoever can connect, and never encrypted.",
        ),
    ] = False,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_TLS_CERT",
            metavar="FILE",
            help="Speak TLS with this certificate. It and the next two are read again when they change.",
            show_default=False,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_TLS_KEY", metavar="FILE", help="The private key to it.", show_default=False
        ),
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_TLS_CLIENT_CA",
            metavar="FILE",
            help="Let only those connect whose certificate these vouch for; it names their role.",
            show_default=False,
        ),
    ] = None,
    trust_domain: Annotated[
        list[str] | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_TRUST_DOMAIN",
            metavar="DOMAIN",
            help="Of these take only who is named by spiffe://DOMAIN/..., and no common name. Without it: any domain. "
            "May be given again.",
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_TOKENS",
            metavar="FILE",
            help="Bearer tokens, one a line: agent HOST TOKEN, reader [NAME] TOKEN, admin [NAME] TOKEN; for TOKEN also "
            "sha256:HEX. Read again when it changes.",
            show_default=False,
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_HEALTH",
            metavar="ADDR",
            help="Serve gRPC health alone on HOST:PORT or unix:PATH, without TLS and to everybody: for probes.",
            show_default=False,
        ),
    ] = None,
    traces: Annotated[
        str | None,
        typer.Option(
            envvar=["WETINK_COLLECTOR_TRACES", "OTEL_EXPORTER_OTLP_ENDPOINT"],
            metavar="URL",
            help="Send OpenTelemetry spans of commits and calls to this OTLP receiver, by HTTP.",
            show_default=False,
        ),
    ] = None,
    unix_allow: Annotated[
        list[str] | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_UNIX_ALLOW",
            metavar="USER:ROLE",
            help="At unix:PATH let this user in, by name or number, as reader, admin or agent:HOST; a group as "
            "@GROUP:ROLE. The kernel says who connects. May be given again.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="WETINK_COLLECTOR_INSECURE",
            help="Listen beyond this host also without TLS, or where everybody who can connect reads and writes "
            "everything.",
        ),
    ] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Take the dirty pages of all hosts from their agents, keep them, and tell orchestrators what is dirty.

    Without --tls-client-ca and --tokens whoever can connect may do everything. With one of them agents write for their
    own host, readers read, and admins track and untrack besides.

    A batch is acknowledged when it is on disk. On SIGTERM agents are asked to go, calls end, and the exit code is 0.

    Example: wetink-collector --listen 127.0.0.1:7419 --data /var/lib/wetink
    """
    if context.invoked_subcommand is not None:
        return
    if show_version:
        typer.echo(version("wetink"))
        return
    logs.configure()
    tls = _tls(tls_cert, tls_key, tls_client_ca)
    settings = Settings(
        _listen_address(listen, tls, tokens, insecure=insecure),
        _data_directory(data),
        _metrics_address(metrics, in_clear=metrics_in_clear),
        tls,
        tokens,
        _address("--health", health) if health else None,
        _unix_allow(unix_allow or (), listen),
        _trust_domains(trust_domain or (), tls),
        _retention(retention_age, retention_size),
        Limits(agent_rate * MIB, agent_targets, target_pages),
    )
    # Each connection takes a descriptor.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    try:
        with tracing.sent_to(traces):
            asyncio.run(_serve(settings))
    except (StoreUnusable, AddressUnusable, SecurityUnusable, tracing.TracingUnusable) as error:
        raise Failure(str(error)) from error


def init_pki(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where they go.", show_default=False)],
    *,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Make a certificate for the agent of this host, its --host-id. May be given again.",
            show_default="this host's name",
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Agents and readers will reach the collector by this DNS name or IP address too. May be given again.",
            show_default="localhost, collector, this host's name",
        ),
    ] = None,
) -> None:
    """Make certificates for a first set-up: an authority, and the collector's, agents', a reader's and an admin's.

    Nothing is ever overwritten. Private keys can be read by their owner alone.

    Example: wetink-collector init-pki ./pki --host node1 --host node2 --name collector.example
    """
    # Its cryptography is of no use to a collector that runs.
    from wetink_collector import pki  # noqa: PLC0415

    own = socket.gethostname()
    hosts = [_host(text) for text in host or (own,)]
    # The kernel takes any bytes as the host's name: what nobody can ask for has no place in a certificate.
    names = [*(name or ()), *([own] if pki.is_dns_name(own) else [])]
    try:
        pki.initialise(directory, list(dict.fromkeys(hosts)), names)
    except pki.PkiRefused as error:
        raise Failure(str(error)) from error
    at = shlex.quote(str(directory))
    typer.echo(
        f"""{directory} has an authority (ca), and a certificate with its key for the collector, a reader, an admin and
the agent of {", ".join(dict.fromkeys(hosts))}; each is good for a year. Next:

wetink-collector --listen 0.0.0.0:7419 --tls-cert {at}/collector.pem --tls-key {at}/collector.key \\
  --tls-client-ca {at}/ca.pem --health 127.0.0.1:7420
wetink-agent --collector COLLECTOR:7419 --host-id {hosts[0]} --tls-ca {at}/ca.pem \\
  --tls-cert {at}/agent-{hosts[0]}.pem --tls-key {at}/agent-{hosts[0]}.key
wetink --collector COLLECTOR:7419 --tls-ca {at}/ca.pem --tls-cert {at}/reader.pem --tls-key {at}/reader.key targets

Each host needs ca.pem and its own two files, and nothing else. Keep ca.key off all of them: it makes anybody."""
    )


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


def _data_directory(text: str | None) -> Path | None:
    if text == "":
        # To Path it is the current directory: hardly what somebody with an unset variable means.
        message = "--data is empty: name a directory, or leave it out to keep everything in memory"
        raise Failure(message, ExitCode.USAGE)
    return Path(text) if text is not None else None


def _retention(age: str | None, size: str | None) -> Retention:
    try:
        return parse_retention(age, size)
    except RetentionMalformed as error:
        raise Failure(str(error), ExitCode.USAGE) from error


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    """Say where the certificates are.

    Raises:
        Failure: One is missing beside another.
    """
    if (cert is None) != (key is None):
        message = "--tls-cert and --tls-key go together: give both, or leave both out"
        raise Failure(message, ExitCode.USAGE)
    if cert is None or key is None:
        if client_ca is not None:
            message = "--tls-client-ca needs --tls-cert and --tls-key: clients show certificates over TLS only"
            raise Failure(message, ExitCode.USAGE)
        return None
    return TlsFiles(cert, key, client_ca)


def _listen_address(text: str, tls: TlsFiles | None, tokens: Path | None, *, insecure: bool) -> Address:
    """Read where agents and orchestrators connect.

    Raises:
        Failure: It is no address, tokens would travel in the clear, or other hosts reach it and nobody said that they
            may.
    """
    address = _address("--listen", text)
    if tokens and not tls and isinstance(address, TcpAddress):
        message = (
            f"--tokens over {address} needs --tls-cert and --tls-key: without TLS everybody on the way could read the "
            "tokens"
        )
        raise Failure(message, ExitCode.USAGE)
    if tls is None and _is_open("--listen", address) and not insecure:
        message = (
            f"--listen {address} can be reached from other hosts, and nothing is encrypted: listen on 127.0.0.1 or on "
            "unix:PATH, give --tls-cert and --tls-key, or say --insecure"
        )
        raise Failure(message, ExitCode.USAGE)
    if tls and tls.client_ca is None and tokens is None and _is_open("--listen", address) and not insecure:
        message = (
            f"--listen {address} can be reached from other hosts, and nobody there has to say who they are: "
            "give --tls-client-ca or --tokens, or say --insecure"
        )
        raise Failure(message, ExitCode.USAGE)
    return address


def _unix_allow(texts: Iterable[str], listen: str) -> tuple[Allowed, ...]:
    """Say who may connect to the Unix socket.

    Raises:
        Failure: An entry is malformed, or there is no such socket.
    """
    try:
        allowed = parse_allowed(texts)
    except PeersMalformed as error:
        message = f"--unix-allow: {error}"
        raise Failure(message, ExitCode.USAGE) from error
    if allowed and not listen.startswith("unix:"):
        message = f"--unix-allow says who may connect to a Unix socket: it needs --listen unix:PATH, not {listen}"
        raise Failure(message, ExitCode.USAGE)
    return allowed


def _trust_domains(texts: Iterable[str], tls: TlsFiles | None) -> frozenset[str]:
    """Say of which domains callers must be; none means any.

    Raises:
        Failure: One is none, or nobody shows a certificate.
    """
    domains = frozenset(texts)
    for text in domains:
        if not TRUST_DOMAIN.fullmatch(text):
            message = f"--trust-domain {text[:300]!r} is none: write small letters, digits, dots, as in cluster.local"
            raise Failure(message, ExitCode.USAGE)
    if domains and (tls is None or tls.client_ca is None):
        message = "--trust-domain says whose certificates count: it needs --tls-client-ca"
        raise Failure(message, ExitCode.USAGE)
    return domains


def _host(text: str) -> str:
    try:
        return check_host_id(text)
    except NameMalformed as error:
        message = f"--host: {error}"
        raise Failure(message, ExitCode.USAGE) from error


def _metrics_address(text: str | None, *, in_clear: bool) -> TcpAddress | None:
    """Read where metrics are served.

    Raises:
        Failure: It is no address, or other hosts reach it and nobody said that they may.
    """
    if text is None:
        return None
    address = _address("--metrics", text)
    if not isinstance(address, TcpAddress):
        message = f"--metrics {text} is no TCP address: write HOST:PORT"
        raise Failure(message, ExitCode.USAGE)
    if _is_open("--metrics", address) and not in_clear:
        message = (
            f"--metrics {address} can be reached from other hosts, and is never encrypted: listen on 127.0.0.1, or say "
            "--metrics-in-clear"
        )
        raise Failure(message, ExitCode.USAGE)
    return address


def _is_open(option: str, address: Address) -> bool:
    try:
        return not address.is_local
    except AddressUnusable as error:
        message = f"{option}: {error}"
        raise Failure(message, ExitCode.USAGE) from error


def _address(option: str, text: str) -> Address:
    try:
        return parse_address(text)
    except AddressUnusable as error:
        message = f"{option}: {error}"
        raise Failure(message, ExitCode.USAGE) from error

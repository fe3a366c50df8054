"""The ``wetink-collector`` command."""

import asyncio
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from wetink import logs
from wetink.command_line import ConfigOption, ExitCode, Failure, run
from wetink_collector import tracing
from wetink_collector.address import Address, AddressUnusable, TcpAddress, parse_address
from wetink_collector.server import Settings, serve
from wetink_collector.store.interface import StoreUnusable


def main() -> None:
    """Run ``wetink-collector``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(collector)
    run(app, "wetink-collector")


def collector(
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
    metrics: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_COLLECTOR_METRICS",
            metavar="ADDR",
            help="Serve Prometheus metrics on HOST:PORT, for which --insecure counts too.",
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
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="WETINK_COLLECTOR_INSECURE",
            help="Listen beyond this host all the same, where everybody who can connect reads and writes everything.",
        ),
    ] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Take the dirty pages of all hosts from their agents, keep them, and tell orchestrators what is dirty.

    A batch is acknowledged when it is on disk. On SIGTERM agents are asked to go, calls end, and the exit code is 0.

    Example: wetink-collector --listen 127.0.0.1:7419 --data /var/lib/wetink
    """
    if show_version:
        typer.echo(version("wetink"))
        return
    logs.configure()
    settings = Settings(
        _address("--listen", listen, insecure=insecure),
        _data_directory(data),
        _metrics_address(metrics, insecure=insecure),
    )
    try:
        with tracing.sent_to(traces):
            asyncio.run(_serve(settings))
    except (StoreUnusable, AddressUnusable, tracing.TracingUnusable) as error:
        raise Failure(str(error)) from error


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


def _metrics_address(text: str | None, *, insecure: bool) -> TcpAddress | None:
    if text is None:
        return None
    address = _address("--metrics", text, insecure=insecure)
    if not isinstance(address, TcpAddress):
        message = f"--metrics {text} is no TCP address: write HOST:PORT"
        raise Failure(message, ExitCode.USAGE)
    return address


def _address(option: str, text: str, *, insecure: bool) -> Address:
    """Read where to listen.

    Raises:
        Failure: It is no address, or one that other hosts reach and nobody said that they may.
    """
    try:
        address = parse_address(text)
        is_open = not address.is_local
    except AddressUnusable as error:
        message = f"{option}: {error}"
        raise Failure(message, ExitCode.USAGE) from error
    if is_open and not insecure:
        message = (
            f"{option} {address} can be reached from other hosts, and nothing is encrypted: listen on 127.0.0.1"
            f"{' or on unix:PATH' if option == '--listen' else ''}, or say --insecure"
        )
        raise Failure(message, ExitCode.USAGE)
    return address

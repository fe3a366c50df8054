"""The ``wetink-agent`` command."""

import asyncio
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import structlog
import typer

from wetink import logs
from wetink.command_line import ConfigOption, ExitCode, Failure, run
from wetink.tls import Security
from wetink.v1 import types_pb2
from wetink_agent import preload as preloading
from wetink_agent import recorder
from wetink_agent.agent import Agent, Settings
from wetink_agent.backends import BackendName, Choice
from wetink_agent.discovery import Selection
from wetink_agent.doctor import host as examine_host
from wetink_agent.doctor import lines, would_track
from wetink_agent.doctor_target import target as examine_target
from wetink_agent.errors import NoSuchProcess, TrackingError
from wetink_agent.journal import SpoolUnusable
from wetink_agent.keeping import Keeping, keeping
from wetink_agent.options import (
    EVENTS_RING,
    AcceptRiskOption,
    EventsOption,
    EventsRingOption,
    address_of,
    backend_of,
    budget_of,
    host_id_of,
    labels_of,
    pace_of,
    pattern_of,
    seconds_of,
    security_of,
)
from wetink_agent.pods import SERVICE_ACCOUNT, PodSource
from wetink_agent.recording import Recording, RecordingUnusable
from wetink_agent.replay import Pace, ReplayAgent
from wetink_agent.uplink import Deposed

REPLAY: Final = "replay:"
"""What stands before the file of a recording in ``--backend``."""

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
"""The signals that end a recording in good order."""

log = structlog.get_logger()


def main() -> None:
    """Run ``wetink-agent``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True)(agent)
    app.command()(record)
    app.command()(preload)
    app.command()(doctor)
    run(app, "wetink-agent")


def agent(
    context: typer.Context,
    *,
    config: ConfigOption = None,  # noqa: ARG001 - its callback reads the file before the others are looked at
    collector: Annotated[
        str,
        typer.Option(envvar="WETINK_AGENT_COLLECTOR", metavar="ADDR", help="The collector: HOST:PORT or unix:PATH."),
    ] = "127.0.0.1:7419",
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="WETINK_AGENT_TLS_CA",
            metavar="FILE",
            help="Speak TLS, and check the collector's certificate against these. They, the next two and the token are "
            "read again at each connect.",
            show_default=False,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            envvar="WETINK_AGENT_TLS_CERT",
            metavar="FILE",
            help="This agent's certificate, which names its host.",
            show_default=False,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(envvar="WETINK_AGENT_TLS_KEY", metavar="FILE", help="The private key to it.", show_default=False),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="WETINK_AGENT_TOKEN_FILE",
            metavar="FILE",
            help="Bearer token of this agent; over TCP it needs --tls-ca.",
            show_default=False,
        ),
    ] = None,
    pid: Annotated[
        list[int] | None,
        typer.Option(envvar="WETINK_AGENT_PID", metavar="N", help="Track this process. May be given again."),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(
            envvar="WETINK_AGENT_COMMAND",
            metavar="REGEX",
            help="Track every process whose command line matches, also later ones. May be given again.",
        ),
    ] = None,
    cgroup: Annotated[
        list[str] | None,
        typer.Option(
            envvar="WETINK_AGENT_CGROUP",
            metavar="PATH",
            help="Track every process in this cgroup or below it, as /proc/PID/cgroup names it. May be given again.",
        ),
    ] = None,
    tree: Annotated[
        bool, typer.Option("--tree", envvar="WETINK_AGENT_TREE", help="Track the descendants of all targets too.")
    ] = False,
    follow_fork: Annotated[
        bool,
        typer.Option(
            "--follow-fork",
            envvar="WETINK_AGENT_FOLLOW_FORK",
            help="As --tree, and children are targets at once. Each fork(2) of a target waits for the agent, mostly "
            "for a tenth of a millisecond. Takes CAP_SYS_PTRACE; such targets do not outlive a worker.",
        ),
    ] = False,
    interval: Annotated[
        str, typer.Option(envvar="WETINK_AGENT_INTERVAL", metavar="TIME", help="From round to round: 500ms, 1s, 2m.")
    ] = "1s",
    interval_min: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_AGENT_INTERVAL_MIN",
            metavar="TIME",
            help="Let the interval adapt to what tracking costs, and be no shorter than this.",
            show_default="--interval",
        ),
    ] = None,
    interval_max: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_AGENT_INTERVAL_MAX",
            metavar="TIME",
            help="Likewise, and no longer than this.",
            show_default="--interval",
        ),
    ] = None,
    agent_share: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_AGENT_AGENT_SHARE",
            metavar="PERCENT",
            help="What an adapting interval keeps to: part of one processor for the agent, over all targets.",
            show_default="2%",
        ),
    ] = None,
    target_share: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_AGENT_TARGET_SHARE",
            metavar="PERCENT",
            help="Likewise: time that each target loses to it, as estimated from its first writes.",
            show_default="2%",
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            envvar="WETINK_AGENT_BACKEND",
            metavar="|".join([*BackendName, "replay:FILE"]),
            help="What finds the written pages; auto picks by probing. replay:FILE plays a recording to targets that "
            "are made up, and tracks nothing else.",
        ),
    ] = BackendName.AUTO,
    speed: Annotated[
        float,
        typer.Option(envvar="WETINK_AGENT_SPEED", metavar="X", help="Play the recording so many times as fast."),
    ] = 1.0,
    loop: Annotated[
        bool, typer.Option("--loop", envvar="WETINK_AGENT_LOOP", help="Play the recording over and over.")
    ] = False,
    targets: Annotated[
        int,
        typer.Option(envvar="WETINK_AGENT_TARGETS", metavar="N", help="Play the recording to so many targets."),
    ] = 1,
    events: EventsOption = False,
    events_ring: EventsRingOption = EVENTS_RING,
    host_id: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_AGENT_HOST_ID",
            metavar="ID",
            help="This host's name at the collector, one agent each.",
            show_default="the host name",
        ),
    ] = None,
    accept_risk: AcceptRiskOption = False,
    handshake: Annotated[
        Path | None,
        typer.Option(
            envvar="WETINK_AGENT_HANDSHAKE",
            metavar="PATH",
            help="Listen on this Unix socket for processes that offer their own memory.",
            show_default=False,
        ),
    ] = None,
    seccomp_allows: Annotated[
        bool,
        typer.Option(
            "--seccomp-allows",
            envvar="WETINK_AGENT_SECCOMP_ALLOWS",
            help="Targets' seccomp filters allow userfaultfd, rt_sigprocmask and close, or refuse them with an error: "
            "they need not be suspended, which takes CAP_SYS_ADMIN.",
        ),
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(
            envvar="WETINK_AGENT_LABEL",
            metavar="KEY=VALUE",
            help="Give this label to all targets, beside what their cgroups tell. May be given again.",
        ),
    ] = None,
    pods: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_AGENT_PODS",
            metavar="FILE|URL",
            help="List of this host's pods as Kubernetes writes it in JSON: targets get the labels pod, namespace and "
            "container.",
            show_default=False,
        ),
    ] = None,
    pods_token: Annotated[
        Path, typer.Option(envvar="WETINK_AGENT_PODS_TOKEN", metavar="FILE", help="Bearer token for that URL.")
    ] = SERVICE_ACCOUNT / "token",
    pods_ca: Annotated[
        Path,
        typer.Option(
            envvar="WETINK_AGENT_PODS_CA", metavar="FILE", help="Certificates that the URL's server is checked against."
        ),
    ] = SERVICE_ACCOUNT / "ca.crt",
    health: Annotated[
        str | None,
        typer.Option(
            envvar="WETINK_AGENT_HEALTH",
            metavar="ADDR",
            help="Answer gRPC health probes on HOST:PORT or unix:PATH, in the clear: it tells nothing of any memory.",
            show_default=False,
        ),
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option(
            envvar="WETINK_AGENT_SPOOL",
            metavar="DIR",
            help="Keep rounds that the collector has not acknowledged on disk too: a worker that is killed loses none.",
            show_default=False,
        ),
    ] = None,
    hand_over: Annotated[
        bool,
        typer.Option(
            "--hand-over",
            envvar="WETINK_AGENT_HAND_OVER",
            help="On SIGTERM leave targets to systemd's descriptor store, from which the next start goes on with them, "
            "instead of ending them.",
        ),
    ] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Write-protect the memory of processes and stream to a collector which pages are written.

    Needs root, or the user of the targets, or CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. Besides the options below, the
    collector may ask for targets with `wetink track`.

    Example: wetink-agent --collector 127.0.0.1:7419 --command redis-server --interval 500ms
    """
    if context.invoked_subcommand is not None:
        return
    if show_version:
        typer.echo(version("wetink"))
        return
    logs.configure()
    kept = keeping()
    played = backend.removeprefix(REPLAY) if backend.startswith(REPLAY) else None
    pace = pace_of(speed, targets, loop=loop)
    if played is None and pace != Pace():
        message = "--speed, --loop and --targets say how a recording is played: they need --backend replay:FILE"
        raise Failure(message, ExitCode.USAGE)
    if played is not None and (pid or command or cgroup or tree or follow_fork or handshake or events):
        message = f"--backend {backend} tracks no process: leave out what chooses processes, and --events"
        raise Failure(message, ExitCode.USAGE)
    settings = Settings(
        collector=address_of(collector),
        host_id=host_id_of(host_id),
        pids=tuple(dict.fromkeys(pid or ())),
        selection=Selection(
            commands=tuple(pattern_of(text) for text in command or ()),
            cgroups=tuple(cgroup or ()),
            tree=tree or follow_fork,
        ),
        budget=budget_of(interval, interval_min, interval_max, agent_share, target_share),
        backend=replace(
            backend_of(backend, events_ring if events else "", accept_risk=accept_risk, follow_fork=follow_fork),
            seccomp_allows=seccomp_allows,
        )
        if played is None
        else Choice(),
        handshake=handshake,
        labels=labels_of(label or ()),
        security=security_of(Security(tls_ca, tls_cert, tls_key, token_file), address_of(collector)),
        pods=PodSource(pods, pods_token, pods_ca) if pods else None,
        health=address_of(health, "--health") if health else None,
        spool=spool,
    )
    # Each target takes four descriptors.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    try:
        if played is None:
            asyncio.run(_serve(settings, kept, lambda: Agent(settings, kept), hands_over=hand_over))
        else:
            _replay(settings, kept, Path(played), pace)
    except NoSuchProcess as error:
        raise Failure(str(error), ExitCode.NOT_FOUND) from error
    except SpoolUnusable as error:
        raise Failure(str(error)) from error
    except (TrackingError, Deposed) as error:
        kept.leave()
        raise Failure(str(error)) from error
    except OSError as error:
        about = f"the handshake socket {handshake} cannot be made" if handshake else "the agent cannot go on"
        message = f"{about}: {error.strerror or error}"
        raise Failure(message) from error


def record(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the recording goes.", show_default=False)],
    *,
    pid: Annotated[int, typer.Option(metavar="N", help="Record this process.", show_default=False)],
    interval: Annotated[str, typer.Option(metavar="TIME", help="From round to round: 500ms, 1s, 2m.")] = "1s",
    backend: Annotated[
        BackendName, typer.Option(help="What finds the written pages; auto picks by probing.")
    ] = BackendName.AUTO,
    events: EventsOption = False,
    events_ring: EventsRingOption = EVENTS_RING,
    accept_risk: AcceptRiskOption = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after so many rounds.", show_default="until stopped")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write the rounds of a process into a file, until it ends or SIGINT or SIGTERM comes.

    The file can be played with --backend replay:FILE. Needs the rights that tracking needs.

    Example: wetink-agent record redis.wetink --pid 4711 --rounds 60
    """
    logs.configure()
    interval_seconds = seconds_of(interval)
    choice = backend_of(backend, events_ring if events else "", accept_risk=accept_risk)
    exists = f"{file} is there already: --force overwrites it"
    if not force and file.exists():
        raise Failure(exists)
    stop = threading.Event()
    for number in STOPPING:
        signal.signal(number, lambda *_: stop.set())
    # They come to this thread, which does nothing else, and interrupt no round. To block them here would leave them to
    # whatever thread a library began before, and to wait for them would miss those.
    recording = ThreadPoolExecutor(1, "recorder", signal.pthread_sigmask, (signal.SIG_BLOCK, STOPPING))
    try:
        with recording:
            ended = recording.submit(
                recorder.record,
                file,
                host_id=host_id_of(None),
                pid=pid,
                choice=choice,
                interval_seconds=interval_seconds,
                round_count=rounds,
                overwrite=force,
                wait=stop.wait,
            ).result()
    except NoSuchProcess as error:
        raise Failure(str(error), ExitCode.NOT_FOUND) from error
    except TrackingError as error:
        raise Failure(str(error)) from error
    except FileExistsError as error:
        raise Failure(exists) from error
    except OSError as error:
        message = f"{file} cannot be written: {error.strerror}"
        raise Failure(message) from error
    if ended.reason == types_pb2.END_REASON_FAILED:
        message = f"{file} ends before its time: {ended.message}"
        raise Failure(message)


def doctor(
    *,
    pid: Annotated[int | None, typer.Option(metavar="PID", min=1, help="Look at this process too.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Say what this host allows, and a process, and how to get what is missing.

    Run it as the agent will run: as that user, with those capabilities. It stops nothing, and attaches to nothing.
    Exits with 0 if wp-async would work, 1 if not, 4 if there is no such process.

    Example: wetink-agent doctor --pid 4711
    """
    findings = list(examine_host())
    if pid is not None:
        try:
            findings += examine_target(pid)
        except NoSuchProcess as error:
            raise Failure(str(error), ExitCode.NOT_FOUND) from error
    for line in lines(findings, pid, as_json=json):
        typer.echo(line)
    if not would_track(findings):
        raise typer.Exit(ExitCode.FAILURE)


def preload(
    *,
    header: Annotated[bool, typer.Option("--header", help="Print the path of the C header instead.")] = False,
) -> None:
    """Print the path of the library under which a program offers its own memory to an agent with --handshake.

    Needs no right over the program, and no change to it. WETINK_OFFER_SOCKET names the agent's socket;
    WETINK_OFFER_MILLISECONDS (1000) bounds the wait for its answer; with WETINK_OFFER_FORKS=1 children of fork(2) offer
    too. Programs without the dynamic loader, and set-user-ID ones, do not load it.

    Example: LD_PRELOAD=$(wetink-agent preload) WETINK_OFFER_SOCKET=/run/wetink-agent/offers redis-server
    """
    if header:
        typer.echo(preloading.HEADER)
        return
    if (why := preloading.why_no_library()) is not None:
        raise Failure(why)
    typer.echo(preloading.LIBRARY)


def _replay(settings: Settings, kept: Keeping, path: Path, pace: Pace) -> None:
    """Run an agent over a recording; what is whole of a damaged one is played first.

    Raises:
        Failure: The recording is damaged, or cannot be played at all.
    """
    try:
        with Recording(path) as recording:
            if recording.damage is not None:
                log.warning("recording_damaged", why=recording.damage)
            asyncio.run(_serve(settings, kept, lambda: ReplayAgent(settings, recording, pace, kept)))
            if recording.damage is not None:
                raise Failure(recording.damage)
    except RecordingUnusable as error:
        raise Failure(str(error)) from error


async def _serve(
    settings: Settings, kept: Keeping, make_agent: Callable[[], Agent], *, hands_over: bool = False
) -> None:
    stop, leave, upgrade = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set if hands_over and kept.is_there else stop.set)

    def on_hangup() -> None:
        upgrade.set()
        leave.set()

    if kept.is_there:
        loop.add_signal_handler(signal.SIGHUP, on_hangup)
    if kept.count > 1:
        log.warning("worker_restarted", count=kept.count, why=kept.why)
    log.info("agent_started", host=settings.host_id, collector=settings.collector)
    await make_agent().run(stop, leave)
    if upgrade.is_set() and not stop.is_set():
        kept.again()
    else:
        kept.leave()
    log.info("agent_stopped")

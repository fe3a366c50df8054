"""``wetink-collector check`` and ``wetink-collector compact``: what an operator does to a data directory."""

from pathlib import Path
from typing import Annotated

import typer

from wetink.command_line import ExitCode, Failure
from wetink_collector.data_directory import held, is_held
from wetink_collector.store import care
from wetink_collector.store.interface import StoreFailed, StoreUnusable

_Directory = Annotated[Path, typer.Argument(metavar="DIR", help="What a collector has as --data.", show_default=False)]


def check(directory: _Directory) -> None:
    """Look at every record of a store, and print what is wrong with it, a line each. Nothing is changed.

    The exit code is 0 where nothing is, and 1 otherwise. A collector may be using the store: it is looked at as it is
    at one moment.

    Example: wetink-collector check /var/lib/wetink
    """
    try:
        found = 0
        for finding in care.findings(directory):
            found += 1
            typer.echo(finding)
    except StoreUnusable as error:
        raise Failure(str(error)) from error
    in_use = ", which a collector is using: as it was at one moment" if is_held(directory) else ""
    typer.echo(f"{directory}{in_use}: {found or 'no'} finding{'' if found == 1 else 's'}", err=True)
    if found:
        raise typer.Exit(ExitCode.FAILURE)


def compact(directory: _Directory) -> None:
    """Merge what is due, and give back the room that is free in a store's file. No collector may be using it.

    It needs as much room again as the store has. Killed in the middle, it leaves the store as it was.

    Example: wetink-collector compact /var/lib/wetink
    """
    if not directory.is_dir():
        message = f"there is no directory {directory}: give the one that a collector has as --data"
        raise Failure(message)
    try:
        with held(directory):
            before, after = care.compact(directory)
    except (StoreUnusable, StoreFailed) as error:
        raise Failure(str(error)) from error
    typer.echo(f"{directory}: {before:,} bytes before, {after:,} after")

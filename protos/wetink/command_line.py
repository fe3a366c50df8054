"""What the three commands share at their edge: exit codes, one sentence for each failure, and the config file."""

import sys
import tomllib
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.main import get_command


class ExitCode(IntEnum):
    """Exit codes of all three commands."""

    FAILURE = 1
    USAGE = 2
    UNAVAILABLE = 3
    NOT_FOUND = 4
    RESYNCHRONISE = 5


class Failure(Exception):
    """Ends a command with one sentence on standard error: what happened, to which object, what to do."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILURE) -> None:
        """Keep the sentence and the code."""
        super().__init__(message)
        self.exit_code = exit_code


def run(app: typer.Typer, name: str) -> NoReturn:
    """Run a command and exit, with no traceback for anything a person can cause.

    Args:
        app: The command.
        name: Printed before each sentence.
    """
    command = get_command(app)
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except typer.TyperException as error:
        print(f"{name}: {error.format_message()}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(ExitCode.FAILURE)
    except Failure as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + 2)
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; nothing is left to say to it.
        sys.stderr.close()
        sys.exit(ExitCode.FAILURE)
    sys.exit(code if isinstance(code, int) else 0)


def _load(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        context.default_map = dict(_settings(path, context))
    return path


def _settings(path: Path, context: typer.Context) -> Mapping[str, object]:
    """Read a config file: its keys are the command's long options, without the dashes in front."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"config file {path} cannot be read: {error.strerror}"
        raise Failure(message, ExitCode.USAGE) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"config file {path} is not TOML: {error}"
        raise Failure(message, ExitCode.USAGE) from error
    options = {
        option.removeprefix("--"): parameter.name
        for parameter in context.command.params
        for option in parameter.opts
        if option.startswith("--") and parameter.name and option not in ("--config", "--help", "--version")
    }
    unknown = sorted(settings.keys() - options.keys())
    if unknown:
        message = f"config file {path} has an unknown key {unknown[0]!r}; known are {', '.join(sorted(options))}"
        raise Failure(message, ExitCode.USAGE)
    return {str(options[key]): value for key, value in settings.items()}


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=_load,
        is_eager=True,
        show_default=False,
        help="TOML file whose keys are the long options below; environment and flags override it.",
    ),
]
"""The ``--config`` option; declare it first."""

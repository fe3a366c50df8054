"""What the three commands share at their edge: exit codes, one sentence for each failure, and the config file."""

import errno
import json
import os
import sys
import tomllib
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Final, NoReturn, get_args

import typer
from typer.core import TyperOption
from typer.main import get_command


class ExitCode(IntEnum):
    """Exit codes of all three commands."""

    FAILURE = 1
    USAGE = 2
    UNAVAILABLE = 3
    NOT_FOUND = 4
    RESYNCHRONISE = 5


EXIT_CODES: Final = (
    "Exit codes: 0 done, 1 failure, 2 usage, 3 nobody answered or a barrier was not reached, 4 not found, "
    "5 ask again without a cursor."
)
"""Stands in every ``--help``."""


_OUTPUT_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a write of output to a file says which has no room, or is broken."""


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
    for page in (command, *getattr(command, "commands", {}).values()):
        page.epilog = "\n\n".join(filter(None, (EXIT_CODES, page.epilog)))
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
    except OSError as error:
        if error.errno not in _OUTPUT_ERRNOS or error.filename is not None:
            raise
        print(f"{name}: what it has to say cannot be written: {error.strerror}", file=sys.stderr)  # noqa: T201
        # What is still in its buffer would fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
        option.removeprefix("--"): parameter
        for parameter in context.command.params
        if isinstance(parameter, TyperOption)
        for option in parameter.opts
        if option.startswith("--") and option not in ("--config", "--help", "--version")
    }
    unknown = sorted(settings.keys() - options.keys())
    if unknown:
        message = f"config file {path} has an unknown key {unknown[0]!r}; known are {', '.join(sorted(options))}"
        raise Failure(message, ExitCode.USAGE)
    return {str(options[key].name): _checked(path, key, options[key], value) for key, value in settings.items()}


def _checked(path: Path, key: str, option: TyperOption, value: object) -> object:
    """Give a setting as its option takes it: one value of a repeatable option is a list of one.

    Raises:
        Failure: It is of another type, or has a NUL character. What a number or text must be besides, the option itself
            says.
    """
    annotation = option.type_descriptor.annotation
    kind = get_args(annotation)[0] if option.multiple else annotation
    types, what = _EXPECTED.get(kind, ((str,), "a text in quotes"))
    values = value if option.multiple and isinstance(value, list) else [value]
    # Not isinstance: to Python true is a number.
    if any(type(one) not in types for one in values):
        expected = f"{what}, or a list of them" if option.multiple else what
        message = f"config file {path} has {key} = {_toml(value)}, which must be {expected}"
        raise Failure(message, ExitCode.USAGE)
    # Neither the command line nor the environment can have one, so that nothing further in expects it.
    if any("\0" in one for one in values if isinstance(one, str)):
        message = f"config file {path} has {key} = {_toml(value)}, in which the character \\u0000 cannot be"
        raise Failure(message, ExitCode.USAGE)
    return values if option.multiple else value


def _toml(value: object) -> str:
    """Show a value much as the file has it."""
    return json.dumps(value, default=str, ensure_ascii=False)


_EXPECTED: Final[Mapping[type, tuple[tuple[type, ...], str]]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
}
"""What the file may have for an option of a type, and its name. All others are text."""


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=_load,
        is_eager=True,
        show_default=False,
        help="TOML file whose keys are the long options below, with a list, or one value, where an option may be given "
        "again; environment and flags override it.",
    ),
]
"""The ``--config`` option; declare it first."""

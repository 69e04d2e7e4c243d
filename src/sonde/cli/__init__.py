"""The command line: one command = one call into a room.

    fit evaluate report predict explain compare serve export extract sites inspect recipes bench

Results go to standard output (`--json`: one JSON object), progress and warnings to standard error. Exit 0: done, with
warnings counted; 2: the user's input is wrong; 130: interrupted; 1: anything else.

app    the commands, in the order of their help
main   runs one
"""

import errno
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sonde import __version__
from sonde.cli.models import evaluate, explain, fit, inspect, predict, report
from sonde.cli.research import bench, compare, recipes
from sonde.cli.session import complain
from sonde.cli.work import export, extract, serve, sites
from sonde.errors import InputError, SondeError


class Once(TyperCommand):
    """A command that refuses an option which is given twice and takes one value: the first would say nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever, after a look at the words before a bare `--`."""
        words = args[: args.index("--")] if "--" in args else args
        for option in self.params:
            if getattr(option, "multiple", True) or getattr(option, "is_flag", False):
                continue
            given = [word for word in words if word.split("=", 1)[0] in option.opts]
            if len(given) > 1:
                raise typer.BadParameter(f"{option.opts[0]} is given {len(given)} times; it takes one value.", ctx)
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="sonde: text classification from the inside of frozen language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (fit, evaluate, report, predict, explain, compare, serve, export, extract, sites, inspect, recipes, bench)
for command in COMMANDS:
    app.command(cls=Once)(command)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


INTERRUPTED = 130
"""What shells say of a command that Ctrl+C has ended."""

PATH_FAULTS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EROFS}
"""What a path can be to blame for, wherever it is met."""


def main() -> None:
    """Run the command line; every mistake of the user's becomes a sentence and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        complain(str(error))
        sys.exit(2)
    except SondeError as error:
        complain(str(error))
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:
        if error.errno not in PATH_FAULTS or error.filename is None:
            raise
        complain(f"{error.filename!s:.200} cannot be used: {error.strerror}. Give another path.")
        sys.exit(2)
    except _USAGE_ERROR as error:
        if error.format_message():  # else the help was asked for, and shown
            complain(_usage(error))
        sys.exit(2)
    if code == INTERRUPTED:  # which typer, too, makes of it
        complain("interrupted.")
    sys.exit(code if isinstance(code, int) else 0)


_USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]
"""What typer raises for an unknown command or option; some versions bring their own copy of it, under another path."""


def _usage(error: Any) -> str:
    """What was wrong on the command line, what is allowed, and where that is described."""
    context = getattr(error, "ctx", None)
    commands = ", ".join(getattr(getattr(context, "command", None), "commands", {}))
    allowed = f"\nThe commands are: {commands}." if commands else ""
    path = context.command_path if context else "sonde"
    return f"{error.format_message()}{allowed}\nTry: {path} --help"

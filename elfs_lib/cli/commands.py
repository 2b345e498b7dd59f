"""The ``elfs`` command."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from elfs_lib.cli.shared import app
from elfs_lib.errors import ElfsError

INTERRUPTED = 130  # the exit code of a command that Ctrl-C ended
_UsageError = typer.BadParameter.__bases__[0]  # click's, which newer versions of typer contain


def main() -> None:
    """Entry point: errors a user can fix are one sentence on stderr, exit code 2.

    Started several times by torchrun, one process runs the command and the others train with it.
    """
    started = {"RANK", "LOCAL_RANK"} <= os.environ.keys()  # by torchrun: others set the size too
    if started and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from elfs_lib.training.loop import together

        together(_command)
    else:
        _command()


def _command() -> None:
    try:
        code = app(standalone_mode=False)
    except ElfsError as error:
        raise SystemExit(_say(str(error))) from None
    except OSError as error:
        file = os.fsdecode(error.filename) if error.filename else "a file"
        reason = error.strerror or str(error)
        message = f"Cannot read or write {file}: {reason}; check permissions and free space."
        raise SystemExit(_say(message)) from None
    except ModuleNotFoundError as error:
        # a package's name is not always that of what it installs
        package = {"faiss": "faiss-cpu", "sklearn": "scikit-learn", "PIL": "pillow"}
        name = (error.name or "?").partition(".")[0]
        name = package.get(name, name.replace("_", "-"))
        message = f"This needs the Python package {name}, which is missing: pip install {name}."
        raise SystemExit(_say(message)) from None
    except _UsageError as error:
        message = error.format_message()
        if not message or "\n" in message:  # not an error, but the help of a bare command
            print(message, end="")
            raise SystemExit(2) from None
        command = error.ctx.command_path if error.ctx else "elfs"
        raise SystemExit(_say(f"{message.rstrip('.')}: see {command} --help.")) from None
    if code == INTERRUPTED:  # typer turns Ctrl-C into this
        print("elfs: stopped; run the same command again to go on from here.", file=sys.stderr)
    raise SystemExit(code or 0)


def _say(message: str) -> int:
    """Print what went wrong on stderr, with the traceback if that is asked for."""
    if os.environ.get("ELFS_DEBUG"):
        traceback.print_exc()
    print(f"elfs: {message}", file=sys.stderr)
    return 2

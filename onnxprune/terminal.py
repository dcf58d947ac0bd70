"""How the program behaves as a process: streams, signals, exit status, and the one line for an error.

Results go to stdout, everything else to stderr. rich is imported only to draw.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

import click

from onnxprune.errors import OnnxPruneError
from onnxprune.report.units import clean

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.progress import Progress

EXIT_USAGE, EXIT_RESOURCE, EXIT_BUG, EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_PIPE = 2, 4, 70, 130, 143, 141


@contextlib.contextmanager
def working(quiet: bool) -> Iterator[Progress]:
    """Show progress, and keep what user code prints (``--eval``) out of the result on stdout."""
    from onnxprune.progress import watch

    with watch(quiet) as progress, contextlib.redirect_stdout(sys.stderr):
        yield progress


def emit(document: Callable[[], Mapping[str, Any]], render: Callable[[Console], None], as_json: bool) -> None:
    """Print the result: what ``document`` returns as JSON, or what ``render`` draws."""
    console = None if as_json else _console()
    if console is None:
        from onnxprune.report.report import to_json

        sys.stdout.write(to_json(document()))
    else:
        with console.capture() as capture:
            render(console)
        # rich fills every line up to the width of its table; nobody wants that in a file or a diff.
        sys.stdout.write(re.sub(r" +$", "", capture.get(), flags=re.MULTILINE))
    sys.stdout.flush()  # a closed pipe or a full disk shows here, not when Python exits


def _console() -> Console | None:
    try:
        from onnxprune.report.console import open_console
    except ImportError:  # the doctor must work where rich is missing; JSON says as much as the table
        return None
    return open_console()


def complain(label: str, message: object, hint: str = "") -> None:
    """Write one line to stderr, and the hint on the next."""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    styles = {"error": "red", "warning": "yellow", "hint": "cyan"}
    for word, text in ((label, clean(message)), ("hint", clean(hint))):
        if text:
            start = click.style(f"{word}:", fg=styles.get(word, "red"), bold=True) if colour else f"{word}:"
            with contextlib.suppress(OSError):  # nobody is left to tell
                print(f"{start} {text}", file=sys.stderr)


def explain(error: BaseException) -> int:
    """Tell the user what ended the run, in one line, and return the exit status."""
    match error:
        case OnnxPruneError():
            complain("error", error, error.hint)
            return error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            print(error.format_message(), file=sys.stderr)
            return EXIT_USAGE
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "onnxprune"
            hint = f"{command} --help lists what is possible"
            complain("error", error.format_message().removesuffix("."), hint)
            return EXIT_USAGE
        case KeyboardInterrupt() | click.Abort():
            complain("error", "interrupted")
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            _drop_stdout()
            return EXIT_PIPE
        case MemoryError():
            message = f"out of memory: {error}" if str(error) else "out of memory"
            complain("error", message, "lower --samples, --batch-size or --max-memory")
            return EXIT_RESOURCE
        case ImportError() if not (error.name or "").startswith("onnxprune"):
            complain("error", error, "onnxprune doctor says what this installation lacks")
            return EXIT_RESOURCE
        case OSError():
            _drop_stdout()
            complain("error", f"{error.filename or 'output'}: {error.strerror}" if error.strerror else error)
            return EXIT_RESOURCE
        case _:
            message = f"{type(error).__name__}: {error}"
            complain("internal error", message, "this is a bug in onnxprune, please report it")
            return EXIT_BUG


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, or Python complains again when it closes a broken stdout."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def prepare_process() -> None:
    """Make the streams and signals behave for a tool in a pipeline."""
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed by the caller (>&-)
            setattr(sys, name, open(os.devnull, "w", encoding="utf8"))  # noqa: SIM115  for the whole process
        elif hasattr(stream, "reconfigure"):
            # A name outside the terminal's alphabet is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: complain("warning", message)
    with contextlib.suppress(ValueError):  # only the main thread may
        # Unwind on kill, so that temporary files go away.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))

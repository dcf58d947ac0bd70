"""The command line: click and printing, no logic.

Results go to stdout, everything else to stderr. Heavy imports (onnx, ONNX Runtime, rich) happen
inside the commands, so that ``--help`` and usage errors answer at once.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

import onnxprune
from onnxprune.commands import machine, models, pruning
from onnxprune.report.report import COMMAND_LINE
from onnxprune.terminal import explain, prepare_process

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
EPILOG = """\b
Exit status:
  0 done          1 a check failed      2 wrong usage
  3 the model or the data is at fault   4 memory, disk or a package is missing
  70 a bug in onnxprune (ONNXPRUNE_TRACEBACK=1 shows where)    130 interrupted"""


class DefaultGroup(click.Group):
    """A group whose command ``prune`` need not be typed: ``onnxprune model.onnx --sparsity 0.7``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert ``prune`` unless the first word is a command or an option of the group."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help", "--version"):
            self._check_typo(args[0])
            args = ["prune", *args]
        return super().parse_args(ctx, args)

    def _check_typo(self, word: str) -> None:
        close = difflib.get_close_matches(word, self.commands, n=1)
        if close and "." not in word and not os.path.exists(word):
            raise click.UsageError(f"{word!r} is neither a command nor a file; did you mean {close[0]!r}?")


@click.group(
    cls=DefaultGroup,
    context_settings=SETTINGS,
    epilog=EPILOG,
    subcommand_metavar="MODEL | COMMAND [OPTIONS]...",
)
@click.version_option(onnxprune.__version__, prog_name="onnxprune", message="%(prog)s %(version)s")
def cli() -> None:
    """Prune ONNX models: smaller on disk, as accurate as pruning can be without retraining.

    \b
    onnxprune model.onnx --sparsity 0.7 --data samples.npz
    writes model.pruned.onnx and the report model.pruned.json; it is short for
    onnxprune prune model.onnx ... (onnxprune prune --help lists the options).
    """  # noqa: D301  click wants the character


for command in (
    *(pruning.prune, pruning.finetune),
    *(models.inspect, models.compare, models.sensitivity),
    *(machine.bench, models.export, machine.doctor, machine.ops),
):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: words after the program's name (default: ``sys.argv[1:]``).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    prepare_process()
    token = COMMAND_LINE.set(shlex.join(["onnxprune", *words]))
    try:
        return _run(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        if os.environ.get("ONNXPRUNE_TRACEBACK"):
            import traceback

            traceback.print_exc()
        return explain(error)
    finally:
        COMMAND_LINE.reset(token)


def _run(words: list[str]) -> int:
    completion = os.environ.get("_ONNXPRUNE_COMPLETE")
    if completion:
        return shell_complete(cli, {}, "onnxprune", "_ONNXPRUNE_COMPLETE", completion)
    try:
        with cli.make_context("onnxprune", words) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as stop:  # --help and --version
        sys.stdout.flush()
        return stop.exit_code
    return 0

"""The command line: click and printing, no logic.

Results go to stdout, everything else to stderr. Heavy imports (onnx, ONNX Runtime, rich) happen
inside the commands, so that ``--help`` and usage errors answer at once.
"""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import shell_complete

import onnxprune
from onnxprune.allocator import reuse_memory
from onnxprune.errors import FloorError
from onnxprune.options import (
    DATA_FIELDS,
    PLANNING_FIELDS,
    TUNING_FIELDS,
    SectionedCommand,
    floats,
    given,
    integers,
    read_config,
    recipe_options,
    to_toml,
)
from onnxprune.recipe import Recipe
from onnxprune.recipe.choices import FORMATS, VALUES
from onnxprune.report.report import COMMAND_LINE, plain, skipped_weights
from onnxprune.terminal import complain, emit, explain, prepare_process, working

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.report.report import Report

F = TypeVar("F", bound=Callable[..., Any])

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
EPILOG = """\b
Exit status:
  0 done          1 a check failed      2 wrong usage
  3 the model or the data is at fault   4 memory, disk or a package is missing
  70 a bug in onnxprune (ONNXPRUNE_TRACEBACK=1 shows where)    130 interrupted"""
PATH = click.Path(path_type=Path)


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


def output_options(command: F) -> F:
    """Add the options that every command has."""
    command = click.option("-q", "--quiet", is_flag=True, help="No progress; print the verdict only.")(
        command
    )
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


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


@cli.command(cls=SectionedCommand, short_help="Prune MODEL and write the result beside it.")
@click.argument("model", metavar="MODEL", required=False, type=PATH)
@click.option("-o", "--output", type=PATH, help="Where to write the model (default: MODEL.pruned.onnx).")
@click.option("--force", is_flag=True, help="Overwrite an existing output.")
@click.option("--report", type=PATH, help="Where to write the JSON report (default: beside the output).")
@click.option("--config", type=PATH, help="Recipe: a TOML file, or the JSON report of an earlier run.")
@click.option("--dump-config", is_flag=True, help="Print the recipe as TOML and do nothing.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@recipe_options()
@output_options
@click.pass_context
def prune(
    ctx: click.Context,
    /,
    model: Path | None,
    output: Path | None,
    force: bool,
    report: Path | None,
    config: Path | None,
    dump_config: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **_: object,
) -> None:
    """Prune MODEL and write the result beside it, with a report."""
    recipe = Recipe.from_dict({**(read_config(config) if config else {}), **given(ctx)})
    if dump_config:
        click.echo(to_toml(recipe), nl=False)
        return
    if model is None:
        raise click.UsageError("no model given", ctx)
    reuse_memory()
    from onnxprune.pipeline import prune as run

    try:
        with working(quiet) as progress:
            result = run(
                model, output, recipe=recipe, force=force, report=report, progress=progress, dry_run=dry_run
            )
    except FloorError as error:
        _show_search(error.search, as_json, quiet)
        raise
    _show(result, report, as_json, quiet)


def _show_search(search: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Print what was tried in vain; quietly only what the error says."""
    if quiet and not as_json:
        return

    def render(console: Console) -> None:
        from onnxprune.report.curve import render_search

        render_search(console, search)

    emit(lambda: {"search": search}, render, as_json)


def _show(result: Report, report: Path | None, as_json: bool, quiet: bool) -> None:
    """Print what a run that wrote a model did; one that only helped in torchrun says nothing."""
    from onnxprune.finetune.stage import follower

    if follower():
        return

    def render(console: Console) -> None:
        from onnxprune.report.text import render_report

        path = report or (Path(result.output).with_suffix(".json") if result.output else "")
        render_report(console, result, str(path) if result.output else "", quiet)

    emit(result.to_dict, render, as_json)
    for warning in result.warnings:
        complain("warning", warning)


@cli.command(cls=SectionedCommand, short_help="Train a pruned MODEL towards the dense one.")
@click.argument("model", type=PATH)
@click.option("--teacher", type=PATH, required=True, help="The dense model that MODEL was pruned from.")
@click.option("-o", "--output", type=PATH, help="Where to write the model (default: MODEL.finetuned.onnx).")
@click.option("--force", is_flag=True, help="Overwrite an existing output.")
@click.option("--report", type=PATH, help="Where to write the JSON report (default: beside the output).")
@click.option(
    "--config",
    type=PATH,
    help="Recipe: a TOML file, or a JSON report, such as MODEL's; pruning options are left out.",
)
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@recipe_options(TUNING_FIELDS)
@output_options
@click.pass_context
def finetune(
    ctx: click.Context,
    /,
    model: Path,
    teacher: Path,
    output: Path | None,
    force: bool,
    report: Path | None,
    config: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **_: object,
) -> None:
    """Train MODEL, pruned by whatever tool, towards the dense model; its zeros stay where they are."""
    values = read_config(config) if config else {}
    values = {name: value for name, value in values.items() if name in TUNING_FIELDS}
    recipe = Recipe.from_dict({**values, "finetune": True, **given(ctx)})
    from onnxprune.finetuning import distill as run

    with working(quiet) as progress:
        result = run(
            model,
            teacher,
            output,
            recipe=recipe,
            force=force,
            report=report,
            progress=progress,
            dry_run=dry_run,
        )
    _show(result, report, as_json, quiet)


@cli.command(cls=SectionedCommand, short_help="List what can be pruned, what cannot and why.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=PATH)
@click.option(
    "--attention", "show_attention", is_flag=True, help="Also list attention: form, heads, weights."
)
@recipe_options(("include", "exclude", "min_size", "allow_external"))
@output_options
@click.pass_context
def inspect(
    ctx: click.Context,
    /,
    models: tuple[Path, ...],
    show_attention: bool,
    as_json: bool,
    quiet: bool,
    **_: object,
) -> None:
    """List the layers of each MODEL: what can be pruned, what cannot and why."""
    recipe = Recipe.from_dict(given(ctx))
    from onnxprune.inspection import inspect as run

    with working(quiet):
        results = [run(model, recipe, attention=show_attention) for model in models]

    def render(console: Console) -> None:
        from onnxprune.report.listing import render_inspection

        for path, result in zip(models, results, strict=True):
            render_inspection(console, str(path), result, quiet)

    def document() -> dict[str, Any]:
        documents = [
            {"model": str(path), **plain(result), "skipped": skipped_weights(result.skipped)}
            for path, result in zip(models, results, strict=True)
        ]
        return {"schema_version": 1, "models": documents}

    emit(document, render, as_json)


@cli.command(cls=SectionedCommand, short_help="Compare two models on the same data.")
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@recipe_options((*DATA_FIELDS, "eval", "min_size", "seed", "threads", "allow_external"))
@output_options
@click.pass_context
def compare(
    ctx: click.Context, /, first: Path, second: Path, as_json: bool, quiet: bool, **_: object
) -> None:
    """Compare model SECOND with FIRST: interface, sizes, zeros, and outputs on the same data.

    Ends with status 1 when SECOND cannot stand in for FIRST.
    """
    recipe = Recipe.from_dict(given(ctx))
    from onnxprune.compare import compare as run

    with working(quiet) as progress:
        result = run(first, second, recipe=recipe, progress=progress)

    def render(console: Console) -> None:
        from onnxprune.report.listing import render_comparison

        render_comparison(console, result, quiet)

    emit(result.to_dict, render, as_json)
    ctx.exit(0 if result.agrees else 1)


@cli.command(cls=SectionedCommand, short_help="Say how much each layer can be pruned.")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, help="Where to write the plan, which prune reads with --plan.")
@click.option("--plot", type=PATH, help="Where to draw the curves: a .png or .svg file.")
@click.option(
    "--levels", default=None, callback=floats, metavar="F,F", help="Sparsities to try (default: five)."
)
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@recipe_options(PLANNING_FIELDS)
@output_options
@click.pass_context
def sensitivity(
    ctx: click.Context,
    /,
    model: Path,
    output: Path | None,
    plot: Path | None,
    levels: tuple[float, ...] | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **_: object,
) -> None:
    """Prune each layer of MODEL alone, see how far its output moves, and plan the sparsity of each."""
    recipe = Recipe.from_dict(given(ctx))
    from onnxprune.sensitivity import LEVELS
    from onnxprune.sensitivity import sensitivity as run

    with working(quiet) as progress:
        result = run(
            model, output, levels=levels or LEVELS, plot=plot, recipe=recipe, force=force, progress=progress
        )

    def render(console: Console) -> None:
        from onnxprune.report.listing import render_sensitivity

        render_sensitivity(console, result, str(output or ""), quiet)

    emit(result.to_dict, render, as_json)


@cli.command(cls=SectionedCommand, short_help="Measure how fast models run, in turns.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=PATH)
@click.option(
    "--threads", default=None, callback=integers, metavar="N,N", help="Numbers of threads (default: all)."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=30, show_default=True, help="Turns of each model."
)
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Turns before that.")
@click.option("--min-time", type=click.FloatRange(min=0), default=0.0, help="Seconds to measure at least.")
@recipe_options((*DATA_FIELDS, "seed", "allow_external"))
@output_options
@click.pass_context
def bench(
    ctx: click.Context,
    /,
    models: tuple[Path, ...],
    threads: tuple[int, ...] | None,
    rounds: int,
    warmup: int,
    min_time: float,
    as_json: bool,
    quiet: bool,
    **_: object,
) -> None:
    """Measure how fast each MODEL runs, in turns; the first is what the others are compared with."""
    values = given(ctx)
    values.pop("threads", None)  # several numbers here, not the recipe's one
    recipe = Recipe.from_dict(values)
    from onnxprune.bench import bench as run

    with working(quiet) as progress:
        result = run(
            models,
            threads=threads,
            rounds=rounds,
            warmup=warmup,
            min_time=min_time,
            recipe=recipe,
            progress=progress,
        )

    def render(console: Console) -> None:
        from onnxprune.report.listing import render_bench

        render_bench(console, result, quiet)

    emit(result.to_dict, render, as_json)


@cli.command(short_help="Store the pruned weights in another form.")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Where to write the model.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), required=True, help="How weights are stored there."
)
@click.option("--values", type=click.Choice(VALUES), default="same", help="Type of packed values.")
@click.option("--allow-external", is_flag=True, help="Trust external data outside the model's own folder.")
@click.option("--force", is_flag=True, help="Overwrite an existing output.")
@output_options
def export(
    model: Path,
    output: Path,
    form: str,
    values: str,
    allow_external: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write MODEL with its pruned weights stored in another form; the values stay the same."""
    from onnxprune.export import export as run

    with working(quiet) as progress:
        progress.stage(f"storing as {form}")
        result = run(model, output, format=form, values=values, allow_external=allow_external, force=force)

    def render(console: Console) -> None:
        from onnxprune.report.listing import render_export

        render_export(console, result, quiet)

    emit(lambda: {"schema_version": 1, **plain(result)}, render, as_json)


@cli.command(short_help="Check this machine.")
@output_options
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, quiet: bool) -> None:
    """Check that this machine has all that onnxprune needs."""
    from onnxprune.doctor import examine

    checks = examine()
    healthy = all(check.level != "problem" for check in checks)

    def render(console: Console) -> None:
        from onnxprune.report.listing import render_checks

        render_checks(console, checks, quiet)

    def document() -> dict[str, Any]:
        return {"schema_version": 1, "healthy": healthy, "checks": [plain(check) for check in checks]}

    emit(document, render, as_json)
    ctx.exit(0 if healthy else 1)


@cli.group(short_help="Build the kernels for ONNX Runtime, or say which are in use.")
def ops() -> None:
    """The library that makes pruned models faster than dense ones in ONNX Runtime on a CPU.

    Models run without it too, on the functions in the file, at dense speed.
    """


@ops.command("build", short_help="Compile the library into the user's cache.")
@click.option("--force", is_flag=True, help="Compile even if it is there.")
@output_options
def ops_build(force: bool, as_json: bool, quiet: bool) -> None:
    """Compile the library into the user's cache; needs a C++ compiler and under a minute."""
    from onnxprune.ops import build

    with working(quiet) as progress:
        progress.stage("compiling")
        library = build(force=force)

    def render(console: Console) -> None:
        from onnxprune.report.console import paragraph

        paragraph(console, str(library))

    emit(lambda: {"schema_version": 1, "library": str(library)}, render, as_json)


@ops.command("info", short_help="What is loaded, and on which instruction set.")
@output_options
def ops_info(as_json: bool, quiet: bool) -> None:
    """Say which library is in use, what its kernels run on and which ONNX Runtime they go with."""
    from onnxprune.ops import info

    found = info()

    def render(console: Console) -> None:
        from onnxprune.report.listing import render_ops

        render_ops(console, found, quiet)

    emit(lambda: {"schema_version": 1, **plain(found)}, render, as_json)


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

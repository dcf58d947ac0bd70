"""``onnxprune prune`` and ``finetune``: what writes a smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.allocator import reuse_memory
from onnxprune.commands.common import PATH, output_options
from onnxprune.errors import FloorError
from onnxprune.options import (
    TUNING_FIELDS,
    SectionedCommand,
    given,
    read_config,
    recipe_options,
    to_toml,
)
from onnxprune.recipe import Recipe
from onnxprune.terminal import complain, emit, working

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.report.report import Report


@click.command(cls=SectionedCommand, short_help="Prune MODEL and write the result beside it.")
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


@click.command(cls=SectionedCommand, short_help="Train a pruned MODEL towards the dense one.")
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

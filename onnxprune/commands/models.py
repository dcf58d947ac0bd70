"""``onnxprune inspect``, ``compare``, ``sensitivity`` and ``export``: what tells of models or stores them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.commands.common import PATH, output_options
from onnxprune.errors import UsageError
from onnxprune.options import (
    DATA_FIELDS,
    PLANNING_FIELDS,
    SectionedCommand,
    floats,
    given,
    recipe_options,
)
from onnxprune.recipe import Recipe
from onnxprune.recipe.choices import EXPORT_TARGETS, FORMATS, VALUES
from onnxprune.report.report import plain, skipped_weights
from onnxprune.terminal import emit, working

if TYPE_CHECKING:
    from rich.console import Console


@click.command(cls=SectionedCommand, short_help="List what can be pruned, what cannot and why.")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=PATH)
@click.option(
    "--attention", "show_attention", is_flag=True, help="Also list attention: form, heads, weights."
)
@click.option(
    "--groups", "show_groups", is_flag=True, help="Also list channels, heads and units that can be removed."
)
@recipe_options(("include", "exclude", "min_size", "allow_external"))
@output_options
@click.pass_context
def inspect(
    ctx: click.Context,
    /,
    models: tuple[Path, ...],
    show_attention: bool,
    show_groups: bool,
    as_json: bool,
    quiet: bool,
    **_: object,
) -> None:
    """List the layers of each MODEL: what can be pruned, what cannot and why."""
    recipe = Recipe.from_dict(given(ctx))
    from onnxprune.inspection import inspect as run

    with working(quiet):
        results = [run(model, recipe, attention=show_attention, groups=show_groups) for model in models]

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


@click.command(cls=SectionedCommand, short_help="Compare two models on the same data.")
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
        from onnxprune.report.comparison import render_comparison

        render_comparison(console, result, quiet)

    emit(result.to_dict, render, as_json)
    ctx.exit(0 if result.agrees else 1)


@click.command(cls=SectionedCommand, short_help="Say how much each layer can be pruned.")
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


def _fixed(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read ``INPUT=VALUE``; a value is a number, true, false, or a list of these in JSON."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            found[name] = json.loads(text)
        except ValueError:
            equals = ""
        if not name or not equals:
            raise UsageError(f"--fix is {pair!r}, wanted INPUT=VALUE", "such as sr=16000, or size=[1,2]")
    return found


@click.command(cls=SectionedCommand, short_help="Store the pruned weights in another form.")
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Where to write the model.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), required=True, help="How weights are stored there."
)
@click.option("--values", type=click.Choice(VALUES), default="same", help="Type of packed values.")
@click.option(
    "--target-runtime",
    type=click.Choice(EXPORT_TARGETS),
    default=EXPORT_TARGETS[0],
    show_default=True,
    help="cpu: switch packed nodes to our kernels where they are faster on this machine.",
)
@click.option(
    "--fix",
    multiple=True,
    metavar="INPUT=VALUE",
    help="Keep only the branches for this value of an input, such as sr=16000 (repeatable).",
)
@click.option("--force", is_flag=True, help="Overwrite an existing output.")
@recipe_options((*DATA_FIELDS, "seed", "threads", "cache", "allow_external"))
@output_options
@click.pass_context
def export(
    ctx: click.Context,
    /,
    model: Path,
    output: Path,
    form: str,
    values: str,
    target_runtime: str,
    fix: tuple[str, ...],
    force: bool,
    as_json: bool,
    quiet: bool,
    **_: object,
) -> None:
    """Write MODEL with its pruned weights stored in another form; the values stay the same.

    Data say which sizes of inputs count when kernels are measured (--target-runtime cpu), and a model
    with fixed inputs is compared on them with what it was (--fix); they change nothing else.
    """
    ours = ("values", "target_runtime", "fix")
    recipe = Recipe.from_dict({name: value for name, value in given(ctx).items() if name not in ours})
    from onnxprune.export import export as run

    with working(quiet) as progress:
        progress.stage(f"storing as {form}")
        result = run(
            model,
            output,
            format=form,
            values=values,
            target_runtime=target_runtime,
            fix=_fixed(fix),
            recipe=recipe,
            allow_external=recipe.allow_external,
            force=force,
            progress=progress,
        )

    def render(console: Console) -> None:
        from onnxprune.report.listing import render_export

        render_export(console, result, quiet)

    emit(lambda: {"schema_version": 1, **plain(result)}, render, as_json)

"""``onnxprune bench``, ``doctor`` and ``ops``: what depends on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.commands.common import PATH, output_options
from onnxprune.options import (
    DATA_FIELDS,
    SectionedCommand,
    given,
    integers,
    recipe_options,
)
from onnxprune.recipe import Recipe
from onnxprune.report.report import plain
from onnxprune.terminal import emit, working

if TYPE_CHECKING:
    from rich.console import Console


@click.command(cls=SectionedCommand, short_help="Measure how fast models run, in turns.")
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
        from onnxprune.report.bench import render_bench

        render_bench(console, result, quiet)

    emit(result.to_dict, render, as_json)


@click.command(short_help="Check this machine.")
@output_options
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, quiet: bool) -> None:
    """Check that this machine has all that onnxprune needs."""
    from onnxprune.doctor import examine

    checks = examine()
    healthy = all(check.level != "problem" for check in checks)

    def render(console: Console) -> None:
        from onnxprune.report.machine import render_checks

        render_checks(console, checks, quiet)

    def document() -> dict[str, Any]:
        return {"schema_version": 1, "healthy": healthy, "checks": [plain(check) for check in checks]}

    emit(document, render, as_json)
    ctx.exit(0 if healthy else 1)


@click.group(short_help="Build the kernels for ONNX Runtime, or say which are in use.")
def ops() -> None:
    """The libraries that make pruned models faster than dense ones in ONNX Runtime, on a CPU or with CUDA.

    Models run without it too, on the functions in the file, at dense speed.
    """


@ops.command("build", short_help="Compile the library into the user's cache.")
@click.option("--force", is_flag=True, help="Compile even if it is there.")
@click.option("--cuda", is_flag=True, help="Compile the kernels for CUDA too: needs nvcc and some minutes.")
@click.option(
    "--arch", default="", metavar="N,N", help="With --cuda: only these GPUs, such as 90 (default: all)."
)
@click.option("--verbose", is_flag=True, help="With --cuda: what each kernel takes of a GPU's registers.")
@output_options
def ops_build(force: bool, cuda: bool, arch: str, verbose: bool, as_json: bool, quiet: bool) -> None:
    """Compile the library into the user's cache; needs a C++ compiler and under a minute.

    --cuda needs nvcc besides: of the CUDA toolkit, or pip install "onnxprune[cuda-build]". No GPU is needed.
    """
    from onnxprune import cudabuild
    from onnxprune.opsbuild import build

    with working(quiet) as progress:
        progress.stage("compiling")
        library = build(force=force, cuda=cuda, targets=tuple(arch.split(",")) if arch else ())
    made = library.with_name(cudabuild.NAME) if cuda else None
    uses = cudabuild.usage(made) if made and verbose else ()

    def render(console: Console) -> None:
        from onnxprune.report.console import paragraph
        from onnxprune.report.machine import render_uses

        if uses:
            render_uses(console, uses)
        for path in (library, made):
            if path is not None:
                paragraph(console, str(path))

    document: dict[str, Any] = {"schema_version": 1, "library": str(library)}
    if made is not None:
        document |= {"cuda": str(made), "kernels": [plain(use) for use in uses]}
    emit(lambda: document, render, as_json)


@ops.command("tune", short_help="Measure the CUDA kernels on this machine's GPU.")
@click.option(
    "--shape", "shapes", multiple=True, metavar="NxK", help="Outputs x inputs of a weight (repeatable)."
)
@click.option("--batch", "batches", callback=integers, metavar="M,M", help="Rows of X (default: 1 to 8192).")
@click.option(
    "--cublas", default="", metavar="PATH", help="cuBLAS to measure against (default: what is found)."
)
@click.option(
    "-o", "--output", default=None, type=PATH, help="File of the table (default: in the user's cache)."
)
@output_options
def ops_tune(
    shapes: tuple[str, ...],
    batches: tuple[int, ...] | None,
    cublas: str,
    output: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the CUDA kernels against cuBLAS, for --target-runtime cuda; takes minutes."""
    from onnxprune.kernels.devicetable import table_path
    from onnxprune.kernels.tune import default_cublas, open_kernels, parse_shape, tune

    kernels = open_kernels()
    with working(quiet) as progress:
        table = tune(
            kernels,
            shapes=tuple(map(parse_shape, shapes)),
            rows=batches,
            cublas=cublas or default_cublas(),
            progress=progress,
        )
    path = output or table_path(table.gpu)
    table.save(path)

    def render(console: Console) -> None:
        from onnxprune.report.console import paragraph
        from onnxprune.report.machine import render_device_table

        if not quiet:
            render_device_table(console, table)
        paragraph(console, str(path))

    emit(lambda: {"schema_version": 1, "table": str(path), **plain(table)}, render, as_json)


@ops.command("info", short_help="What is loaded, and on which instruction set.")
@output_options
def ops_info(as_json: bool, quiet: bool) -> None:
    """Say which library is in use, what its kernels run on and which ONNX Runtime they go with."""
    from onnxprune.opsinfo import info

    found = info()

    def render(console: Console) -> None:
        from onnxprune.report.machine import render_ops

        render_ops(console, found, quiet)

    emit(lambda: {"schema_version": 1, **plain(found)}, render, as_json)

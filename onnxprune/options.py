"""Command-line options made from the fields of :class:`onnxprune.recipe.Recipe`, and its TOML form.

A new field of the recipe becomes an option by itself; :data:`SECTIONS` says under which heading.
Only click and the recipe are imported: ``onnxprune --help`` must stay fast.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from onnxprune.errors import UsageError
from onnxprune.recipe.recipe import SCHEMA_VERSION, Recipe

F = TypeVar("F", bound=Callable[..., Any])

SECTIONS: dict[str, tuple[str, ...]] = {
    "What is pruned": (
        "sparsity", "target_size", "target_speedup", "plan", "pattern", "structured_sparsity", "round_to",
        "allocation", "budget", "solve", "solver", "refit", "damping", "attention", "include", "exclude",
        "min_size",
    ),
    "Prune to an accuracy": (
        "max_drop", "min_agreement", "metric", "eval", "labels", "patience", "time_limit",
    ),
    "How weights are chosen": ("criterion", "alpha", "threshold", "removal", "selection", "granularity"),
    "Fine-tuning": ("finetune", "steps", "minutes", "lr", "loss", "scope", "schedule"),
    "Calibration data": (
        "data", "samples", "batch_size", "mean", "std", "resize", "layout", "tokenizer", "max_length",
        "augment",
    ),
    "How it is stored": ("format", "values", "target_runtime", "batch", "cuda_table"),
    "Machine": ("seed", "threads", "max_memory", "allow_external", "cache"),
}  # fmt: skip
DATA_FIELDS = ("data", "samples", "batch_size", "mean", "std", "resize", "layout", "tokenizer", "max_length")
TUNING_FIELDS = (
    "steps", "minutes", "lr", "loss", "labels", "augment", "scope", *DATA_FIELDS, "eval", "metric",
    "format", "values", "target_runtime", "batch", "cuda_table", "seed", "threads", "max_memory",
    "allow_external", "cache",
)  # fmt: skip
PLANNING_FIELDS = (
    "sparsity", "target_size", "target_speedup", "pattern", "criterion", "alpha", "selection", "granularity",
    "allocation", "budget", "solver", "refit", "damping", "include", "exclude", "min_size", "labels",
    *DATA_FIELDS, "augment", "seed", "threads", "max_memory", "allow_external", "cache",
)  # fmt: skip
GLOBS = ("include", "exclude")
_FIELDS = {item.name: item for item in dataclasses.fields(Recipe)}
_DEFAULTS = Recipe()


def _numbers(value: str | None, kind: type[float] | type[int], example: str) -> tuple[Any, ...] | None:
    try:
        return None if value is None else tuple(kind(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as {example}") from None


def floats(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Split a list of numbers such as ``0.485,0.456,0.406``; a click callback."""
    return _numbers(value, float, "0.485,0.456,0.406")


def integers(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Split a list of whole numbers such as ``1,2``; a click callback."""
    return _numbers(value, int, "1,2")


def flag(name: str) -> str:
    """Return the option of field ``name``."""
    return "--" + name.replace("_", "-")


def _option(name: str) -> click.Option:
    """Make the option of one field. Its default is None (or ()) so that "not given" can be told."""
    item = _FIELDS[name]
    kind, default, choices = str(item.type), getattr(_DEFAULTS, name), item.metadata["choices"]
    text = item.metadata["help"]
    if default is not None and default != ():
        shown = ",".join(default) if isinstance(default, tuple) else default
        text += f" (default: {('on' if default else 'off') if kind == 'bool' else shown})"
    settings: dict[str, Any] = {"help": text, "default": None}
    if kind == "bool":
        return click.Option([f"{flag(name)}/--no-{name.replace('_', '-')}", name], **settings)
    if choices:
        settings["type"] = click.Choice(choices)
    elif kind.startswith("tuple[float"):
        settings.update(type=str, callback=floats, metavar="F,F,F")
    elif kind.startswith("tuple[str"):
        settings.update(type=str, multiple=True, metavar="GLOB" if name in GLOBS else "NAME")
    else:
        settings["type"] = {"float": float, "int": int, "str": str}[kind.split(" ")[0]]
    return click.Option([flag(name), name], **settings)


def recipe_options(names: Iterable[str] = tuple(_FIELDS)) -> Callable[[F], F]:
    """Decorate a command with the options of the recipe's fields ``names``."""

    def decorate(command: F) -> F:
        # click collects decorators from the bottom up; it keeps them in this attribute.
        params: list[click.Parameter] = command.__dict__.setdefault("__click_params__", [])
        params.extend(_option(name) for name in reversed(tuple(names)))
        return command

    return decorate


def given(ctx: click.Context) -> dict[str, Any]:
    """Return the recipe fields that were typed on the command line."""
    return {
        name: value
        for name, value in ctx.params.items()
        if name in _FIELDS and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }


class SectionedCommand(click.Command):
    """A command whose help lists the recipe's options under the headings of :data:`SECTIONS`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        # Its own, not only its parent's: click keeps the help option that it made first.
        settings.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **settings)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, the command's own ones first."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {option.name: option.get_help_record(ctx) for option in options}
        sections = {title: [records.pop(name, None) for name in names] for title, names in SECTIONS.items()}
        sections = {"Output": list(records.values()), **sections}
        for title, rows in sections.items():
            shown = [row for row in rows if row is not None]
            if shown:
                with formatter.section(title):
                    formatter.write_dl(shown)


def to_toml(recipe: Recipe) -> str:
    """Write a recipe as a commented TOML file that ``--config`` reads.

    Fields without a value are comments, because TOML has no null.
    """
    lines = [f"schema_version = {SCHEMA_VERSION}"]
    for title, names in SECTIONS.items():
        lines += ["", f"# {title}"]
        for name in names:
            item, value = _FIELDS[name], getattr(recipe, name)
            choices = item.metadata["choices"]
            lines.append(
                f"# {item.metadata['help']}" + (f" One of: {', '.join(choices)}." if choices else "")
            )
            lines.append(f"# {name} =" if value is None else f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def read_config(path: Path) -> dict[str, Any]:
    """Read the recipe's values from a TOML file, or from the JSON report of an earlier run.

    Raises:
        UsageError: when the file cannot be read, holds no recipe, or one with an unknown key or a wrong type.
    """
    if path.suffix.lower() != ".json":
        values: Any = Recipe.from_toml(path)
    else:
        from onnxprune.report.report import read_json

        values = read_json(path).get("recipe")
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no recipe", "--dump-config prints one")
    try:
        return Recipe.coerced(values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}", error.hint) from error

"""What every command has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def output_options(command: F) -> F:
    """Add the options that every command has."""
    command = click.option("-q", "--quiet", is_flag=True, help="No progress; print the verdict only.")(
        command
    )
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)

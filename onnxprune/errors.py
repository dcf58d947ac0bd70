"""Every failure the user can meet: what went wrong, where, and what to do about it.

The library raises; only ``cli.py`` prints. Each class carries the exit code of the command line:
1 a check failed, 2 wrong usage, 3 the model or the data is at fault, 4 a resource ran out.
"""

from __future__ import annotations

from typing import Any


class OnnxPruneError(Exception):
    """Base class. ``str(error)`` is one line; ``hint`` says the way out and may be empty."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(" ".join(message.split()))
        self.hint = " ".join(hint.split())


class VerificationError(OnnxPruneError):
    """The result does not agree with the plan or the dense model; nothing was written."""

    exit_code = 1


class FloorError(OnnxPruneError):
    """No pruned model holds the floor that was asked for; nothing was written.

    Attributes:
        search: the models that were tried, see ``onnxprune.report.report.Report``.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", search: dict[str, Any] | None = None) -> None:
        super().__init__(message, hint)
        self.search = search or {}


class UsageError(OnnxPruneError):
    """An option, a combination of options or an argument makes no sense."""

    exit_code = 2


class ModelError(OnnxPruneError):
    """The model file is broken, unsafe or holds nothing that can be pruned."""

    exit_code = 3


class DataError(OnnxPruneError):
    """The calibration data is broken or does not fit the model's inputs."""

    exit_code = 3


class ResourceError(OnnxPruneError):
    """Memory, disk, or a needed package is missing."""

    exit_code = 4

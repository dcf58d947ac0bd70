"""What a search has measured, kept in the user's cache: a killed one goes on, a finished one repeats quickly.

One file for each combination of all that the measurements depend on: model, samples, recipe, the user's
functions, this program and the machine. Not of the floor: models judged for one are known to another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from onnxprune import digest
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import OnnxPruneError
from onnxprune.files import arrays
from onnxprune.files.atomic import atomic_write_text
from onnxprune.machine import cache_dir
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.recipe.choices import LOSSES
from onnxprune.report.report import plain
from onnxprune.search.trained import changes, with_changes
from onnxprune.userfunction import load_function

FORMAT = 1  # raise it when entries mean something else
# What says where the search ends, what becomes of the model afterwards, or where things are; data count by
# their content, threads with the machine
_NO_MATTER = (
    *("max_drop", "min_agreement", "patience", "time_limit", "target_runtime", "batch", "cuda_table"),
    *("data", "cache", "allow_external", "max_memory", "threads"),
)


def key_of(
    dense: Model, recipe: Recipe, data: Sequence[CalibrationData], metrics: Sequence[float | None]
) -> str:
    """Return the digest of all that a candidate's measurements depend on.

    Args:
        dense: the dense model, as it is pruned.
        recipe: of the run.
        data: the samples of each part.
        metrics: of the dense model: they tell when the data behind ``--eval`` have changed.

    Raises:
        OnnxPruneError: when a function of the user's cannot be loaded.
    """
    settings = {name: value for name, value in recipe.to_dict().items() if name not in _NO_MATTER}
    for option in ("eval", "loss"):
        if settings[option] is not None and not (option == "loss" and recipe.loss in LOSSES):
            settings[option] = digest.of_function(load_function(settings[option], f"--{option}"))
    parts = [
        f"{FORMAT} {digest.of_program()}",
        digest.of_machine(recipe.threads),
        digest.of_model(dense),
        *(part.digest() for part in data),
        json.dumps(settings, sort_keys=True),
        *("none" if metric is None else f"{metric:.6g}" for metric in metrics),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class LostError(Exception):
    """The weights of a trained model whose measurements are known are gone: it must be trained again."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Known:
    """A table: what was measured -> plain values.

    Args:
        key: see :func:`key_of`; None: nothing is read or kept.

    Attributes:
        note: what the user must know of the file that was found; "" when there is nothing to say.
        measured: how many values were not known.
    """

    def __init__(self, key: str | None) -> None:
        self.key, self.note, self.measured = key, "", 0
        self.path = None if key is None else cache_dir() / "search" / f"{key}.json"
        self._table: dict[str, Any] = self._read()

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the value of ``name``; where it is not known, measure it and keep it.

        Both ways it has gone through JSON, so that a run that goes on reports what another would.
        """
        if name not in self._table:
            value = measure()
            self.measured += 1
            self._table[name] = json.loads(json.dumps(value, default=plain))
            self._write()
        return self._table[name]

    def weights(self, name: str, base: Model, train: Callable[[], tuple[Model, Any]]) -> tuple[Model, Any]:
        """Return a trained model and what was found; train ``base`` where that is not known.

        Raises:
            LostError: when it is known but its weights are not there any more.
        """
        made: list[Model] = []

        def measure() -> Any:
            model, found = train()
            made.append(model)
            kept = "" if self.key is None else arrays.save(self._file(name), changes(base, model))
            return {"found": found, "weights": kept}

        entry = self(name, measure)
        if made:
            return made[0], entry["found"]
        kept = arrays.load(self._file(name), entry["weights"])
        model = None if kept is None else with_changes(base, kept)
        if model is None:
            raise LostError(name)
        return model, entry["found"]

    def found(self, name: str) -> Any:
        """Return what the training of a model found, without its weights; None when it is not known."""
        return self._table[name]["found"] if name in self._table else None

    def drop_weights(self, name: str) -> None:
        """Make room: the weights of a trained model that is not the best one are not needed."""
        arrays.remove(self._file(name))

    def forget(self, name: str) -> None:
        """Forget a model and all that was made from it."""
        self._table = {
            key: value for key, value in self._table.items() if key != name and not key.startswith(f"{name} ")
        }
        self._write()

    def _file(self, name: str) -> str:
        return f"search-{self.key}-{name.replace(' ', '-')}"

    def _read(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        try:
            text = self.path.read_text(encoding="utf8")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.note = f"{self.path} cannot be read ({error}): everything was measured again"
            return {}
        with contextlib.suppress(ValueError, KeyError, TypeError):
            document = json.loads(text)
            table = document["table"]
            if isinstance(table, dict) and document["digest"] == _digest(self.key, table):
                return table
        self.note = f"{self.path} is damaged or no cache of a search: everything was measured again"
        return {}

    def _write(self) -> None:
        if self.path is None:
            return
        text = json.dumps({"table": self._table, "digest": _digest(self.key, self._table)}, indent=0) + "\n"
        with contextlib.suppress(OSError, OnnxPruneError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.path, text, force=True)


def _digest(key: str | None, table: dict[str, Any]) -> str:
    return hashlib.sha256(f"{key} {json.dumps(table, sort_keys=True)}".encode()).hexdigest()

"""Measurements of earlier runs in the user's cache, so that the same command decides the same again.

One JSON file for each combination of processor, ONNX Runtime and library: another one measures anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from onnxprune.errors import OnnxPruneError
from onnxprune.files.atomic import atomic_write_text
from onnxprune.machine import cache_dir

Ratios = dict[str, list[float]]
FORMAT = 2  # raise it when entries mean something else
MAX_ENTRIES = 20_000


class Cache:
    """A table: what was measured -> ratios. Reads the file when made, writes it with :meth:`save`.

    Args:
        identity: everything but the key that the ratios depend on.
        enabled: False neither reads nor writes.
    """

    def __init__(self, identity: str, *, enabled: bool = True) -> None:
        digest = hashlib.sha256(f"{FORMAT} {identity}".encode()).hexdigest()[:16]
        self.path: Path | None = cache_dir() / "kernels" / f"{digest}.json" if enabled else None
        self.identity = identity
        self._known: Ratios = self._read()
        self._changed = False

    def _read(self) -> Ratios:
        with contextlib.suppress(OSError, ValueError):
            document = json.loads(self.path.read_text(encoding="utf8")) if self.path else {}
            entries = document.get("ratios") if isinstance(document, dict) else None
            if isinstance(entries, dict):
                return {key: value for key, value in entries.items() if _is_numbers(value)}
        return {}

    def get(self, key: str) -> list[float] | None:
        """Return what is known of ``key``, or None."""
        return self._known.get(key)

    def put(self, key: str, ratios: list[float]) -> list[float]:
        """Remember ``ratios``; return them as a later run will read them."""
        self._known[key] = [round(ratio, 3) for ratio in ratios]
        self._changed = True
        return self._known[key]

    def save(self) -> None:
        """Write the file if there is anything new; a cache that cannot be written is no error."""
        if not self._changed or self.path is None:
            return
        merged = self._read() | self._known  # another process may have written meanwhile
        kept = dict(list(merged.items())[-MAX_ENTRIES:])
        text = json.dumps({"identity": self.identity, "ratios": kept}, indent=0) + "\n"
        with contextlib.suppress(OSError, OnnxPruneError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.path, text, force=True)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, int | float) for item in value)

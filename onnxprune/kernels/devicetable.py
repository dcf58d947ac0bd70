"""What was measured of the CUDA kernels on one GPU, and what a node can expect of them.

A JSON file in the user's cache, written by ``onnxprune ops tune`` on the machine with the GPU; it may be
copied to another machine, where ``--cuda-table`` names it. Nothing here is a guess: a shape, a density or a
number of rows that is far from all that was measured has no gain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from onnxprune.errors import ResourceError, UsageError
from onnxprune.files.atomic import atomic_write_text
from onnxprune.machine import cache_dir

FORMAT = 2
# How far (a factor, in rows and columns together) a measured shape may be from the one that is asked for.
FARTHEST_SHAPE = 4.0
CUSPARSELT = "nm-tile-cusparselt"  # layout nm-tile, multiplied by cuSPARSELt
_DENSER = 0.02  # a weight may be this much denser than the densest that was measured
NO_TABLE = (
    "run onnxprune ops tune where the GPU is, and give its file with --cuda-table; or --target-runtime "
    "stock, which writes a model that runs on any provider at dense speed"
)


@dataclass(frozen=True)
class Measured:
    """One kernel, one weight, one number of rows.

    Attributes:
        layout: key in ``onnxprune.storage.device.LAYOUTS``, or ``CUSPARSELT``.
        rows: N of the weight.
        cols: K.
        density: share of nonzeros, 0 to 1.
        m: rows of X.
        ms: milliseconds of the kernel.
        dense_ms: of the dense product in float16, the faster of two layouts.
        bytes: of the weight in this layout.
        pixels: of an image, where it is a 1x1 convolution of ``m / pixels`` of them; 1 for a matrix.
    """

    layout: str
    rows: int
    cols: int
    density: float
    m: int
    ms: float
    dense_ms: float
    bytes: int
    pixels: int = 1

    @property
    def gain(self) -> float:
        """How many times faster than dense."""
        return self.dense_ms / self.ms


@dataclass(frozen=True)
class DeviceTable:
    """All that was measured on one GPU.

    Attributes:
        gpu: its name.
        about: versions of driver, compiler and cuBLAS, for people.
        bandwidth: GB/s of a copy within its memory.
        entries: the measurements.
    """

    gpu: str
    about: str
    bandwidth: float
    entries: tuple[Measured, ...]

    def gain(
        self, layout: str, rows: int, cols: int, density: float, m: int, pixels: int = 1
    ) -> float | None:
        """Return how many times faster than dense a product is to be expected, None where nothing tells.

        Of the measured shapes the nearest counts, of the numbers of rows the next one up; between two
        densities the times are interpolated, below the lowest its time counts. Of images the nearest in size
        counts whose channels do not lie better in memory (multiples of 8, 4 or 2 pixels).
        """
        own = [entry for entry in self.entries if entry.layout == layout]
        if pixels == 1:
            own = [entry for entry in own if entry.pixels == 1]
        else:
            own = [e for e in own if e.pixels > 1 and math.gcd(e.pixels, 8) <= math.gcd(pixels, 8)]
            size = min((e.pixels for e in own), key=lambda p: abs(math.log(p / pixels)), default=0)
            own = [entry for entry in own if entry.pixels == size]
        m_up = min((entry.m for entry in own if entry.m >= m), default=None)
        if m_up is None:
            return None
        own = [entry for entry in own if entry.m == m_up]
        nearest = min(own, key=lambda e: (_distance(e, rows, cols), e.rows, e.cols), default=None)
        if nearest is None or _distance(nearest, rows, cols) > math.log(FARTHEST_SHAPE):
            return None
        points = sorted(
            (e.density, e.ms / e.dense_ms) for e in own if (e.rows, e.cols) == (nearest.rows, nearest.cols)
        )
        if density > points[-1][0] + _DENSER:
            return None
        return 1 / _interpolated(points, density)

    def overtaken(self, one: str, other: str, rows: int, cols: int, density: float) -> int | None:
        """Return from how many rows of X on ``other`` is faster than ``one``, wherever both were measured.

        0: it never is. None: nothing tells.
        """
        counts = {e.m for e in self.entries if e.layout == one and e.pixels == 1} & {
            e.m for e in self.entries if e.layout == other
        }
        found = None
        for m in sorted(counts, reverse=True):
            gains = [self.gain(layout, rows, cols, density, m) for layout in (one, other)]
            if gains[0] is None or gains[1] is None:
                continue
            if gains[0] >= gains[1]:
                return found or 0
            found = m
        return found

    def save(self, path: Path) -> None:
        """Write the table, in place of what was there."""
        document = {
            **asdict(self),
            "format": FORMAT,
            "entries": [list(asdict(e).values()) for e in self.entries],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(document, indent=0) + "\n", force=True)


def _distance(entry: Measured, rows: int, cols: int) -> float:
    return abs(math.log(entry.rows / rows)) + abs(math.log(entry.cols / cols))


def _interpolated(points: Iterable[tuple[float, float]], x: float) -> float:
    """Return y at ``x``; points are sorted, beyond them the nearest counts."""
    left: tuple[float, float] | None = None
    for right in points:
        if x <= right[0]:
            if left is None:
                return right[1]
            share = (x - left[0]) / (right[0] - left[0])
            return left[1] + share * (right[1] - left[1])
        left = right
    assert left is not None
    return left[1]


def table_folder() -> Path:
    """Where ``ops tune`` puts its tables."""
    return cache_dir() / "cuda"


def table_path(gpu: str) -> Path:
    """Path of the table of a GPU."""
    return table_folder() / f"{''.join(c if c.isalnum() else '-' for c in gpu)}.json"


def read_table(path: Path) -> DeviceTable:
    """Read a table.

    Raises:
        UsageError: when the file is none, or of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf8"))
        if document.pop("format") != FORMAT:
            raise UsageError(f"{path} is a table of another version", "measure again: onnxprune ops tune")
        entries = tuple(Measured(*item) for item in document.pop("entries"))
        table = DeviceTable(entries=entries, **document)
        sound = all(
            e.ms > 0 and e.dense_ms > 0 and min(e.m, e.pixels) > 0 and e.rows > 0 and e.cols > 0
            for e in entries
        )
    except OSError as error:
        raise UsageError(f"cannot read the table {path}: {error}", NO_TABLE) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} is no table of onnxprune ops tune", NO_TABLE) from error
    if not sound or not entries:
        raise UsageError(f"{path} holds no measurements", NO_TABLE)
    return table


def find_table(named: str | None) -> DeviceTable:
    """Return the table that was named, else the only one in the user's cache.

    Raises:
        UsageError: when the named one cannot be read, or there are several.
        ResourceError: when there is none.
    """
    if named is not None:
        return read_table(Path(named))
    found = sorted(table_folder().glob("*.json"))
    if not found:
        raise ResourceError("--target-runtime cuda: nothing was measured on a GPU yet", NO_TABLE)
    if len(found) > 1:
        names = ", ".join(path.stem for path in found)
        raise UsageError(f"there are tables of several GPUs: {names}", f"--cuda-table {found[0]}")
    return read_table(found[0])

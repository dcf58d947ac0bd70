from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.errors import ResourceError, UsageError
from onnxprune.kernels.devicetable import DeviceTable, Measured, find_table, read_table, table_path


def entry(density: float, gain: float, m: int = 8, shape: tuple[int, int] = (1024, 1024)) -> Measured:
    return Measured("bitmap-tile", *shape, density, m, 1.0, gain, 100)


TABLE = DeviceTable(
    "A GPU",
    "driver 1",
    3000.0,
    (entry(0.5, 1.0), entry(0.25, 2.0), entry(0.25, 4.0, m=1), entry(0.5, 1.0, 1)),
)


def test_gain_of_what_was_measured() -> None:
    assert TABLE.gain("bitmap-tile", 1024, 1024, 0.25, 8) == 2.0
    assert TABLE.gain("bitmap-tile", 1024, 1024, 0.25, 1) == 4.0


def test_times_are_interpolated_between_densities() -> None:
    middle = TABLE.gain("bitmap-tile", 1024, 1024, 0.375, 8)
    assert middle == pytest.approx(1 / 0.75)
    assert TABLE.gain("bitmap-tile", 1024, 1024, 0.1, 8) == 2.0
    assert TABLE.gain("bitmap-tile", 1024, 1024, 0.51, 8) == 1.0
    assert TABLE.gain("bitmap-tile", 1024, 1024, 0.6, 8) is None


def test_the_next_number_of_rows_up_counts() -> None:
    assert TABLE.gain("bitmap-tile", 1024, 1024, 0.25, 2) == 2.0
    assert TABLE.gain("bitmap-tile", 1024, 1024, 0.25, 9) is None


def test_the_nearest_shape_counts_unless_it_is_far() -> None:
    two = DeviceTable("g", "", 1.0, (*TABLE.entries, entry(0.25, 3.0, shape=(4096, 4096))))
    assert two.gain("bitmap-tile", 1000, 1500, 0.25, 8) == 2.0
    assert two.gain("bitmap-tile", 3000, 3000, 0.25, 8) == 3.0
    assert two.gain("bitmap-tile", 64, 1024, 0.25, 8) is None
    assert two.gain("delta", 1024, 1024, 0.25, 8) is None


def test_images_are_compared_with_images() -> None:
    def image(pixels: int, gain: float) -> Measured:
        return Measured("bitmap-tile", 1024, 1024, 0.25, 8 * pixels, 1.0, gain, 100, pixels)

    table = DeviceTable(
        "g", "", 1.0, (entry(0.25, 9.0, 10000), image(49, 1.1), image(196, 1.5), image(784, 2.0))
    )

    def gain(m: int, pixels: int) -> float | None:
        return table.gain("bitmap-tile", 1024, 1024, 0.25, m, pixels)

    assert gain(800, 1) == 9.0  # a matrix
    assert gain(3136, 3136) == gain(784, 784) == 2.0
    assert gain(100, 100) == 1.5  # channels begin at every fourth element
    assert gain(961, 961) is None and gain(392, 961) == 1.1  # 31x31, at any: only 7x7 lies as badly
    assert gain(9 * 784, 784) is None  # more rows than were measured
    assert DeviceTable("g", "", 1.0, (entry(0.25, 9.0),)).gain("bitmap-tile", 1024, 1024, 0.25, 8, 49) is None


def test_saved_and_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.json"
    TABLE.save(path)
    assert read_table(path) == TABLE
    assert find_table(str(path)) == TABLE


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 9}', '{"format": 2, "entries": [[1]]}',
     '{"format": 2, "entries": [], "gpu": "g", "about": "", "bandwidth": 1}',
     '{"format": 2, "entries": [["delta", 8, 8, 0.5, 1, 0, 1, 1]], "gpu": "g", "about": "", "bandwidth": 1}'],
)  # fmt: skip
def test_broken(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"table"):
        read_table(path)


def test_which_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ResourceError, match="nothing was measured") as caught:
        find_table(None)
    assert "ops tune" in caught.value.hint and "stock" in caught.value.hint
    with pytest.raises(UsageError, match="cannot read"):
        find_table(str(tmp_path / "none.json"))
    TABLE.save(table_path("One GPU"))
    assert find_table(None) == TABLE
    TABLE.save(table_path("Other/GPU"))
    with pytest.raises(UsageError, match="One-GPU, Other-GPU"):
        find_table(None)


def test_where_one_overtakes_another() -> None:
    def table(**ms: dict[int, float]) -> DeviceTable:
        entries = [
            Measured(name, 1024, 1024, 0.5, m, each, 1.0, 1) for name in ms for m, each in ms[name].items()
        ]
        return DeviceTable("A GPU", "", 1.0, tuple(entries))

    shape = (1024, 1024, 0.5)
    found = table(own={64: 1, 512: 4, 2048: 20, 8192: 90}, library={512: 5, 2048: 15, 8192: 40})
    assert found.overtaken("own", "library", *shape) == 2048
    assert found.overtaken("library", "own", *shape) == 0
    assert table(own={8: 1}, library={512: 1}).overtaken("own", "library", *shape) is None
    assert found.overtaken("own", "library", 16, 16, 0.5) is None  # nothing like it was measured
    assert (
        table(own={8: 2, 64: 1, 512: 2}, library={8: 1, 64: 2, 512: 1}).overtaken("own", "library", *shape)
        == 512
    )

"""What is known of a search comes back as it was measured; anything else in its place is measured again."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.calibration.data import from_iterable
from onnxprune.model import Model
from onnxprune.recipe import Recipe
from onnxprune.search.known import Known, LostError, key_of

TEXT = "g (float[N, 4] x) => (float[N, 3] y) { y = MatMul(x, w) }"
W = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "onnxprune"


def never() -> Any:
    raise AssertionError("measured again")


class TestKey:
    @pytest.fixture
    def key(self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path) -> Callable[..., str]:
        (tmp_path / "ev.py").write_text("def f(session):\n    return 1.0\n")
        recipe = Recipe(eval=f"{tmp_path}/ev.py:f", max_drop="1%", data="here.npz")

        def make(*, weight: np.ndarray = W, shift: float = 0.0, metric: float = 90.0, **options: Any) -> str:
            model = Model(build_model(TEXT, {"w": weight}))
            data = from_iterable(model, {"x": np.eye(4, dtype=np.float32) + shift}, Recipe())
            return key_of(model, dataclasses.replace(recipe, **options), [data], [metric, None])

        return make

    def test_what_changes_it(self, key: Callable[..., str], tmp_path: Path) -> None:
        others = [
            {"weight": W + 1},
            {"shift": 1.0},
            {"metric": 90.1},
            {"seed": 1},
            {"criterion": "wanda"},
            {"finetune": True},
            {"threads": 7},
        ]
        keys = {key(), *(key(**other) for other in others)}
        assert len(keys) == 1 + len(others)
        (tmp_path / "ev.py").write_text("def f(session):\n    return 2.0\n")
        assert key() not in keys

    def test_what_does_not(self, key: Callable[..., str], tmp_path: Path) -> None:
        floors = {"max_drop": "2pp", "min_agreement": 0.5, "patience": 3, "time_limit": 1.0}
        same = {"data": "there.npz", "target_runtime": "stock", "cache": False, "metric": 90.0 + 1e-9}
        assert key(**floors) == key(**same) == key()
        (tmp_path / "other").mkdir()
        (tmp_path / "ev.py").rename(tmp_path / "other" / "ev.py")
        assert key(eval=f"{tmp_path}/other/ev.py:f") != ""
        first = key(eval=f"{tmp_path}/other/ev.py:f")
        (tmp_path / "other" / "ev.py").rename(tmp_path / "ev.py")
        assert first == key()

    def test_a_loss_of_ones_own(self, key: Callable[..., str], tmp_path: Path) -> None:
        (tmp_path / "loss.py").write_text("def f(student, teacher, inputs):\n    return 1.0\n")
        own = {"finetune": True, "loss": f"{tmp_path}/loss.py:f"}
        first = key(**own)
        (tmp_path / "loss.py").write_text("def f(student, teacher, inputs):\n    return 2.0\n")
        assert key(**own) != first != key(finetune=True, loss="kl")


class TestTable:
    def test_measured_once(self) -> None:
        known = Known("k")
        value = {"a": (1, 2.5), "b": [math.nan, None, True], "c": np.float32(0.5)}
        first = known("0.70", lambda: value)
        assert first["a"] == [1, 2.5] and math.isnan(first["b"][0]) and first["c"] == 0.5
        assert known("0.70", never) is first and known.measured == 1
        again = Known("k")
        assert repr(again("0.70", never)) == repr(first) and again.measured == 0 and again.note == ""
        assert Known("other")("0.70", lambda: 3) == 3

    def test_nothing_is_kept_without_a_key(self, cache: Path) -> None:
        known = Known(None)
        assert known("a", lambda: 1) == 1 and known("a", never) == 1
        assert Known(None)("a", lambda: 2) == 2
        assert not cache.exists()

    def test_errors_are_not_kept(self) -> None:
        known = Known("k")
        with pytest.raises(AssertionError, match="measured again"):
            known("a", never)
        assert known("a", lambda: 1) == 1

    @pytest.mark.parametrize(
        "damage",
        [
            lambda text: b"",
            lambda text: b"\xff\xfe\x00",
            lambda text: b"[]",
            lambda text: b'{"table": {"a": 2}}',
            lambda text: b'{"table": {"a": 2}, "digest": ""}',
            lambda text: text[: len(text) // 2],
            lambda text: text.replace(b"1.5", b"1.6"),
        ],
    )
    def test_damaged(self, cache: Path, damage: Callable[[bytes], bytes]) -> None:
        Known("k")("a", lambda: 1.5)
        path = cache / "search" / "k.json"
        path.write_bytes(damage(path.read_bytes()))
        known = Known("k")
        assert str(path) in known.note and "measured again" in known.note
        assert known("a", lambda: 3) == 3
        assert Known("k").note == "" and Known("k")("a", never) == 3  # in place of what was damaged

    def test_of_another_search(self, cache: Path) -> None:
        Known("k")("a", lambda: 1)
        (cache / "search" / "k.json").rename(cache / "search" / "m.json")
        assert "no cache of a search" in Known("m").note

    def test_a_cache_that_cannot_be_used_is_no_error(self, cache: Path) -> None:
        (cache / "search" / "k.json").mkdir(parents=True)
        known = Known("k")
        assert "cannot be read" in known.note and known("a", lambda: 1) == 1
        assert [path.name for path in (cache / "search").iterdir()] == ["k.json"]

    def test_forget(self) -> None:
        known = Known("k")
        for name in ("0.7", "0.7 short", "0.7 short final", "0.7 shorter"):
            known(name, lambda: 1)
        known.forget("0.7 short")
        for found in (known, Known("k")):
            assert found("0.7", never) == found("0.7 shorter", never) == 1
            assert found("0.7 short", lambda: 2) == found("0.7 short final", lambda: 2) == 2

    def test_it_can_be_read_by_people(self, cache: Path) -> None:
        Known("k")("0.7 final", lambda: [79.5, None])
        document = json.loads((cache / "search" / "k.json").read_text())
        assert document["table"] == {"0.7 final": [79.5, None]}


class TestWeights:
    @pytest.fixture
    def base(self, build_model: Callable[..., onnx.ModelProto]) -> Model:
        return Model(build_model(TEXT, {"w": W}))

    def train(self, base: Model) -> tuple[Model, Any]:
        trained = base.copy()
        trained.set_array("w", np.sqrt(W))
        return trained, {"steps": 5, "curve": [(1, 0.5)]}

    def test_come_back(self, base: Model) -> None:
        first, found = Known("k").weights("0.7 short", base, lambda: self.train(base))
        again, known = Known("k").weights("0.7 short", base, never)
        assert found == known == {"steps": 5, "curve": [[1, 0.5]]} == Known("k").found("0.7 short")
        assert np.array_equal(first.array("w"), np.sqrt(W)) and np.array_equal(again.array("w"), np.sqrt(W))
        assert Known("k").found("0.7") is None

    @pytest.mark.parametrize("how", ["dropped", "damaged", "replaced"])
    def test_lost(self, base: Model, cache: Path, how: str) -> None:
        Known("k").weights("0.7 short", base, lambda: self.train(base))
        (path,) = (cache / "arrays").iterdir()
        if how == "dropped":
            Known("k").drop_weights("0.7 short")
        elif how == "damaged":
            path.write_bytes(path.read_bytes()[:-1])
        else:
            np.savez(path, names=np.array([], np.str_))
        known = Known("k")
        with pytest.raises(LostError) as caught:
            known.weights("0.7 short", base, never)
        known.forget(caught.value.name)
        model, _ = known.weights("0.7 short", base, lambda: self.train(base))
        assert np.array_equal(model.array("w"), np.sqrt(W))

    def test_without_a_key(self, base: Model, cache: Path) -> None:
        model, found = Known(None).weights("0.7 short", base, lambda: self.train(base))
        assert np.array_equal(model.array("w"), np.sqrt(W)) and found["steps"] == 5
        assert not cache.exists()

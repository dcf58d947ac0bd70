"""Two models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.calibration.data import load_data
from onnxprune.compare import Comparison, OpCount, WeightZeros, compare, tensor_bytes
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.model import Model
from onnxprune.recipe import Recipe

RNG = np.random.default_rng(0)
W1 = RNG.normal(size=(16, 32)).astype(np.float32)
W2 = RNG.normal(size=(32, 5)).astype(np.float32)
TEXT = "g (float[N, 16] x) => (float[N, 5] logits) {{ h = MatMul(x, w1) r = {}(h) logits = MatMul(r, w2) }}"
DATA = {"x": RNG.normal(size=(96, 16)).astype(np.float32)}


@pytest.fixture
def save(build_model, tmp_path: Path):
    """Write the two-layer model, its weights and activation to taste, and return the path."""

    def write(
        name: str, w1: np.ndarray = W1, w2: np.ndarray = W2, op: str = "Relu", **weights: np.ndarray
    ) -> Path:
        path = tmp_path / name
        onnx.save(build_model(TEXT.format(op), {"w1": w1, "w2": w2, **weights}), path)
        return path

    return write


def pruned(share: float) -> np.ndarray:
    return np.where(np.abs(W1) > np.quantile(np.abs(W1), share), W1, 0)


def test_a_model_against_itself(save) -> None:
    path = save("a.onnx")
    found = compare(path, path, [DATA])
    assert found.agrees and found.verdict == "ok" and found.differences == () and found.ops == ()
    assert found.file_bytes == (path.stat().st_size,) * 2
    assert found.tensor_bytes == (W1.nbytes + W2.nbytes,) * 2
    assert found.sparsity == (0, 0)
    (item,) = found.agreements
    assert (item.rows, item.top1, item.kl, item.relative_error) == (96, 1, 0, 0)


def test_zeros_are_counted_per_weight(save) -> None:
    found = compare(save("a.onnx"), save("b.onnx", w1=pruned(0.25)), [DATA])
    assert found.weights == (WeightZeros("w1", (16, 32), 512, 0, 128),), "w2 is below min_size"
    assert found.sparsity == (0, 0.25)
    assert 0 < found.agreements[0].kl < 5
    assert found.agrees


def test_min_size_and_missing_weights(save) -> None:
    extra = np.zeros((4, 4), np.float32)
    found = compare(save("a.onnx"), save("b.onnx", extra=extra), [DATA], Recipe(min_size=1))
    assert [(w.name, w.first, w.second) for w in found.weights] == [
        ("w1", 0, 0),
        ("w2", 0, 0),
        ("extra", None, 16),
    ]
    assert found.sparsity == (0, 16 / (512 + 160 + 16))


def test_broken_model_does_not_agree(save) -> None:
    found = compare(save("a.onnx"), save("b.onnx", w2=-W2), [DATA])
    assert found.verdict == "broken" and not found.agrees and found.differences == ()
    assert "PROBABLY BROKEN" in found.verdict_text


def test_ops_that_differ(save) -> None:
    found = compare(save("a.onnx"), save("b.onnx", op="Tanh"), [DATA])
    assert found.ops == (OpCount("Relu", 1, 0), OpCount("Tanh", 0, 1))


def test_ops_of_subgraphs_and_domains(build_model) -> None:
    text = """g (float[N, 4] x, bool c) => (float[N, 4] y) {
        y = If (c) <then_branch = t () => (float[N, 4] a) { a = Relu(x) },
                    else_branch = e () => (float[N, 4] b) { n = Neg(x) b = Relu(n) }> }"""
    first, second = (Model(build_model(text)) for _ in range(2))
    second.graph.node[0].attribute[0].g.node[0].op_type = "Abs"
    feed = {"x": np.ones((2, 4), np.float32), "c": np.array(False)}
    assert compare(first, second, [feed]).ops == (OpCount("Abs", 0, 1), OpCount("Relu", 2, 1))


def test_interface_differences_spoil_the_agreement(save, build_model, tmp_path: Path) -> None:
    text = TEXT.format("Relu").replace("N, 5", "M, 5")
    onnx.save(build_model(text, {"w1": W1, "w2": W2}), tmp_path / "b.onnx")
    found = compare(save("a.onnx"), tmp_path / "b.onnx", [DATA])
    assert found.verdict == "ok" and not found.agrees
    assert found.differences == ("output 'logits' was FLOAT[N,5], is FLOAT[M,5]",)


def test_models_that_want_other_inputs(save, build_model, tmp_path: Path) -> None:
    other = build_model("g (float[N, 3] z) => (float[N, 3] logits) { logits = Relu(z) }")
    onnx.save(other, tmp_path / "b.onnx")
    found = compare(save("a.onnx"), tmp_path / "b.onnx", [DATA])
    assert not found.agrees and found.verdict == "broken" and found.agreements == ()
    assert "different inputs" in found.verdict_text and "'z'" in found.verdict_text
    assert "input 'x' is missing" in found.differences


def test_data_that_fits_neither_is_the_users_to_know(save) -> None:
    with pytest.raises(DataError):
        compare(save("a.onnx"), save("b.onnx"), [{"x": np.ones((2, 7), np.float32)}])


def test_without_data_the_inputs_are_synthetic(save) -> None:
    path = save("a.onnx")
    found = compare(path, path, recipe=Recipe(samples=20))
    assert found.synthetic and "synthetic" in found.data
    assert found.agreements[0].rows == 20


def test_data_from_a_file_and_loaded(save, tmp_path: Path) -> None:
    path = save("a.onnx")
    np.savez(tmp_path / "data.npz", **DATA)
    recipe = Recipe(data=str(tmp_path / "data.npz"), samples=10)
    found = compare(path, path, recipe=recipe)
    assert not found.synthetic and "data.npz" in found.data and found.agreements[0].rows == 10
    loaded = load_data(Model(onnx.load(path)), recipe)
    assert compare(path, path, loaded).agreements == found.agreements


def test_eval(save, tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text(
        "import numpy as np\n"
        "def score(session):\n"
        "    x = np.ones((1, 16), np.float32)\n"
        "    return session.run(None, {session.get_inputs()[0].name: x})[0].sum()\n"
    )
    first, second = save("a.onnx"), save("b.onnx", w2=2 * W2)
    found = compare(first, second, [DATA], Recipe(eval=f"{script}:score"))
    assert found.metric == f"{script}:score"
    assert found.metric_values is not None
    assert found.metric_values[1] == pytest.approx(2 * found.metric_values[0])


def test_wrong_eval_fails_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--eval"):
        compare(tmp_path / "missing.onnx", tmp_path / "missing.onnx", recipe=Recipe(eval="nothing.py:score"))


def test_external_data_counts_as_file(save, tmp_path: Path) -> None:
    inline = save("a.onnx")
    model = onnx.load(inline)
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "b.onnx"
    onnx.save(model, path, save_as_external_data=True, location="b.data", size_threshold=0)
    found = compare(inline, path, [DATA])
    assert found.file_bytes[1] == path.stat().st_size + (tmp_path / "sub" / "b.data").stat().st_size
    assert found.tensor_bytes[0] == found.tensor_bytes[1]
    assert found.agrees


def test_models_in_memory(save) -> None:
    model = Model(onnx.load(save("a.onnx")))
    found = compare(model, model.copy(), [DATA])
    assert found.agrees and found.file_bytes[0] == model.proto.ByteSize()


def test_tensor_bytes_everywhere(build_model) -> None:
    text = """g (float[2] x) => (float[2] y) {
        c = Constant<value = float[2] {1, 2}>()
        y = Add(x, c) }"""
    model = Model(build_model(text, {"unused": np.zeros((3, 3), np.float16)}))
    assert tensor_bytes(model) == 8 + 18


def test_file_that_is_no_model(save, tmp_path: Path) -> None:
    (tmp_path / "b.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"b\.onnx"):
        compare(save("a.onnx"), tmp_path / "b.onnx", [DATA])


def test_json(save) -> None:
    found = compare(save("a.onnx"), save("b.onnx", w1=pruned(0.5)), [DATA])
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["schema_version"] == 1 and document["agrees"] is found.agrees
    assert document["sparsity"] == [0, 0.5]
    assert document["agreements"][0]["kind"]["family"] == "logits"
    assert document["weights"][0]["shape"] == [16, 32]


def test_same_data_same_figures(save) -> None:
    paths = save("a.onnx"), save("b.onnx", w1=pruned(0.5))
    runs = [compare(*paths, recipe=Recipe(seed=1, threads=1)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_progress_is_told(save) -> None:
    class Watch:
        def __init__(self) -> None:
            self.steps: dict[str, int] = {}
            self.name = ""

        def stage(self, name: str, total: int | None = None) -> None:
            self.name = name
            self.steps[name] = 0

        def advance(self, steps: int = 1) -> None:
            self.steps[self.name] += steps

        def note(self, text: str) -> None: ...

    watch = Watch()
    path = save("a.onnx")
    compare(path, path, [DATA], Recipe(batch_size=32), progress=watch)
    assert watch.steps == {"loading": 0, "comparing": 3}


def test_agrees_needs_both() -> None:
    base = Comparison(("a", "b"), (1, 1), (1, 1), (), (), (), (), "degraded", "")
    assert base.agrees
    assert not Comparison(("a", "b"), (1, 1), (1, 1), (), ("input",), (), (), "ok", "").agrees
    assert base.sparsity == (None, None)

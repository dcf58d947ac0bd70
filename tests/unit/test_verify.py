"""A file that is not what was planned must not get its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import runtime
from onnxprune.calibration.data import CalibrationData, from_iterable
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.io import save
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.passes.pack import pack
from onnxprune.recipe import Recipe
from onnxprune.solvers.patterns import Pattern
from onnxprune.verify import Expected, verify_file

TEXT = """g (float[N, 16] x) => (float[N, 8] y) {
    a = MatMul(x, w1)  h = Add(a, b1)  r = Relu(h)  y = MatMul(r, w2) }"""


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


@pytest.fixture
def expected(build_model: Callable[..., onnx.ModelProto]) -> Expected:
    dense = Model(build_model(TEXT, {"w1": noise(16, 24), "b1": noise(24), "w2": noise(24, 8)}))
    layers, _ = find_layers(dense, min_size=64)
    pruned, zeros = dense.copy(), {}
    for layer in layers:
        array = pruned.array(layer.name).copy()
        array[np.abs(array) < 0.8] = 0
        pruned.set_array(layer.name, array)
        zeros[layer.name] = array.size - int(np.count_nonzero(array))
    return Expected(dense, pruned, layers, zeros, {}, False)


@pytest.fixture
def data(expected: Expected) -> CalibrationData:
    return from_iterable(expected.dense, noise(12, 16), Recipe())


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out.onnx"


def written(expected: Expected, values: str = "same") -> Model:
    final = expected.pruned.copy()
    pack(final, list(expected.zeros), values=values)
    return final


def publish(model: Model, target: Path, expected: Expected, data: CalibrationData) -> None:
    """Save with the check, as the pipeline does."""

    def check(path: Path) -> None:
        verify_file(path, expected, data, 1)

    save(model, target, check=check)


def assert_refused(model: Model, target: Path, expected: Expected, data: CalibrationData, match: str) -> None:
    with pytest.raises(VerificationError, match=match) as caught:
        publish(model, target, expected, data)
    assert caught.value.exit_code == 1
    assert list(target.parent.iterdir()) == []  # no output, no leftovers


def test_what_was_planned_passes(expected: Expected, data: CalibrationData, target: Path) -> None:
    publish(written(expected), target, expected, data)
    session = verify_file(target, expected, data, 1)
    assert [item.name for item in session.get_outputs()] == ["y"]


def test_plain_weights_pass(expected: Expected, data: CalibrationData, target: Path) -> None:
    publish(expected.pruned, target, expected, data)
    assert target.is_file()


def test_half_precision_passes_only_when_planned(
    expected: Expected, data: CalibrationData, target: Path
) -> None:
    final = written(expected, values="fp16")
    assert_refused(final, target, expected, data, "weight 'w1' differs from the plan")
    publish(final, target, replace(expected, cast=True), data)
    assert target.is_file()


@pytest.mark.parametrize("name", ["w1", "w2"])
@pytest.mark.parametrize("packed", [True, False])
def test_one_wrong_weight(
    expected: Expected, data: CalibrationData, target: Path, name: str, packed: bool
) -> None:
    wrong = expected.pruned.copy()
    array = wrong.array(name).copy()
    place = tuple(np.argwhere(array)[5])
    array[place] = np.nextafter(array[place], np.float32(9))  # the last bit: no output would tell
    wrong.set_array(name, array)
    if packed:
        pack(wrong, [name])
    assert_refused(wrong, target, expected, data, f"weight '{name}' differs from the plan")


def test_a_weight_of_another_shape(expected: Expected, data: CalibrationData, target: Path) -> None:
    wrong = expected.pruned.copy()
    next(t for t in wrong.graph.initializer if t.name == "w2").dims[:] = [8, 24]
    with pytest.raises(OnnxPruneError):  # ONNX's own checker or ours, whichever sees it first
        publish(wrong, target, expected, data)
    assert list(target.parent.iterdir()) == []


def test_missing_zeros(expected: Expected, data: CalibrationData, target: Path) -> None:
    """The plan promised more zeros than the solver made: file and pruned model agree, both are wrong."""
    more = replace(expected, zeros={**expected.zeros, "w2": expected.zeros["w2"] + 1})
    zeros = expected.zeros["w2"]
    match = f"'w2' has {zeros} zeros in the file, .* {zeros + 1}"
    assert_refused(written(expected), target, more, data, match)


def test_more_zeros_than_planned_are_fine(expected: Expected, data: CalibrationData, target: Path) -> None:
    publish(written(expected), target, replace(expected, zeros=dict.fromkeys(expected.zeros, 0)), data)
    assert target.is_file()


@pytest.mark.parametrize("change", ["input", "output", "shape", "metadata", "opset"])
def test_another_interface(expected: Expected, data: CalibrationData, target: Path, change: str) -> None:
    wrong = expected.pruned.copy()
    graph = wrong.proto.graph
    if change == "input":
        graph.input[0].name = graph.node[0].input[0] = "z"
    elif change == "output":
        graph.output[0].name = graph.node[-1].output[0] = "z"
    elif change == "shape":
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 12
    elif change == "metadata":
        wrong.proto.metadata_props.add(key="author", value="someone")
    else:
        wrong.proto.opset_import[0].version = 18
    wrong.reindex()
    assert_refused(wrong, target, expected, data, "the written model has another interface: ")


def test_a_file_that_the_checker_refuses(expected: Expected, data: CalibrationData, target: Path) -> None:
    wrong = expected.pruned.copy()
    wrong.graph.node[2].attribute.append(onnx.helper.make_attribute("no_such_attribute", 1))
    assert_refused(wrong, target, expected, data, "does not pass the ONNX checker")


@pytest.mark.parametrize("change", ["bias", "operator"])
def test_another_computation(expected: Expected, data: CalibrationData, target: Path, change: str) -> None:
    """Every pruned weight is right, yet the outputs are not."""
    wrong = expected.pruned.copy()
    if change == "bias":
        wrong.set_array("b1", wrong.array("b1") + np.float32(0.1))
    else:
        wrong.graph.node[2].op_type = "Abs"
    assert_refused(
        wrong, target, expected, data, "output 'y' of the written model is off by .*, wanted at most"
    )


def test_nan_where_there_was_none(expected: Expected, data: CalibrationData, target: Path) -> None:
    wrong = expected.pruned.copy()
    bias = wrong.array("b1").copy()
    bias[0] = np.nan
    wrong.set_array("b1", bias)
    wrong.graph.node[2].op_type = "Abs"  # Relu may swallow NaN
    with pytest.raises(VerificationError, match="output 'y'"):
        publish(wrong, target, expected, data)


def test_outputs_of_another_shape(expected: Expected, data: CalibrationData, target: Path) -> None:
    """The interface says float[N, 8] of both; the file gives every row twice."""
    wrong = expected.pruned.copy()
    wrong.graph.node[-1].output[0] = "once"
    wrong.graph.node.append(onnx.helper.make_node("Concat", ["once", "once"], ["y"], axis=0))
    wrong.reindex()
    assert_refused(wrong, target, expected, data, "output 'y'")


def on_kernels(expected: Expected) -> Model:
    """Return the written model with every node that a kernel can run switched to it."""
    from onnxprune.passes.shapes import Shapes, infer
    from onnxprune.passes.sparse_ops import find_chains, longest, rewrite

    final, shapes = written(expected), Shapes(infer(expected.pruned))
    chains = longest(find_chains(final, shapes)[0])
    assert chains
    rewrite(final, chains, shapes)
    return final


class TestKernels:
    """A file with ops that have a kernel is run with them and without."""

    @pytest.fixture
    def switched(self, expected: Expected) -> Model:
        return on_kernels(expected)

    @pytest.fixture
    def kernels(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[bool | None]]:
        """Return ``use(factor, more)``: sessions with kernels give ``factor`` times the right output."""
        real, asked = runtime.session, list[bool | None]()

        def use(factor: float, more: float = 0.0) -> list[bool | None]:
            def session(model: Any, **options: Any) -> Any:
                wanted = options.pop("kernels", None)
                asked.append(wanted)
                made = real(model, **options, kernels=False)
                ours = isinstance(model, Path) and wanted is None
                return Scaled(made, factor, more) if ours else made

            monkeypatch.setattr(runtime, "session", session)
            monkeypatch.setattr("onnxprune.ops.library_path", lambda: Path("library.so"))
            return asked

        return use

    def test_equal_results_pass(
        self, switched: Model, expected: Expected, data: CalibrationData, target: Path, kernels: Any
    ) -> None:
        asked = kernels(1.0)
        publish(switched, target, expected, data)
        assert target.is_file() and False in asked

    def test_a_kernel_that_is_off(
        self, switched: Model, expected: Expected, data: CalibrationData, target: Path, kernels: Any
    ) -> None:
        kernels(1.0002)
        assert_refused(switched, target, expected, data, "output 'y' .* with the kernels, wanted at most")

    def test_rounding_is_none(
        self, switched: Model, expected: Expected, data: CalibrationData, target: Path, kernels: Any
    ) -> None:
        kernels(1.000003)
        publish(switched, target, expected, data)
        assert target.is_file()

    def test_rounding_is_measured_by_the_largest_of_all_samples(
        self, switched: Model, expected: Expected, target: Path, kernels: Any
    ) -> None:
        rows = noise(12, 16) * np.logspace(-2, 2, 12, dtype=np.float32)[:, None]
        data = from_iterable(expected.dense, rows, Recipe(batch_size=1))
        (found,) = runtime.session(expected.pruned.to_bytes()).run(None, {"x": rows})
        largest = np.abs(found).max()
        kernels(1.0, 5e-6 * largest)  # of the smallest sample's outputs that is far more than rounding
        assert 5e-6 * largest > 1e-4 * np.abs(found).max(axis=1).min()
        publish(switched, target, expected, data)
        kernels(1.0, 2e-3 * largest)
        other = target.parent / "other"
        other.mkdir()
        assert_refused(switched, other / "out.onnx", expected, data, "output 'y' .* with the kernels")

    def test_rounding_of_weights_that_are_not_pruned(
        self, build_model: Callable[..., onnx.ModelProto], data: CalibrationData, target: Path, kernels: Any
    ) -> None:
        """Dense convolutions run on kernels as well, and what follows may make much of their rounding."""
        text = """g (float[N, 16] x) => (float[N, 8] y) {
            a = MatMul(x, w1)  b = Add(a, big)  r = Sub(b, big)  y = MatMul(r, w2) }"""
        weights = {"w1": noise(16, 24), "w2": noise(24, 8), "big": np.full(24, 1000, np.float32)}
        dense = Model(build_model(text, weights))
        layers, _ = find_layers(dense, include=["w2"], min_size=64)
        pruned = dense.copy()
        pruned.set_array("w2", np.where(np.abs(weights["w2"]) < 0.8, 0, weights["w2"]))
        lossy = Expected(dense, pruned, layers, {"w2": 0}, {}, False)
        (found,) = runtime.session(dense.to_bytes()).run(None, {"x": noise(12, 16)})
        final = on_kernels(lossy)
        kernels(1.0, 3e-5 * np.abs(found).max())
        publish(final, target, lossy, data)
        kernels(1.0, 5e-4 * np.abs(found).max())
        other = target.parent / "other"
        other.mkdir()
        assert_refused(final, other / "out.onnx", lossy, data, "output 'y' .* with the kernels")

    def test_without_the_library_it_is_run_once(
        self, switched: Model, expected: Expected, data: CalibrationData, target: Path, kernels: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        asked = kernels(1.0)
        monkeypatch.setattr("onnxprune.ops.library_path", lambda: None)
        publish(switched, target, expected, data)
        assert False not in asked


class Scaled:
    """A session whose outputs are all off by a factor and an amount."""

    def __init__(self, session: Any, factor: float, more: float) -> None:
        self.session, self.factor, self.more = session, np.float32(factor), np.float32(more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, *arguments: Any) -> Any:
        return [output * self.factor + self.more for output in self.session.run(*arguments)]


def test_blocks_that_are_broken(expected: Expected, data: CalibrationData, target: Path) -> None:
    """The zeros of these weights lie anywhere."""
    blocks = replace(expected, patterns={"w1": Pattern.parse("block:4x1")})
    with pytest.raises(VerificationError, match="zeros of weight 'w1' do not have the pattern block:4x1"):
        publish(written(blocks), target, blocks, data)
    assert not target.exists()


def test_blocks_of_free_rows(expected: Expected, data: CalibrationData, target: Path) -> None:
    pattern = Pattern.parse("block:4x1")
    array = expected.pruned.array("w1").copy()
    array[:] = noise(16, 24)
    mask = pattern.keep(np.abs(array.T)[None], 192)[0].T
    assert not pattern.adjacent.holds(mask.T[None])
    expected.pruned.set_array("w1", array * mask)
    blocks = replace(expected, zeros=dict(expected.zeros) | {"w1": 192}, patterns={"w1": pattern})
    publish(written(blocks), target, blocks, data)
    assert target.exists()

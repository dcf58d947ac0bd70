"""The main job through the command line: the samples, and models of every make that we must carry."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.parser
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.cli import main

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "samples"
DATA = {"digits_cnn": "digits.npz", "digits_transformer": "digits_tokens.npz"}
FAST = ("--samples", "64", "--threads", "1")
QUICK = (*FAST, "--allocation", "uniform", "--solver", "sweep")

# Runs a model in plain ONNX Runtime; our package must not be needed, so it must not be there.
STOCK = """
import sys
sys.modules["onnxprune"] = None  # an import of it fails
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
with np.load(sys.argv[2]) as archive:
    feed = {i.name: archive[i.name][:64] for i in session.get_inputs()}
np.savez(sys.argv[3], **dict(zip([o.name for o in session.get_outputs()], session.run(None, feed))))
"""


class Done(NamedTuple):
    """One run: its folder, its JSON report, the model that it wrote, and what it said on stderr."""

    folder: Path
    report: dict[str, Any]
    output: Path
    warnings: str


def command(*words: str | Path, cwd: Path, status: int = 0) -> tuple[str, str]:
    """Run a command line in this process, as the console script does; return stdout and stderr."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        found = main([str(word) for word in words])
    assert found == status, errors.getvalue()
    return output.getvalue(), errors.getvalue()


def process(*words: str | Path, cwd: Path) -> tuple[str, str]:
    """Run a command line in a process of its own; return stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(autouse=True)
def process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the command line sets for its process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def prune(
    folder: Path,
    model: Path,
    *words: str | Path,
    name: str = "out.onnx",
    start: Callable[..., tuple[str, str]] = command,
) -> Done:
    output = folder / name
    document, errors = start(model, "-o", output, "--json", *words, cwd=folder)
    return Done(folder, json.loads(document), output, errors)


def dense_copy(folder: Path, path: Path) -> onnx.ModelProto:
    target = folder / f"{path.stem}.dense.onnx"
    if not target.exists():
        command("export", path, "-o", target, "--format", "dense", "-q", cwd=folder)
    return onnx.load(target)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arrays(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def zeros_of(report: Mapping[str, Any], model: onnx.ModelProto) -> dict[str, int]:
    weights = arrays(model)
    return {entry["name"]: int((weights[entry["name"]] == 0).sum()) for entry in report["layers"]}


def run_stock(model: Path, data: Path, folder: Path) -> dict[str, NDArray[Any]]:
    target = folder / "stock.npz"
    subprocess.run([sys.executable, "-c", STOCK, str(model), str(data), str(target)], check=True, cwd=folder)
    with np.load(target) as archive:
        return dict(archive)


def run(model: Path | onnx.ModelProto, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    from onnxprune import runtime

    return list(runtime.session(model, threads=1).run(None, dict(feed)))


# --- the samples at 70 %


@pytest.fixture(scope="module", params=DATA)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    shutil.copyfile(SAMPLES / f"{name}.onnx", folder / "m.onnx")
    shutil.copyfile(SAMPLES / DATA[name], folder / "x.npz")
    words = ("--sparsity", "0.7", "--data", "x.npz", "--eval", SAMPLES / "digits_eval.py:accuracy", *FAST)
    words = (*words, "--target-runtime", "stock")  # ops with a kernel: test_kernels.py
    return prune(folder, folder / "m.onnx", *words, start=process)


class TestSamples:
    def test_zeros_are_exact(self, sample: Done) -> None:
        zeros = zeros_of(sample.report, dense_copy(sample.folder, sample.output))
        assert sum(zeros.values()) == sample.report["zeros"] == round(0.7 * sample.report["weights"])
        assert zeros == {entry["name"]: entry["zeros"] for entry in sample.report["layers"]}

    def test_file_is_smaller(self, sample: Done) -> None:
        before, after = (sample.folder / "m.onnx").stat().st_size, sample.output.stat().st_size
        assert (before, after) == (sample.report["file_bytes_before"], sample.report["file_bytes_after"])
        assert after / before < 0.45

    def test_accuracy(self, sample: Done) -> None:
        assert sample.report["metric_before"] > 97
        assert sample.report["metric_after"] >= sample.report["metric_before"] - 2
        assert sample.report["verdict"] == "ok", sample.report["verdict_text"]

    def test_runs_in_plain_onnx_runtime(self, sample: Done) -> None:
        outputs = run_stock(sample.output, sample.folder / "x.npz", sample.folder)
        with np.load(sample.folder / "x.npz") as archive:
            feed = {name: archive[name][:64] for name in archive.files}
        (logits,) = run(dense_copy(sample.folder, sample.output), feed)
        np.testing.assert_allclose(outputs["logits"], logits, rtol=1e-4, atol=1e-4)
        (dense,) = run(sample.folder / "m.onnx", feed)
        assert (outputs["logits"].argmax(1) == dense.argmax(1)).mean() > 0.9

    def test_interface_is_unchanged(self, sample: Done) -> None:
        before, after = onnx.load(sample.folder / "m.onnx"), onnx.load(sample.output)
        assert list(before.graph.input) == list(after.graph.input)
        assert list(before.graph.output) == list(after.graph.output)
        assert list(before.metadata_props) == list(after.metadata_props)
        opsets = [entry for entry in after.opset_import if entry.domain != "onnxprune"]
        assert opsets == list(before.opset_import)

    def test_everything_else_is_byte_for_byte(self, sample: Done) -> None:
        before, after = onnx.load(sample.folder / "m.onnx"), dense_copy(sample.folder, sample.output)
        pruned = {entry["name"] for entry in sample.report["layers"]}
        old, new = ({t.name: t for t in m.graph.initializer} for m in (before, after))
        assert list(old) == list(new)
        changed = {name for name in old if old[name] != new[name]}
        biases = changed - pruned
        consumers = {value: node for node in before.graph.node for value in node.input if value in biases}
        assert {node.op_type for node in consumers.values()} <= {"Conv", "Gemm", "Add"}
        for name in pruned & changed:  # shape and type stay
            assert (old[name].dims, old[name].data_type) == (new[name].dims, new[name].data_type)
        for model in (before, after):
            del model.graph.initializer[:]
            model.ClearField("ir_version")  # packed weights need 8
            values = [value for value in model.graph.value_info if value.name not in pruned]
            model.graph.ClearField("value_info")  # packing drops that of the weights: it says their shape
            model.graph.value_info.extend(values)
        assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)

    def test_same_seed_same_bytes_and_input_is_untouched(self, sample: Done) -> None:
        before = digest(sample.folder / "m.onnx")
        recipe = ("--config", sample.output.with_suffix(".json"), "--no-cache")
        model = sample.folder / "m.onnx"
        again = prune(sample.folder, model, *recipe, name="again.onnx", start=process)
        assert digest(again.output) == digest(sample.output)
        assert digest(sample.folder / "m.onnx") == before
        assert before == sample.report["model_digest"].removeprefix("sha256:")

    def test_report_is_one_json_document_and_the_file(self, sample: Done) -> None:
        assert sample.report == json.loads(sample.output.with_suffix(".json").read_text())
        assert sample.warnings == ""


# --- options, on the transformer (the quicker one)


def transformer(folder: Path, *words: str | Path) -> Done:
    data = ("--data", SAMPLES / DATA["digits_transformer"])
    return prune(folder, SAMPLES / "digits_transformer.onnx", *data, *QUICK, *words)


def groups_of_four_inputs(weight: NDArray[Any]) -> NDArray[Any]:
    """(groups, 4) along the input axis of a MatMul's weight (in, out)."""
    return weight.T.reshape(-1, 4)


class TestOptions:
    def test_two_of_four(self, tmp_path: Path) -> None:
        done = transformer(tmp_path, "--pattern", "2:4")
        weights = arrays(dense_copy(tmp_path, done.output))
        assert done.report["sparsity"] == pytest.approx(0.5, abs=0.005)
        for entry in done.report["layers"]:
            if entry["kind"] == "matmul" and entry["zeros"]:
                kept = (groups_of_four_inputs(weights[entry["name"]]) != 0).sum(1)
                assert kept.max() <= 2, entry["name"]

    @pytest.mark.parametrize("pattern", ["block:4x1", "block:4x1,adjacent"])
    def test_blocks(self, tmp_path: Path, pattern: str) -> None:
        done = transformer(tmp_path, "--pattern", pattern, "--sparsity", "0.6")
        weights = arrays(dense_copy(tmp_path, done.output))
        assert done.report["sparsity"] == pytest.approx(0.6, abs=0.005)
        for entry in done.report["layers"]:
            if entry["kind"] == "matmul":
                rows = (weights[entry["name"]] == 0).T  # of outputs
                if "adjacent" in pattern:
                    assert (rows == np.repeat(rows[::4], 4, 0)).all(), entry["name"]
                _, counts = np.unique(rows, axis=0, return_counts=True)
                assert (counts % 4 == 0).all(), entry["name"]
                assert entry["pattern"] == pattern
            elif entry["kind"] == "embedding":
                assert entry["pattern"] == "unstructured"  # no kernel gains from blocks of a table

    def test_a_pattern_for_each_layer(self, tmp_path: Path) -> None:
        faster = ("--pattern", "auto", "--target-speedup", "1.05x")
        done = transformer(tmp_path, *faster, "--allocation", "error")
        weights = arrays(dense_copy(tmp_path, done.output))
        found = {
            entry["name"]: entry["pattern"] for entry in done.report["layers"] if entry["kind"] == "matmul"
        }
        assert any(pattern.startswith("block:") for pattern in found.values())
        for name, pattern in found.items():
            _, counts = np.unique((weights[name] == 0).T, axis=0, return_counts=True)
            rows = int(pattern[6:].split("x")[0]) if pattern != "unstructured" else 1
            assert (counts % rows == 0).all(), name

    def test_dense_format(self, tmp_path: Path) -> None:
        done = transformer(tmp_path, "--format", "dense")
        model = onnx.load(done.output)
        assert not model.functions and {node.domain for node in model.graph.node} == {""}
        assert sum(zeros_of(done.report, model).values()) == round(0.7 * done.report["weights"])

    def test_sparse_initializer_format(self, tmp_path: Path) -> None:
        done = transformer(tmp_path, "--format", "sparse-initializer")
        model = onnx.load(done.output)
        assert model.graph.sparse_initializer
        run_stock(done.output, SAMPLES / DATA["digits_transformer"], tmp_path)

    def test_half_precision_values(self, tmp_path: Path) -> None:
        whole = transformer(tmp_path)
        half = prune(
            tmp_path, SAMPLES / "digits_transformer.onnx",
            "--config", whole.output.with_suffix(".json"), "--values", "fp16", name="half.onnx",
        )  # fmt: skip
        assert half.output.stat().st_size < 0.75 * whole.output.stat().st_size
        assert half.report["verdict"] == whole.report["verdict"]
        a, b = (arrays(dense_copy(tmp_path, done.output)) for done in (whole, half))
        name = "layer1.up.weight"
        np.testing.assert_array_equal(a[name].astype(np.float16), b[name].astype(np.float16))
        assert b[name].dtype == np.float32

    def test_half_precision_values_that_do_not_fit_are_kept(self, tmp_path: Path) -> None:
        model = with_weights(parse(CHAIN), w1=WEIGHTS["w1"] * np.float32(1e6), w2=WEIGHTS["w2"])
        done = halve(tmp_path, model, X, "--values", "fp16", layers={"w1", "w2"})
        notes = {entry["name"]: entry["note"] for entry in done.report["layers"]}
        assert "float16 cannot hold" in notes["w1"]
        assert "float16" not in notes["w2"]

    @pytest.mark.parametrize("criterion", ["wanda", "magnitude"])
    def test_without_refit_only_zeros_are_new(self, criterion: str, tmp_path: Path) -> None:
        done = transformer(tmp_path, "--criterion", criterion, "--no-refit", "--sparsity", "0.3")
        before = arrays(onnx.load(SAMPLES / "digits_transformer.onnx"))
        after = arrays(dense_copy(tmp_path, done.output))
        for name, array in after.items():
            kept = array != 0
            np.testing.assert_array_equal(array[kept], before[name][kept])
        assert sum(zeros_of(done.report, dense_copy(tmp_path, done.output)).values()) == done.report["zeros"]
        if criterion == "magnitude":
            for name in (e["name"] for e in done.report["layers"] if e["kind"] == "matmul"):
                dropped = after[name] == 0
                assert abs(before[name][dropped]).max() <= abs(before[name][~dropped]).min()

    def test_uniform_allocation(self, tmp_path: Path) -> None:
        done = transformer(tmp_path)
        shares = [entry["zeros"] / entry["weights"] for entry in done.report["layers"]]
        assert max(shares) - min(shares) < 0.01

    @pytest.mark.parametrize("words", [("--allocation", "error"), ("--solve", "one-shot")], ids=" ".join)
    def test_other_ways_to_the_same_total(self, words: tuple[str, ...], tmp_path: Path) -> None:
        done = transformer(tmp_path, *words)
        assert done.report["zeros"] == round(0.7 * done.report["weights"])

    def test_dry_run_writes_nothing(self, tmp_path: Path) -> None:
        done = transformer(tmp_path, "--dry-run")
        assert done.report["output"] is None and done.report["zeros"] == round(0.7 * done.report["weights"])
        assert not list(tmp_path.iterdir())

    def test_no_data_is_a_capital_warning(self, tmp_path: Path) -> None:
        model = SAMPLES / "digits_transformer.onnx"
        done = prune(tmp_path, model, *QUICK, "--sparsity", "0.3")
        assert done.warnings.startswith("warning: NO CALIBRATION DATA")
        assert done.report["synthetic"] is True

    def test_python_api_with_arrays_in_memory(self, tmp_path: Path) -> None:
        with np.load(SAMPLES / DATA["digits_transformer"]) as archive:
            tokens = archive["tokens"][:80]
        settings: dict[str, Any] = {"allocation": "uniform", "solver": "sweep", "threads": 1, "samples": 64}
        results = []
        for number, data in enumerate([tokens, {"tokens": tokens}, [{"tokens": t[None]} for t in tokens]]):
            output = tmp_path / f"{number}.onnx"
            model = onnxprune.load(SAMPLES / "digits_transformer.onnx")
            report = onnxprune.prune(model, output, data=data, sparsity=0.6, **settings)
            assert report.zeros == round(0.6 * report.weights) and not report.synthetic
            results.append(digest(output))
        assert len(set(results)) == 1  # the same data in three forms

    @pytest.mark.parametrize(
        "options", [{"sparsity": "0.7"}, {"samples": 1.5}, {"pattern": None}, {"bogus": 1}], ids=str
    )
    def test_python_api_says_what_is_wrong(self, options: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(onnxprune.errors.UsageError, match=next(iter(options))):
            onnxprune.prune(SAMPLES / "digits_cnn.onnx", tmp_path / "out.onnx", **options)
        assert not list(tmp_path.iterdir())

    def test_python_api_takes_numpy_numbers_paths_and_lists(self, tmp_path: Path) -> None:
        report = onnxprune.prune(
            SAMPLES / "digits_cnn.onnx", tmp_path / "out.onnx", data=SAMPLES / "digits.npz",
            sparsity=np.float64(0.25), samples=np.int64(8), exclude=["stem*"], criterion="magnitude",
            allocation="uniform",
        )  # fmt: skip
        assert report.recipe["samples"] == 8 and report.zeros == round(0.25 * report.weights)


# --- models of every make, at 50 %


def parse(text: str, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {text}')


def normal(*shape: int, seed: int = 0, scale: float = 0.2) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def with_weights(model: onnx.ModelProto, **weights: NDArray[Any]) -> onnx.ModelProto:
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in weights.items())
    return model


def halve(
    folder: Path,
    model: onnx.ModelProto | Path,
    feed: Mapping[str, NDArray[Any]],
    *words: str,
    layers: set[str],
    tolerance: float = 0.75,
) -> Done:
    """Prune a model at 50 % by the command line; check zeros, layers and outputs in stock ONNX Runtime.

    Random weights and inputs have no redundancy, so ``tolerance`` (relative error of the output) is loose.
    """
    path = model if isinstance(model, Path) else folder / "m.onnx"
    if not isinstance(model, Path):
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())
    np.savez(folder / "x.npz", **feed)  # type: ignore[arg-type]
    before = digest(path)
    data = ("--data", folder / "x.npz", "--sparsity", "0.5", "--min-size", "16", "--no-cache", *FAST)
    done = prune(folder, path, *data, *words)
    assert digest(path) == before
    assert {entry["name"] for entry in done.report["layers"]} == layers
    assert done.report["zeros"] == round(0.5 * done.report["weights"])
    limits = {name: array[:64] for name, array in feed.items()}
    expected = run(path, limits)
    found = list(run_stock(done.output, folder / "x.npz", folder).values())
    for a, b in zip(expected, found, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        error = np.linalg.norm((a - b).astype(np.float64)) / np.linalg.norm(a.astype(np.float64))
        assert 0 < error < tolerance, error
    return done


CHAIN = "g (float[N, 32] x) => (float[N, 16] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"
X = {"x": normal(96, 32, seed=9, scale=1)}
WEIGHTS = {"w1": normal(32, 64, seed=1), "w2": normal(64, 16, seed=2)}


class TestMakes:
    def test_weights_in_constant_nodes(self, tmp_path: Path) -> None:
        model = parse(CHAIN)
        constants = [
            helper.make_node("Constant", [], [name], name=f"const_{name}", value=numpy_helper.from_array(a))
            for name, a in WEIGHTS.items()
        ]
        nodes = [*constants, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        done = halve(tmp_path, model, X, "--target-runtime", "stock", layers={"w1", "w2"})
        assert not onnx.load(done.output).graph.initializer
        restored = dense_copy(tmp_path, done.output)
        assert [(n.op_type, n.name) for n in restored.graph.node] == [(n.op_type, n.name) for n in nodes]

    def test_a_tied_weight_of_two_matmuls(self, tmp_path: Path) -> None:
        text = "g (float[N, 32] x) => (float[N, 32] y) { h = MatMul(x, w) r = Tanh(h) y = MatMul(r, w) }"
        done = halve(tmp_path, with_weights(parse(text), w=normal(32, 32)), X, layers={"w"}, tolerance=0.9)
        assert done.report["layers"][0]["note"] == "used by 2 nodes"
        tensors = [t.name for t in dense_copy(tmp_path, done.output).graph.initializer]
        assert tensors == ["w"]  # still one, still shared

    @pytest.mark.parametrize("form", ["packed", "dense"])
    def test_hugging_face_cache_layout(self, form: str, tmp_path: Path) -> None:
        """snapshots/REVISION/model.onnx and its data are links to ../../blobs/DIGEST."""
        repository = tmp_path / "models--org--name"
        blobs, snapshot = repository / "blobs", repository / "snapshots" / "4f2a"
        blobs.mkdir(parents=True)
        snapshot.mkdir(parents=True)
        model = with_weights(parse(CHAIN), **WEIGHTS)
        onnx.save(
            model, blobs / "model.onnx", save_as_external_data=True, location="model.onnx_data",
            size_threshold=0,
        )  # fmt: skip
        for name in ("model.onnx", "model.onnx_data"):
            (blobs / name).rename(blobs / f"sha-{name}")
            (snapshot / name).symlink_to(f"../../blobs/sha-{name}")
        before = {path: digest(path) for path in blobs.iterdir()}
        feed = tmp_path / "x.npz"
        np.savez(feed, **X)  # type: ignore[arg-type]
        out = tmp_path / "out"
        out.mkdir()
        words = ("--data", feed, "--sparsity", "0.5", "--min-size", "16", "--format", form, *FAST)
        done = prune(out, snapshot / "model.onnx", *words)
        assert {path: digest(path) for path in blobs.iterdir()} == before
        (y,) = run_stock(done.output, feed, out).values()
        (dense,) = run(with_weights(parse(CHAIN), **WEIGHTS), {"x": X["x"][:64]})
        assert np.linalg.norm(y - dense) / np.linalg.norm(dense) < 0.75
        command("export", done.output, "-o", out / "back.onnx", "--format", "dense", cwd=out)
        assert done.report["file_bytes_before"] == sum(path.stat().st_size for path in before)
        # beside the input, with default names, the links and what they point to stay as they are
        command("snapshots/4f2a/model.onnx", *words, "-q", cwd=repository)
        assert {path: digest(path) for path in blobs.iterdir()} == before
        assert (snapshot / "model.pruned.onnx").is_file() and (snapshot / "model.onnx").is_symlink()

    def test_ir_version_3_with_initializers_among_the_inputs(self, tmp_path: Path) -> None:
        model = with_weights(parse(CHAIN, opset=9, ir_version=3), **WEIGHTS)
        for name, array in WEIGHTS.items():
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
        done = halve(tmp_path, model, X, layers={"w1", "w2"})
        after = onnx.load(done.output)
        assert [value.name for value in after.graph.input] == [
            "x"
        ]  # w1 and w2 are packed: they have other names
        assert {entry["stored"] for entry in done.report["layers"]} == {"packed"}

    def test_half_precision_model(self, tmp_path: Path) -> None:
        model = with_weights(
            parse(CHAIN.replace("float", "float16")), **{n: a.astype(np.float16) for n, a in WEIGHTS.items()}
        )
        done = halve(tmp_path, model, {"x": X["x"].astype(np.float16)}, layers={"w1", "w2"})
        weights = arrays(dense_copy(tmp_path, done.output))
        assert {array.dtype for array in weights.values()} == {np.dtype(np.float16)}

    def test_double_precision_model(self, tmp_path: Path) -> None:
        model = with_weights(
            parse(CHAIN.replace("float", "double")), **{n: a.astype(np.float64) for n, a in WEIGHTS.items()}
        )
        halve(tmp_path, model, {"x": X["x"].astype(np.float64)}, layers={"w1", "w2"})

    def test_bfloat16_weights(self, tmp_path: Path) -> None:
        """ONNX Runtime's CPU has no bfloat16 MatMul: a model that needs one is refused, by its name."""
        model = parse(CHAIN.replace("float", "bfloat16"))
        for name, array in WEIGHTS.items():
            model.graph.initializer.append(
                helper.make_tensor(name, TensorProto.BFLOAT16, array.shape, array.ravel())
            )
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        done = command("m.onnx", "--sparsity", "0.5", *FAST, cwd=tmp_path, status=3)
        assert done[1].startswith("error: m.onnx") and len(done[1].splitlines()) <= 2
        assert sorted(os.listdir(tmp_path)) == ["m.onnx"]

    def test_if_subgraph_and_local_function_are_carried(self, tmp_path: Path) -> None:
        text = """
        <ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N, 32] x) => (float[N, 16] y) {
            h = MatMul(x, w1)
            r = local.Act(h)
            zero = Constant<value = float {0.0}>()
            sum = ReduceSum<keepdims = 0>(x)
            positive = Greater(sum, zero)
            z = If(positive) <
                then_branch = t () => (float[N, 64] tz) { tz = Mul(r, gain) },
                else_branch = e () => (float[N, 64] ez) { ez = Identity(r) }
            >
            y = MatMul(z, w2)
        }
        <domain: "local", opset_import: ["": 17]> Act (a) => (b) { c = Relu(a) b = Sqrt(c) }
        """
        model = with_weights(onnx.parser.parse_model(text), **WEIGHTS, gain=np.full(64, 1.5, np.float32))
        done = halve(tmp_path, model, X, layers={"w1", "w2"})
        before, after = onnx.load(tmp_path / "m.onnx"), onnx.load(done.output)
        assert before.functions[0] in list(after.functions)
        (old,) = (node for node in before.graph.node if node.op_type == "If")
        (new,) = (node for node in after.graph.node if node.op_type == "If")
        assert old == new

    def test_weight_used_in_a_subgraph_is_left_alone(self, tmp_path: Path) -> None:
        text = """
        g (float[N, 32] x, bool c) => (float[N, 16] y) {
            h = If(c) <
                then_branch = t () => (float[N, 64] a) { a = MatMul(x, w1) },
                else_branch = e () => (float[N, 64] b) { d = MatMul(x, w1) b = Relu(d) }
            >
            y = MatMul(h, w2)
        }"""
        model = with_weights(parse(text), **WEIGHTS)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        words = ("--sparsity", "0.5", "--min-size", "16", *FAST)
        done = prune(tmp_path, tmp_path / "m.onnx", *words)
        assert [entry["name"] for entry in done.report["layers"]] == ["w2"]
        assert any("subgraph" in skip["reason"] for skip in done.report["skipped"])

    def test_convolutions_of_every_rank(self, tmp_path: Path) -> None:
        """Conv1d strided and dilated, Conv3d, ConvTranspose, grouped Conv: one model, one run."""
        text = """
        g (float[N, 8, 24] a, float[N, 4, 5, 6, 6] b, float[N, 8, 6, 6] c)
          => (float[N, 16, 11] ya, float[N, 8, 5, 6, 6] yb, float[N, 6, 12, 12] yc, float[N, 16, 6, 6] yd)
        {
            ya = Conv<strides = [2], dilations = [2], pads = [1, 1]>(a, wa, ba)
            yb = Conv<auto_pad = "SAME_UPPER">(b, wb)
            yc = ConvTranspose<strides = [2, 2]>(c, wc, bc)
            yd = Conv<group = 4, pads = [1, 1, 1, 1]>(c, wd, bd)
        }"""
        weights = {
            "wa": normal(16, 8, 3, seed=1), "ba": normal(16, seed=2), "wb": normal(8, 4, 3, 3, 3, seed=3),
            "wc": normal(8, 6, 2, 2, seed=4), "bc": normal(6, seed=5), "wd": normal(16, 2, 3, 3, seed=6),
            "bd": normal(16, seed=7),
        }  # fmt: skip
        feed = {
            "a": normal(64, 8, 24, seed=8, scale=1),
            "b": normal(64, 4, 5, 6, 6, seed=9, scale=1),
            "c": normal(64, 8, 6, 6, seed=10, scale=1),
        }
        model = with_weights(parse(text), **weights)
        done = halve(tmp_path, model, feed, "--allocation", "uniform", layers={"wa", "wb", "wc", "wd"})
        kinds = {entry["name"]: entry["kind"] for entry in done.report["layers"]}
        assert kinds == {"wa": "conv", "wb": "conv", "wc": "conv_transpose", "wd": "conv"}

    def test_batch_dimension_fixed_to_one(self, tmp_path: Path) -> None:
        model = with_weights(parse(CHAIN.replace("[N,", "[1,")), **WEIGHTS)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        np.savez(tmp_path / "x.npz", **X)  # type: ignore[arg-type]
        words = ("--data", "x.npz", "--sparsity", "0.5", "--min-size", "16", *FAST)
        done = prune(tmp_path, tmp_path / "m.onnx", *words)
        assert done.report["zeros"] == round(0.5 * done.report["weights"])
        assert list(onnx.load(done.output).graph.input) == list(model.graph.input)
        np.savez(tmp_path / "one.npz", x=X["x"][:1])
        (y,) = run_stock(done.output, tmp_path / "one.npz", tmp_path).values()
        assert y.shape == (1, 16)

    def test_lstm(self, tmp_path: Path) -> None:
        text = """
        g (float[N, 10, 16] x) => (float[N, 10, 8] y) {
            t = Transpose<perm = [1, 0, 2]>(x)
            s = LSTM<hidden_size = 16>(t, W, R)
            q = Squeeze(s, axis)
            b = Transpose<perm = [1, 0, 2]>(q)
            y = MatMul(b, w)
        }"""
        weights: dict[str, NDArray[Any]] = {
            "W": normal(1, 64, 16, seed=1), "R": normal(1, 64, 16, seed=2), "w": normal(16, 8, seed=3),
            "axis": np.array([1], np.int64),
        }  # fmt: skip
        feed = {"x": normal(64, 10, 16, seed=4, scale=1)}
        done = halve(tmp_path, with_weights(parse(text), **weights), feed, layers={"w", "W", "R"})
        kinds = {entry["name"]: entry["kind"] for entry in done.report["layers"]}
        assert kinds == {"w": "matmul", "W": "rnn_input", "R": "rnn_recurrence"}
        notes = {entry["name"]: entry["kernel_note"] for entry in done.report["layers"]}
        assert notes["R"] == "recurrent nodes have no kernel"

    def test_gemm_in_every_orientation(self, tmp_path: Path) -> None:
        text = """
        g (float[N, 32] x) => (float[N, 16] y, float[16, N] z) {
            h = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w1, b1)
            r = Relu(h)
            y = Gemm(r, w2)
            t = Transpose<perm = [1, 0]>(r)
            z = MatMul(w3, t)
        }"""
        weights = {
            "w1": normal(64, 32, seed=1), "b1": normal(64, seed=2), "w2": normal(64, 16, seed=3),
            "w3": normal(16, 64, seed=4),
        }  # fmt: skip
        halve(tmp_path, with_weights(parse(text), **weights), X, layers={"w1", "w2", "w3"})

    @pytest.mark.parametrize(
        ("name", "wanted"), [("m.v2.onnx", "m.v2.pruned"), ("m.v2", "m.v2.pruned"), ("M.ONNX", "M.pruned")]
    )
    def test_default_names(self, name: str, wanted: str, tmp_path: Path) -> None:
        model = with_weights(parse(CHAIN), **WEIGHTS)
        (tmp_path / name).write_bytes(model.SerializeToString())
        report = onnxprune.prune(tmp_path / name, data=X["x"], criterion="magnitude", allocation="uniform")
        assert report.output == str(tmp_path / f"{wanted}.onnx")
        assert sorted(os.listdir(tmp_path)) == sorted([name, f"{wanted}.onnx", f"{wanted}.json"])


def test_every_sample_has_a_run() -> None:
    assert {path.stem for path in SAMPLES.glob("*.onnx")} == set(DATA)

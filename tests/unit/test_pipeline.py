"""The main job from Python: refusals before the work, what is written, and what is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import pytest

from onnxprune import pipeline, runtime
from onnxprune.calibration.data import CalibrationData
from onnxprune.errors import ModelError, UsageError, VerificationError
from onnxprune.io import file_digest, load
from onnxprune.layers import find_layers
from onnxprune.model import Model
from onnxprune.opening import EXTRA_SAMPLES
from onnxprune.pipeline import prune
from onnxprune.recipe import Recipe
from onnxprune.report.report import Report

TEXT = """g (float[N, 16] x) => (float[N, 8] y) {
    a = MatMul(x, w1)  h = Add(a, b1)  r = Relu(h)  y = MatMul(r, w2) }"""
WEIGHTS = 16 * 24 + 24 * 8
QUICK: dict[str, Any] = {
    "min_size": 64,
    "samples": 32,
    "threads": 1,
    "solver": "sweep",
    "allocation": "uniform",
    "sparsity": 0.5,
}
METRIC = """
import numpy as np

def spread(session):
    x = np.linspace(-1, 1, 160, dtype=np.float32).reshape(10, 16)
    return float(session.run(None, {"x": x})[0].std())
"""


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


@pytest.fixture
def proto(build_model: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    return build_model(TEXT, {"w1": noise(16, 24), "b1": noise(24), "w2": noise(24, 8)})


@pytest.fixture
def path(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def no_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Creating a session is where the long work begins."""

    def session(*args: Any, **options: Any) -> Any:
        pytest.fail("the work has begun")

    monkeypatch.setattr(runtime, "session", session)


def listed(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


class TestRefusals:
    """Each comes before the work: no session is created, nothing is written."""

    pytestmark = pytest.mark.usefixtures("no_sessions")

    def test_unknown_option(self, path: Path) -> None:
        with pytest.raises(UsageError, match="unknown options sparsty") as near:
            prune(path, sparsty=0.5)
        assert near.value.hint == "did you mean sparsity?"
        with pytest.raises(UsageError, match="unknown options colour, sparsty") as caught:
            prune(path, sparsty=0.5, colour="red")
        assert "sparsity" in caught.value.hint
        assert listed(path.parent) == ["net.onnx"]

    def test_wrong_value(self, path: Path) -> None:
        with pytest.raises(UsageError, match=r"--sparsity is 1\.5"):
            prune(path, sparsity=1.5)

    def test_nothing_to_prune(self, path: Path) -> None:
        with pytest.raises(ModelError, match=r"net\.onnx: nothing to prune") as caught:
            prune(path, min_size=10_000)
        assert "too small" in caught.value.hint and "--min-size is 10000" in caught.value.hint
        assert listed(path.parent) == ["net.onnx"]

    def test_no_weights_at_all(self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path) -> None:
        model = Model(build_model("g (float[N] x) => (float[N] y) { y = Relu(x) }"))
        with pytest.raises(ModelError, match="nothing to prune") as caught:
            prune(model, tmp_path / "out.onnx")
        assert caught.value.hint == "the model has no weight matrices"

    def test_weights_in_branches_only(
        self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path
    ) -> None:
        text = """g (float[N, 96] x, bool c) => (float[N, 96] y) { y = If (c) <
            then_branch = a () => (float[N, 96] p) { p = MatMul(x, w) },
            else_branch = b () => (float[N, 96] q) { q = Relu(x) }> }"""
        with pytest.raises(ModelError, match="nothing to prune") as caught:
            prune(Model(build_model(text, {"w": noise(96, 96)})), tmp_path / "out.onnx")
        assert "inside the subgraph of If(y)" in caught.value.hint
        assert "onnxprune export --fix INPUT=VALUE" in caught.value.hint

    def test_quantized_weights_only(
        self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path
    ) -> None:
        text = "g (float[N, 16] x) => (float[N, 32] y) { d = DequantizeLinear(w, s) y = MatMul(x, d) }"
        weights = {"w": np.ones((16, 32), np.int8), "s": np.array(0.1, np.float32)}
        with pytest.raises(ModelError, match="nothing to prune") as caught:
            prune(Model(build_model(text, weights)), tmp_path / "out.onnx")
        assert "prune the float model with --format dense and quantize the result" in caught.value.hint

    def test_weights_that_functions_read(self, tmp_path: Path) -> None:
        proto = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17, "local": 1]>
            g (float[N, 16] x) => (float[N, 32] y) { y = local.Dense(x, w) }
            <opset_import: ["": 17], domain: "local"> Dense (a, b) => (c) { c = MatMul(a, b) }"""
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(noise(16, 32), "w"))
        with pytest.raises(ModelError, match="nothing to prune") as caught:
            prune(proto, tmp_path / "out.onnx", data=noise(40, 16), **QUICK)
        assert "used by Dense" in caught.value.hint and "inline_local_functions" in caught.value.hint
        inlined = onnx.inliner.inline_local_functions(proto)  # what the hint says is a way out
        layers, _ = find_layers(Model(inlined), min_size=64)
        assert [layer.name for layer in layers] == ["w"]

    @pytest.mark.parametrize("name", ["net.pruned.onnx", "net.pruned.json"])
    def test_output_exists(self, path: Path, name: str) -> None:
        (path.parent / name).write_text("precious")
        with pytest.raises(UsageError, match=name):
            prune(path, **QUICK)
        assert (path.parent / name).read_text() == "precious"
        assert len(listed(path.parent)) == 2

    @pytest.mark.parametrize("force", [False, True])
    def test_output_is_the_input(self, path: Path, force: bool) -> None:
        before = path.read_bytes()
        with pytest.raises(UsageError, match="is the input, which is never changed"):
            prune(path, path, force=force, **QUICK)
        (path.parent / "link.onnx").symlink_to(path)
        with pytest.raises(UsageError, match="is the input, which is never changed"):
            prune(path, path.parent / "link.onnx", force=force, **QUICK)
        assert path.read_bytes() == before

    def test_output_is_the_data(self, path: Path) -> None:
        data = path.parent / "x.npz"
        np.savez(data, x=noise(40, 16))
        before = data.read_bytes()
        with pytest.raises(UsageError, match=r"x\.npz is the input"):
            prune(path, data, data=data, force=True, **QUICK)
        with pytest.raises(UsageError, match=r"x\.npz is the input"):
            prune(path, report=data, data=data, force=True, **QUICK)
        assert data.read_bytes() == before

    def test_model_and_report_are_one_file(self, path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be both the model and its report"):
            prune(path, path.parent / "out.json", **QUICK)

    def test_no_such_folder(self, path: Path) -> None:
        with pytest.raises(UsageError, match="absent"):
            prune(path, path.parent / "absent" / "out.onnx", **QUICK)

    def test_a_model_from_memory_needs_an_output(self, proto: onnx.ModelProto) -> None:
        with pytest.raises(UsageError, match="needs an output path"):
            prune(Model(proto), **QUICK)


class TestWriting:
    def test_default_names_and_a_file_that_is_what_the_report_says(self, path: Path) -> None:
        before = path.read_bytes()
        report = prune(path, data=noise(40, 16), **QUICK)
        assert listed(path.parent) == ["net.onnx", "net.pruned.json", "net.pruned.onnx"]
        assert path.read_bytes() == before
        output = path.parent / "net.pruned.onnx"
        assert report.output == str(output)
        assert report.file_bytes_after == output.stat().st_size
        assert Report.load(path.parent / "net.pruned.json").to_dict() == report.to_dict()

    def test_report_elsewhere(self, path: Path) -> None:
        (path.parent / "r").mkdir()
        prune(path, path.parent / "o.onnx", report=path.parent / "r" / "why.json", **QUICK)
        assert listed(path.parent) == ["net.onnx", "o.onnx", "r"] and listed(path.parent / "r") == [
            "why.json"
        ]

    def test_force(self, path: Path) -> None:
        output = path.parent / "net.pruned.onnx"
        output.write_text("old")
        prune(path, force=True, **QUICK)
        assert load(output).index.outputs.keys() == {"y"}

    def test_dry_run_writes_nothing(self, path: Path) -> None:
        (path.parent / "net.pruned.onnx").write_text("of an earlier run")
        with pytest.raises(UsageError, match="already exists"):  # as the real run
            prune(path, dry_run=True, **QUICK)
        report = prune(path, dry_run=True, force=True, **QUICK)
        assert listed(path.parent) == ["net.onnx", "net.pruned.onnx"]
        assert (path.parent / "net.pruned.onnx").read_text() == "of an earlier run"
        assert report.output is None and report.zeros == WEIGHTS // 2
        assert report.agreements and report.file_bytes_after and report.file_bytes_after > 0

    def test_a_model_from_memory_is_left_as_it_is(self, proto: onnx.ModelProto, tmp_path: Path) -> None:
        model = Model(proto)
        before = model.to_bytes()
        report = prune(model, tmp_path / "o.onnx", **QUICK)
        assert model.to_bytes() == before
        assert report.model_digest == "" and report.file_bytes_before > WEIGHTS * 4

    def test_same_seed_same_file(self, path: Path) -> None:
        for name in ("a", "b"):
            prune(path, path.parent / f"{name}.onnx", data=noise(40, 16), **QUICK)
        assert (path.parent / "a.onnx").read_bytes() == (path.parent / "b.onnx").read_bytes()

    def test_its_own_output_is_refused(self, path: Path) -> None:
        prune(path, path.parent / "o.onnx", **QUICK)
        with pytest.raises(ModelError, match=r"o\.onnx is packed by onnxprune already") as caught:
            prune(path.parent / "o.onnx", **QUICK)
        assert "export" in caught.value.hint

    @pytest.mark.parametrize("format", ["packed", "dense", "sparse-initializer"])
    def test_formats(self, path: Path, format: str) -> None:
        report = prune(path, format=format, **QUICK)
        assert report.zeros == WEIGHTS // 2
        proto = onnx.load(path.parent / "net.pruned.onnx")
        domains = {node.domain for node in proto.graph.node}
        assert ("onnxprune" in domains) is (format == "packed")
        assert bool(proto.graph.sparse_initializer) is (format == "sparse-initializer")


@pytest.mark.parametrize("wrong", ["weight", "interface", "zeros"])
def test_a_wrong_file_is_never_published(path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    real = pipeline.store

    def store(pruned: Model, *rest: Any) -> Any:
        if wrong == "zeros":  # both the plan's model and the file lack zeros that the report would claim
            pruned.set_array("w1", noise(16, 24))
        final, stored = real(pruned, *rest)
        if wrong == "weight":
            final = pruned.copy()
            final.set_array("w2", pruned.array("w2") * np.float32(1.0001))
        if wrong == "interface":
            final.proto.metadata_props.add(key="author", value="someone")
        return final, stored

    monkeypatch.setattr(pipeline, "store", store)
    says = {"weight": "'w2' differs", "interface": "another interface", "zeros": "'w1' has 0 zeros"}
    with pytest.raises(VerificationError, match=says[wrong]):
        prune(path, **QUICK)
    assert listed(path.parent) == ["net.onnx"]


class TestData:
    @pytest.fixture
    def parts(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[set, set]]:
        """Return ``parts(count)``: the rows used to calibrate and those held out, out of ``count`` given."""

        def run(count: int, **options: Any) -> tuple[set[float], set[float]]:
            rows = np.zeros((count, 16), np.float32) + np.arange(count, dtype=np.float32)[:, None]
            seen: list[set[float]] = []
            real = pipeline.read_data

            def record(*args: Any) -> tuple[CalibrationData, CalibrationData]:
                found = real(*args)
                seen.extend({float(v) for b in part.batches for v in b["x"][:, 0]} for part in found)
                return found

            with monkeypatch.context() as patch:
                patch.setattr(pipeline, "read_data", record)
                prune(path, data=rows, dry_run=True, damping=0.1, **{**QUICK, **options})
            return seen[0], seen[1]

        return run

    def test_held_out_come_on_top_when_there_are_more(self, parts: Callable[..., Any]) -> None:
        fit, held_out = parts(300, samples=32)
        assert len(fit) == 32 and len(held_out) == EXTRA_SAMPLES and not fit & held_out

    def test_a_few_more(self, parts: Callable[..., Any]) -> None:
        fit, held_out = parts(40, samples=32)
        assert len(fit) == 32 and len(held_out) == 8 and not fit & held_out

    @pytest.mark.parametrize("count", [32, 20])
    def test_a_share_when_there_are_not(self, parts: Callable[..., Any], count: int) -> None:
        fit, held_out = parts(count, samples=32)
        assert fit | held_out == set(map(float, range(count))) and not fit & held_out
        assert len(held_out) == round(count / 8)

    def test_a_single_sample_serves_for_both(self, parts: Callable[..., Any]) -> None:
        fit, held_out = parts(1)
        assert fit == held_out == {0.0}

    def test_what_is_compared_on_one_sample_says_little(self, path: Path) -> None:
        def warned(count: int) -> list[str]:
            report = prune(path, data=noise(count, 16), dry_run=True, damping=0.1, **QUICK)
            return [text for text in report.warnings if "NOTHING TO COMPARE ON" in text]

        assert len(warned(1)) == 1 and "one sample" in warned(1)[0] and not warned(2)

    def test_path_or_option(self, path: Path) -> None:
        np.savez(path.parent / "x.npz", x=noise(40, 16))
        first = prune(path, data=path.parent / "x.npz", dry_run=True, **QUICK)
        second = prune(path, recipe=Recipe(data=str(path.parent / "x.npz")), dry_run=True, **QUICK)
        assert "x.npz" in first.data and not first.synthetic
        assert first.data == second.data and first.recipe == second.recipe and first.layers == second.layers


class TestReport:
    def test_every_field(self, path: Path) -> None:
        (path.parent / "metric.py").write_text(METRIC)
        eval_ = f"{path.parent / 'metric.py'}:spread"
        options = {**QUICK, "allocation": "sensitivity", "cache": False}
        report = prune(path, data=noise(100, 16), eval=eval_, **options)
        assert report.model == str(path) and report.model_digest == f"sha256:{file_digest(path)}"
        assert report.file_bytes_before == path.stat().st_size
        assert (report.weights, report.zeros, report.sparsity) == (WEIGHTS, WEIGHTS // 2, 0.5)
        assert report.recipe["sparsity"] == 0.5 and report.recipe["samples"] == 32
        assert "96 of 100" in report.data and not report.synthetic
        assert [layer.name for layer in report.layers] == ["w1", "w2"]
        written = load(path.parent / "net.pruned.onnx")
        assert report.zeros == sum(layer.zeros for layer in report.layers)
        for layer in report.layers:
            assert layer.error is not None and 0 < layer.error < 1
            assert layer.sensitivity is not None and layer.sensitivity > 0
            assert layer.sparsity == layer.zeros / layer.weights and layer.nodes
            assert layer.dense_bytes == layer.weights * 4 and layer.stored_bytes > 0
            assert layer.pattern == "unstructured" and layer.criterion == "obs"
        assert report.skipped == ()  # a bias is no weight that somebody would miss
        assert [item["name"] for item in report.agreements] == ["y"]
        assert report.agreements[0]["rows"] == EXTRA_SAMPLES
        assert report.verdict and report.verdict_text
        assert report.metric == eval_
        assert report.metric_before is not None and report.metric_after is not None
        assert report.metric_before != report.metric_after
        assert report.warnings == ()
        stages = [item.stage for item in report.timings]
        assert set(stages) >= {"read", "dense model", "measure", "solve", "rewrite", "verify", "task metric"}
        assert all(item.wall_seconds >= 0 for item in report.timings)
        assert report.peak_rss_bytes and report.peak_rss_bytes > 1e6 and report.environment
        assert written.index.inputs.keys() == {"x"}
        json.dumps(report.to_dict(), allow_nan=False)

    def test_synthetic_data_is_said_loudly(self, path: Path) -> None:
        report = prune(path, dry_run=True, **QUICK)
        assert report.synthetic
        assert any("NO CALIBRATION DATA" in line for line in report.warnings)

    def test_a_sparsity_out_of_reach_is_said(self, path: Path) -> None:
        report = prune(path, dry_run=True, data=noise(40, 16), pattern="2:4", **{**QUICK, "sparsity": 0.25})
        assert report.sparsity != 0.25
        assert any("25.0% was wanted" in line and "2:4" in line for line in report.warnings)

    def test_raised_damping_is_said(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = pipeline.solve

        def solve(*args: Any) -> Any:
            pruned, solved = real(*args)
            return pruned, tuple(replace(s, damping=0.5) if s.name == "w2" else s for s in solved)

        monkeypatch.setattr(pipeline, "solve", solve)
        report = prune(path, dry_run=True, data=noise(40, 16), **QUICK)
        assert [layer.note.count("damping raised to 0.5") for layer in report.layers] == [0, 1]
        assert report.warnings == ("damping was raised for w2: their inputs vary too little",)

    def test_options_override_the_recipe(self, path: Path) -> None:
        report = prune(path, recipe=Recipe(**{**QUICK, "sparsity": 0.9}), sparsity=0.25, dry_run=True)
        assert report.recipe["sparsity"] == 0.25 and report.zeros == WEIGHTS // 4

    def test_lists_are_taken_for_tuples(self, path: Path) -> None:
        report = prune(path, exclude=["w1"], dry_run=True, **QUICK)
        assert [layer.name for layer in report.layers] == ["w2"]
        assert "w1" in {skip.name for skip in report.skipped}

    def test_progress_is_told_every_stage(self, path: Path) -> None:
        class Recorder:
            def __init__(self) -> None:
                self.stages: list[str] = []
                self.total = self.steps = 0

            def stage(self, name: str, total: int | None = None) -> None:
                self.stages.append(name)
                self.total += total or 0

            def advance(self, steps: int = 1) -> None:
                self.steps += steps

            def note(self, text: str) -> None:
                pass

        seen = Recorder()
        options = {**QUICK, "allocation": "sensitivity", "cache": False, "target_runtime": "stock"}
        prune(path, dry_run=True, progress=seen, **options)
        assert seen.stages == [
            "reading",
            "running the dense model",
            "measuring the layers",
            "pruning",
            "packing",
            "verifying",
        ]
        assert seen.steps == seen.total == 4


def test_padding_is_left_out(
    build_model: Callable[..., onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the samples to calibrate with, and of those to judge by."""
    text = """g (int64[N, T] ids, float[N, T] attention_mask) => (float[N, T, 24] y) {
        e = Gather(table, ids) h = MatMul(e, w1) r = Relu(h) o = MatMul(r, w2)
        m = Unsqueeze(attention_mask, axes) y = Mul(o, m) }"""
    weights = {"table": noise(30, 24), "w1": noise(24, 24), "w2": noise(24, 24), "axes": np.array([2])}
    mask = (np.arange(40) < np.arange(1, 33)[:, None] // 4 + 1).astype(np.float32)
    seen: list[Any] = []
    for name, argument in (("make_plan", 2), ("agreement", 2)):
        function = getattr(pipeline, name)

        def spy(*given: Any, function: Any = function, argument: int = argument) -> Any:
            seen.append(given[argument])
            return function(*given)

        monkeypatch.setattr(pipeline, name, spy)
    feeds = {"ids": (mask * 7).astype(np.int64), "attention_mask": mask}
    prune(Model(build_model(text, weights)), data=feeds, dry_run=True, **QUICK)
    calibration, held_out = seen
    batches = (*calibration.batches, *held_out)
    assert sum(batch["ids"].size for batch in batches) < 0.5 * mask.size
    assert sum(float(batch["attention_mask"].sum()) for batch in batches) == mask.sum()
    assert all(batch["ids"].shape[1] == 40 for batch in calibration.as_given)


class TestOldAndOddModels:
    """Whole runs on models that passes must not break."""

    def run(self, proto: onnx.ModelProto, data: Any, tmp_path: Path, **options: Any) -> Report:
        options = {"samples": 32, "threads": 1, "cache": False, "min_size": 64, "sparsity": 0.5} | options
        return prune(Model(proto), tmp_path / "out.onnx", data=data, **options)

    def old(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """The model as of IR version 3, in which initializers are inputs too."""
        proto.ir_version = 3
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
        )
        onnx.checker.check_model(proto)
        return proto

    @pytest.mark.parametrize("opset", [9, 12])
    def test_new_constants_before_ir_version_4(
        self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path, opset: int
    ) -> None:
        text = """g (float[N, 16, 6, 6] x) => (float[N, 16, 6, 6] y) {
            a = Conv(x, w) b = BatchNormalization(a, s, t, m, v)
            c = Conv(b, u, k) y = Conv(c, z, k) }"""
        weights = {name: noise(16, 16, 1, 1) for name in ("w", "u", "z")}
        weights |= {name: noise(16) for name in ("s", "t", "m", "k")} | {"v": np.ones(16, np.float32)}
        proto = self.old(build_model(text, weights, opset))
        self.run(proto, noise(40, 16, 6, 6), tmp_path)
        found = onnx.load(tmp_path / "out.onnx")
        assert [node.op_type for node in found.graph.node].count("BatchNormalization") == 0
        assert [value.name for value in found.graph.input] == ["x"]

    def test_only_a_table(self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path) -> None:
        text = """g (int64[N, T] ids) => (float[N, 32] y) {
            e = Gather(table, ids) y = ReduceMean <axes = [1], keepdims = 0> (e) }"""
        proto = build_model(text, {"table": noise(200, 32)})
        report = self.run(proto, np.arange(400).reshape(40, 10) % 200, tmp_path)
        assert report.zeros == 3200

    def test_one_shot_with_a_residual_behind_the_last_layer(
        self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path
    ) -> None:
        text = """g (float[N, 16] x) => (float[N, 16] y) {
            r = Relu(x) t = Tanh(r) a = MatMul(t, w) b = Relu(a) c = MatMul(b, v) y = Add(c, r) }"""
        proto = build_model(text, {"w": noise(16, 16), "v": noise(16, 16)})
        report = self.run(proto, noise(40, 16), tmp_path, solve="one-shot")
        assert report.zeros == 256

    def test_blocks_of_small_fp16_weights(
        self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path
    ) -> None:
        w = (noise(64, 64) * 0.015).astype(np.float16)
        w[np.random.default_rng(0).random(w.shape) < 0.02] = 0
        proto = build_model("g (float16[N, 64] x) => (float16[N, 64] y) { y = MatMul(x, w) }", {"w": w})
        options = {"pattern": "block:4x1", "criterion": "magnitude", "refit": False, "allocation": "uniform"}
        report = self.run(proto, noise(40, 64).astype(np.float16), tmp_path, **options)
        assert report.zeros == 2048

    def test_a_feature_that_is_large_and_never_varies(
        self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path
    ) -> None:
        """The rounding errors of its square are larger than what the others vary by."""
        text = "g (float[N, 1024] x) => (float[N, 24] y) { a = MatMul(x, w) y = Add(a, b) }"
        proto = build_model(text, {"w": noise(1024, 24) / 30, "b": noise(24)})
        x = noise(4096, 1024)
        x[:, 0] = 300.7
        report = self.run(proto, x, tmp_path, samples=4096, target_runtime="stock", allocation="uniform")
        assert report.agreements[0]["cosine"] > 0.5

    @pytest.mark.parametrize("from_file", [False, True])
    def test_a_model_that_only_the_checker_refuses(
        self, proto: onnx.ModelProto, tmp_path: Path, from_file: bool
    ) -> None:
        """An output without a shape: ONNX Runtime runs it, before and after."""
        del proto.graph.output[:]
        proto.graph.output.add(name="y")
        with pytest.raises(onnx.checker.ValidationError):
            onnx.checker.check_model(proto)
        model: Any = Model(proto)
        if from_file:
            onnx.save(proto, tmp_path / "in.onnx")
            model = tmp_path / "in.onnx"
        prune(model, tmp_path / "out.onnx", data=noise(160, 16), **QUICK)
        assert (tmp_path / "out.onnx").exists()

    def test_external_data_is_named(self, proto: onnx.ModelProto, tmp_path: Path) -> None:
        inline = onnx.ModelProto()
        inline.CopyFrom(proto)  # saving leaves the values out of the one that is saved
        onnx.save(proto, tmp_path / "in.onnx", save_as_external_data=True, size_threshold=0)
        dense = {**QUICK, "format": "dense"}  # packed they would be too small for a file of their own
        made = prune(tmp_path / "in.onnx", tmp_path / "out.onnx", data=noise(160, 16), **dense)
        assert made.data_files == (str(tmp_path / "out.onnx.data"),)
        assert prune(Model(inline), tmp_path / "b.onnx", data=noise(160, 16), **QUICK).data_files == ()

    def test_weights_that_several_nodes_read_are_offered_a_kernel(
        self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path
    ) -> None:
        text = "g (float[N, 48] x) => (float[N, 48] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
        report = self.run(build_model(text, {"w": noise(48, 48)}), noise(80, 48), tmp_path)
        (layer,) = report.layers
        assert layer.stored == "packed" and layer.kernel_note
        assert "more than one node" not in layer.kernel_note

    def test_weights_behind_identity(
        self, build_model: Callable[..., onnx.ModelProto], tmp_path: Path
    ) -> None:
        text = """g (float[N, 48] x) => (float[N, 48] y) {
            i = Identity(w) a = MatMul(x, w) b = Relu(a) y = MatMul(b, i) }"""
        proto = build_model(text, {"w": noise(48, 48)})
        assert self.run(proto, noise(80, 48), tmp_path).zeros == 1152
        with pytest.raises(ModelError, match="nothing to prune") as caught:
            prune(Model(proto), tmp_path / "b.onnx", data=noise(80, 48), target_runtime="stock", **QUICK)
        assert "--target-runtime cpu looks through" in caught.value.hint

    def test_a_proto_from_python(self, proto: onnx.ModelProto, tmp_path: Path) -> None:
        before = proto.SerializeToString()
        made = prune(proto, tmp_path / "out.onnx", data=noise(160, 16), **QUICK)
        assert made.zeros == WEIGHTS // 2
        assert proto.SerializeToString() == before

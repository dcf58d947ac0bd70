"""The glue between command line and library, with stand-ins for the library; tests/e2e has the real thing."""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from onnxprune import cli as cli_module
from onnxprune import terminal
from onnxprune.cli import cli, main
from onnxprune.errors import ModelError, ResourceError
from onnxprune.recipe import Recipe
from onnxprune.report.report import COMMAND_LINE, Report


@pytest.fixture(autouse=True)
def keep_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """``main`` owns its process; here it must leave signals and warnings to pytest."""
    monkeypatch.setattr(cli_module, "prepare_process", lambda: None)
    monkeypatch.delenv("ONNXPRUNE_TRACEBACK", raising=False)


@dataclass
class Calls:
    """What the stand-in library was called with."""

    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] | None = None
    error: BaseException | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.arguments, self.options = arguments, options
        print("user code prints this")
        if self.error:
            raise self.error
        return self.result

    result: Any = None


REPORT = Report(
    model="m.onnx", output="m.pruned.onnx", model_digest="", recipe={}, data="x", synthetic=False,
    file_bytes_before=3000, file_bytes_after=1000, weights=640, zeros=448, sparsity=0.7, layers=(),
    warnings=("the first", "the second\x1b[31m"),
)  # fmt: skip


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str, result: Any) -> Calls:
    """Replace ``onnxprune.module`` by a module whose function ``name`` records its call."""
    calls = Calls(result=result)
    fake = types.ModuleType(f"onnxprune.{module}")
    setattr(fake, name, calls)
    monkeypatch.setitem(sys.modules, f"onnxprune.{module}", fake)
    return calls


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return stand_in(monkeypatch, "pipeline", "prune", REPORT)


class TestDefaultCommand:
    @pytest.mark.parametrize(
        "words",
        [
            ["m.onnx", "--sparsity", "0.5"],
            ["prune", "m.onnx", "--sparsity", "0.5"],
            ["--sparsity", "0.5", "m.onnx"],
            ["-q", "m.onnx", "--sparsity=0.5"],
            ["--", "m.onnx"],
        ],
    )
    def test_prune_need_not_be_typed(self, pipeline: Calls, words: list[str]) -> None:
        assert main(words) == 0
        assert pipeline.arguments[0] == Path("m.onnx")
        assert pipeline.options is not None
        assert pipeline.options["recipe"] == (Recipe(sparsity=0.5) if "--" not in words else Recipe())

    def test_file_named_like_a_command(self, pipeline: Calls) -> None:
        assert main(["./bench"]) == 0
        assert pipeline.arguments[0] == Path("./bench")
        assert main(["prune", "bench"]) == 0
        assert pipeline.arguments[0] == Path("bench")

    def test_typo_of_a_command_is_not_taken_for_a_model(
        self, pipeline: Calls, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["inspct", "m.onnx"]) == 2
        assert "did you mean 'inspect'" in capsys.readouterr().err
        assert pipeline.options is None

    def test_file_whose_name_is_close_to_a_command_is_a_model(
        self, pipeline: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("inspct").write_bytes(b"")
        assert main(["inspct"]) == 0
        assert pipeline.arguments[0] == Path("inspct")

    def test_every_command_has_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        known = {"prune", "finetune", "sensitivity", "inspect", "compare", "bench", "export", "doctor", "ops"}
        assert set(cli.commands) == known
        for words in (*([name] for name in cli.commands if name != "ops"), ["ops", "build"], ["ops", "info"]):
            assert main([*words, "--help"]) == 0
            assert main([*words, "-h"]) == 0
            assert "--json" in capsys.readouterr().out
        assert main(["ops", "--help"]) == 0
        assert "build" in capsys.readouterr().out

    def test_help_of_the_group_lists_commands_and_statuses(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--help"]) == 0
        output = capsys.readouterr().out
        assert all(f"\n  {name} " in output for name in cli.commands)
        assert "Exit status" in output and "70 a bug" in output
        assert "..." not in output.split("Commands:")[1].split("Exit")[0]  # no help text is cut

    def test_no_words_show_the_help_on_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 2
        captured = capsys.readouterr()
        assert "Commands:" in captured.err and captured.out == ""

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        import onnxprune

        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"onnxprune {onnxprune.__version__}\n"


class TestPrune:
    def test_defaults(self, pipeline: Calls) -> None:
        assert main(["dir/m.onnx"]) == 0
        assert pipeline.arguments == (Path("dir/m.onnx"), None)  # where to write is for the library to say
        options = pipeline.options
        assert options is not None
        assert options.pop("progress") is not None
        assert options == {
            "recipe": Recipe(),
            "force": False,
            "report": None,
            "dry_run": False,
        }

    def test_run_options(self, pipeline: Calls) -> None:
        assert main(["m.onnx", "-o", "a/b.onnx", "--force", "--report", "r.json", "--dry-run"]) == 0
        assert pipeline.arguments[1] == Path("a/b.onnx")
        options = pipeline.options
        assert options is not None
        assert (options["force"], options["report"], options["dry_run"]) == (True, Path("r.json"), True)

    def test_config_fills_the_recipe_and_the_command_line_wins(self, pipeline: Calls, tmp_path: Path) -> None:
        config = tmp_path / "r.toml"
        config.write_text('sparsity = 0.25\nsamples = 8\nexclude = ["a"]\nrefit = true\nmin-size = 9\n')
        assert (
            main(["m.onnx", "--config", str(config), "--samples", "16", "--no-refit", "--min-size", "1"]) == 0
        )
        assert pipeline.options is not None
        assert pipeline.options["recipe"] == Recipe(
            sparsity=0.25, samples=16, exclude=("a",), refit=False, min_size=1
        )

    def test_default_typed_on_the_command_line_wins_too(self, pipeline: Calls, tmp_path: Path) -> None:
        config = tmp_path / "r.toml"
        config.write_text("samples = 8\n")
        assert main(["m.onnx", "--config", str(config), "--samples", str(Recipe().samples)]) == 0
        assert pipeline.options is not None
        assert pipeline.options["recipe"] == Recipe()

    def test_bad_config_is_a_usage_error(
        self, pipeline: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = tmp_path / "r.toml"
        config.write_text("sparsty = 0.25\n")
        assert main(["m.onnx", "--config", str(config)]) == 2
        assert "sparsty" in capsys.readouterr().err
        assert pipeline.options is None

    def test_dump_config_can_be_read_back(
        self, pipeline: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--dump-config", "--pattern", "2:4", "--exclude", "hé*", "--mean", "0.5"]) == 0
        config = tmp_path / "r.toml"
        config.write_text(capsys.readouterr().out, encoding="utf8")
        assert pipeline.options is None
        assert main(["m.onnx", "--config", str(config)]) == 0
        assert pipeline.options is not None
        assert pipeline.options["recipe"] == Recipe(pattern="2:4", exclude=("hé*",), mean=(0.5,))

    def test_model_is_needed(self, pipeline: Calls, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prune"]) == 2
        assert "no model given" in capsys.readouterr().err

    def test_stdout_is_the_summary_and_stderr_has_the_rest(
        self, pipeline: Calls, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["m.onnx"]) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("3.0x smaller (3.00 -> 1.00 kB)")
        assert "m.pruned.onnx and m.pruned.json" in captured.out
        assert captured.err == ("user code prints this\nwarning: the first\nwarning: the second\\x1b[31m\n")

    def test_json_is_the_report(self, pipeline: Calls, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["m.onnx", "--json"]) == 0
        captured = capsys.readouterr()
        assert Report.from_dict(json.loads(captured.out)) == REPORT
        assert "warning: the first" in captured.err

    def test_quiet_is_the_verdict(self, pipeline: Calls, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["m.onnx", "--quiet"]) == 0
        assert capsys.readouterr().out.count("\n") == 1


def test_report_knows_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Report] = []

    def run(*_: object, **__: object) -> Report:
        values = {name: value for name, value in vars(REPORT).items() if name != "command_line"}
        made.append(Report(**values))
        return made[0]

    stand_in(monkeypatch, "pipeline", "prune", None)
    monkeypatch.setattr(sys.modules["onnxprune.pipeline"], "prune", run)
    assert main(["a b.onnx", "--sparsity", "0.5"]) == 0
    assert made[0].command_line == "onnxprune 'a b.onnx' --sparsity 0.5"
    assert COMMAND_LINE.get() == REPORT.command_line == ""


class TestErrors:
    def test_library_error(self, pipeline: Calls, capsys: pytest.CaptureFixture[str]) -> None:
        pipeline.error = ModelError("m.onnx: empty", "export it again")
        assert main(["m.onnx", "--json"]) == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.endswith("error: m.onnx: empty\nhint: export it again\n")

    def test_bug_has_no_traceback(self, pipeline: Calls, capsys: pytest.CaptureFixture[str]) -> None:
        pipeline.error = KeyError("oops")
        assert main(["m.onnx"]) == 70
        captured = capsys.readouterr()
        assert "internal error: KeyError: 'oops'" in captured.err
        assert "Traceback" not in captured.err

    def test_traceback_on_demand(
        self, pipeline: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ONNXPRUNE_TRACEBACK", "1")
        pipeline.error = KeyError("oops")
        assert main(["m.onnx"]) == 70
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (MemoryError(), 4)])
    def test_interrupt_and_memory(self, pipeline: Calls, error: BaseException, status: int) -> None:
        pipeline.error = error
        assert main(["m.onnx"]) == status

    @pytest.mark.parametrize(
        ("code", "status"), [(SystemExit(143), 143), (SystemExit(None), 0), (SystemExit("text"), 1)]
    )
    def test_exit_from_inside(self, pipeline: Calls, code: SystemExit, status: int) -> None:
        pipeline.error = code
        assert main(["m.onnx"]) == status

    def test_bad_recipe_is_found_before_the_library_is_loaded(self, pipeline: Calls) -> None:
        assert main(["m.onnx", "--sparsity", "1.5"]) == 2
        assert pipeline.options is None


@dataclass(frozen=True)
class FakeLayer:
    name: str = "w"
    nodes: tuple[str, ...] = ("n",)
    kind: str = "gemm"
    shape: tuple[int, ...] = (4, 4)
    dtype: str = "float32"
    matrix: tuple[int, int, int] = (1, 4, 4)
    weights: int = 16
    bytes: int = 64
    zeros: int = 4
    storage: str = "dense"


class TestOtherCommands:
    def test_inspect(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        result = types.SimpleNamespace(
            layers=(FakeLayer(),),
            skipped=(),
            inputs={"x": "float32[N,4]"},
            outputs={},
            attention=None,
            structure=None,
        )
        calls = stand_in(monkeypatch, "inspection", "inspect", result)
        assert main(["inspect", "a.onnx", "--min-size", "1", "--include", "w*"]) == 0
        assert calls.arguments == (Path("a.onnx"), Recipe(min_size=1, include=("w*",)))
        output = capsys.readouterr().out
        assert output.startswith("a.onnx: 1 layer, 16 prunable weights (64 B), 25.0 % zero already\n")
        assert "in   x float32[N,4]" in output

    def test_inspect_json(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        from onnxprune.inspection import Inspection
        from onnxprune.layers import Skip

        result = Inspection({"x": "float32[N]"}, {}, (), (Skip("b", "n", 9, "small"),))
        stand_in(monkeypatch, "inspection", "inspect", result)
        assert main(["inspect", "a.onnx", "b.onnx", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [model["model"] for model in document["models"]] == ["a.onnx", "b.onnx"]
        assert document["models"][0]["skipped"] == [
            {"name": "b", "node": "n", "weights": 9, "reason": "small"}
        ]
        assert document["models"][0]["inputs"] == {"x": "float32[N]"}

    def test_inspect_groups(self, digits_cnn: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(digits_cnn), "--groups", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["models"][0]["structure"]
        assert [group["units"] for group in found["groups"]] == [32, 32, 96, 96, 192, 96]
        assert [item["reason"] for item in found["pinned"]] == ["it reaches the graph output 'logits'"]
        assert main(["inspect", str(digits_cnn), "--groups"]) == 0
        assert "6 groups of units that can be removed" in capsys.readouterr().out

    def test_inspect_attention(self, digits_transformer: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A flag here, though a list of levels in ``prune``."""
        assert main(["inspect", str(digits_transformer), "--attention", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["models"]
        assert [block["form"] for block in found["attention"]["blocks"]] == ["decomposed"] * 2
        assert main(["inspect", str(digits_transformer), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["models"][0]["attention"] is None

    def test_inspect_needs_a_model(self) -> None:
        assert main(["inspect"]) == 2

    @pytest.mark.parametrize(("agrees", "status"), [(True, 0), (False, 1)])
    def test_compare_ends_with_its_verdict(
        self, monkeypatch: pytest.MonkeyPatch, agrees: bool, status: int
    ) -> None:
        result = types.SimpleNamespace(agrees=agrees, to_dict=lambda: {"agrees": agrees})
        calls = stand_in(monkeypatch, "compare", "compare", result)
        words = [
            "compare",
            "a.onnx",
            "b.onnx",
            "--json",
            "--data",
            "x.npz",
            "--eval",
            "e.py:f",
            "--seed",
            "3",
        ]
        assert main(words) == status
        assert calls.arguments == (Path("a.onnx"), Path("b.onnx"))
        assert calls.options is not None
        assert calls.options["recipe"] == Recipe(data="x.npz", eval="e.py:f", seed=3)

    def test_bench(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        result = types.SimpleNamespace(to_dict=lambda: {"models": []})
        calls = stand_in(monkeypatch, "bench", "bench", result)
        words = [
            "bench",
            "a.onnx",
            "b.onnx",
            "--threads",
            "1,2",
            "--rounds",
            "5",
            "--json",
            "--batch-size",
            "4",
        ]
        assert main(words) == 0
        assert calls.arguments == ((Path("a.onnx"), Path("b.onnx")),)
        assert calls.options is not None
        assert calls.options["threads"] == (1, 2)
        assert calls.options["rounds"] == 5
        assert calls.options["recipe"] == Recipe(batch_size=4)
        assert json.loads(capsys.readouterr().out) == {"models": []}

    @pytest.mark.parametrize("value", ["1,x", "", "1.5"])
    def test_bench_refuses_odd_threads(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        calls = stand_in(monkeypatch, "bench", "bench", None)
        assert main(["bench", "a.onnx", "--threads", value]) == 2
        assert calls.options is None

    def test_export(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        result = types.SimpleNamespace(
            output="o.onnx",
            format="dense",
            tensors=2,
            file_bytes_before=1000,
            file_bytes_after=3000,
            kept_dense={},
            speed={1: 1.5},
            note="a note",
        )
        calls = stand_in(monkeypatch, "export", "export", result)
        assert main(["export", "a.onnx", "--format", "dense", "-o", "o.onnx", "--force"]) == 0
        assert calls.arguments == (Path("a.onnx"), Path("o.onnx"))
        progress, recipe = calls.options.pop("progress"), calls.options.pop("recipe")
        assert calls.options == {
            "format": "dense",
            "values": "same",
            "target_runtime": "stock",
            "fix": {},
            "allow_external": False,
            "force": True,
        }
        assert recipe == Recipe() and progress is not None
        said = capsys.readouterr().out
        assert said.startswith("o.onnx: 2 tensors stored as dense, 3.0x larger")
        assert "1.50x faster with the kernels, 1 thread" in said and "a note" in said
        words = ("--format", "packed", "--target-runtime", "cpu", "--data", "x.npz", "--threads", "2")
        assert main(["export", "a.onnx", *words, "-o", "o.onnx"]) == 0
        assert calls.options["target_runtime"] == "cpu"
        assert calls.options["recipe"] == Recipe(data="x.npz", threads=2)
        fixed = ("--fix", "sr=16000", "--fix", "loud=true", "--fix", "size=[1, 2]")
        assert main(["export", "a.onnx", "--format", "dense", "-o", "o.onnx", *fixed]) == 0
        assert calls.options["fix"] == {"sr": 16000, "loud": True, "size": [1, 2]}

    @pytest.mark.parametrize("pair", ["sr", "sr=", "=1", "sr=16k"])
    def test_export_needs_values_of_fixed_inputs(self, pair: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["export", "a.onnx", "--format", "dense", "-o", "o.onnx", "--fix", pair]) == 2
        assert f"--fix is '{pair}', wanted INPUT=VALUE" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words", [["-o", "o.onnx"], ["--format", "dense"], ["-o", "o", "--format", "zip"]]
    )
    def test_export_needs_format_and_output(self, words: list[str]) -> None:
        assert main(["export", "a.onnx", *words]) == 2

    def test_ops_build(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        calls = stand_in(monkeypatch, "opsbuild", "build", Path("/cache/libonnxprune_ops.so"))
        assert main(["ops", "build"]) == 0
        assert calls.options == {"force": False, "cuda": False, "targets": ()}
        assert capsys.readouterr().out.strip() == "/cache/libonnxprune_ops.so"
        assert main(["ops", "build", "--force", "--json", "--quiet"]) == 0
        assert calls.options == {"force": True, "cuda": False, "targets": ()}
        assert json.loads(capsys.readouterr().out)["library"] == "/cache/libonnxprune_ops.so"
        assert main(["ops", "build", "--cuda", "--arch", "80,90"]) == 0
        assert calls.options == {"force": False, "cuda": True, "targets": ("80", "90")}
        assert capsys.readouterr().out.splitlines()[-1] == "/cache/libonnxprune_cuda.so"

    def test_ops_build_without_a_compiler(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stand_in(monkeypatch, "opsbuild", "build", None).error = ResourceError(
            "no C++ compiler", "install one"
        )
        assert main(["ops", "build"]) == 4
        assert capsys.readouterr().err.splitlines()[-2:] == ["error: no C++ compiler", "hint: install one"]

    def test_ops_build_verbose(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from onnxprune import cudabuild

        stand_in(monkeypatch, "opsbuild", "build", Path("/cache/libonnxprune_ops.so"))
        uses = (cudabuild.KernelUse("delta<8, fp16>", "sm_80", 56, 0, 0, 16),)
        monkeypatch.setattr(cudabuild, "usage", lambda library: uses)
        assert main(["ops", "build", "--cuda", "--verbose"]) == 0
        out = capsys.readouterr().out
        assert "delta<8, fp16>" in out and "56 / 0" in out and "sm_80" in out
        assert main(["ops", "build", "--cuda", "--verbose", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kernels"][0]["registers"] == 56

    def test_ops_tune(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        from onnxprune.kernels import tune
        from onnxprune.kernels.devicetable import DeviceTable, Measured, read_table

        entries = (
            Measured("delta", 64, 32, 0.1, 1, 1.0, 2.5, 100),
            Measured("delta", 64, 32, 0.1, 4, 1.0, 0.5, 1),
        )
        table = DeviceTable("A GPU", "", 1.0, entries)
        monkeypatch.setattr(tune, "open_kernels", lambda: None)
        calls = Calls(result=table)
        monkeypatch.setattr(tune, "tune", calls)
        path = tmp_path / "table.json"
        assert main(["ops", "tune", "--shape", "64x32", "--batch", "1,4", "-o", str(path)]) == 0
        assert calls.options["shapes"] == ((64, 32),) and calls.options["rows"] == (1, 4)
        out = capsys.readouterr().out
        assert "2.50" in out and "0.50" in out and "M=4" in out
        assert read_table(path) == table
        assert main(["ops", "tune", "--shape", "64"]) == 2
        monkeypatch.undo()
        assert main(["ops", "tune"]) == 4  # no GPU here
        assert "CUDA" in capsys.readouterr().err

    @pytest.mark.parametrize("problem", ["", "the kernels are not built"])
    def test_ops_info(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problem: str
    ) -> None:
        from onnxprune import opsinfo

        found = opsinfo.OpsInfo(
            "" if problem else "/lib.so", problem, "avx2", ("avx2",), 125, "12", "1.20", "1.17", ""
        )
        monkeypatch.setattr(opsinfo, "info", lambda: found)
        assert main(["ops", "info"]) == 0
        out = capsys.readouterr().out
        assert "1.20 (wanted: 1.17 or newer)" in out
        assert out.splitlines()[-1] == (
            "no kernels: the kernels are not built" if problem else "packed models run on the kernels"
        )
        assert main(["ops", "info", "--quiet"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1
        assert main(["ops", "info", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["schema_version"] == 1
        assert (document["level"], document["levels"], document["problem"]) == ("avx2", ["avx2"], problem)

    def test_ops_of_an_unknown_kind_is_usage(self) -> None:
        assert main(["ops", "destroy"]) == 2

    @pytest.mark.parametrize(("level", "status"), [("ok", 0), ("note", 0), ("problem", 1)])
    def test_doctor(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: str, status: int
    ) -> None:
        from onnxprune import doctor

        checks = (doctor.Check("python", "ok", "3"), doctor.Check("onnx", level, "x", "mend it"))  # type: ignore[arg-type]
        monkeypatch.setattr(doctor, "examine", lambda: checks)
        assert main(["doctor"]) == status
        assert ("ready to prune" in capsys.readouterr().out) is (status == 0)
        assert main(["doctor", "--json"]) == status
        document = json.loads(capsys.readouterr().out)
        assert document["healthy"] is (status == 0)
        assert document["checks"][1] == {"name": "onnx", "level": level, "detail": "x", "hint": "mend it"}
        assert main(["doctor", "--quiet"]) == status
        assert ("mend it" in capsys.readouterr().out) is (status == 1)


@pytest.fixture
def process() -> Iterator[None]:
    """Put back what ``prepare_process`` changes."""
    import signal

    handler, show = signal.getsignal(signal.SIGTERM), warnings.showwarning
    yield
    signal.signal(signal.SIGTERM, handler)
    warnings.showwarning = show


def test_kill_unwinds(process: None, pipeline: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    def run(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        import time

        time.sleep(5)

    monkeypatch.setattr(cli_module, "prepare_process", terminal.prepare_process)
    monkeypatch.setattr(sys.modules["onnxprune.pipeline"], "prune", run)
    assert main(["m.onnx"]) == terminal.EXIT_TERMINATED


class TestFinetune:
    def test_config_without_what_is_for_pruning(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The report of the pruned model serves, and the command line wins."""
        calls = stand_in(monkeypatch, "finetuning", "distill", REPORT)
        words = ["finetune", "p.onnx", "--teacher", "m.onnx", "--lr", "0.01", "--config"]
        toml = tmp_path / "r.toml"
        toml.write_text('sparsity = 0.25\nschedule = "cubic:3"\nsteps = 7\nlr = 0.5\n')
        report = tmp_path / "p.json"
        report.write_text(json.dumps({"recipe": {"sparsity": 0.25, "steps": 7, "schedule": "cubic:3"}}))
        for config in (toml, report):
            assert main([*words, str(config)]) == 0
            assert calls.options is not None
            assert calls.options["recipe"] == Recipe(finetune=True, steps=7, lr=0.01)

    def test_bad_config(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        config = tmp_path / "r.toml"
        config.write_text("stepps = 7\n")
        assert main(["finetune", "p.onnx", "--teacher", "m.onnx", "--config", str(config)]) == 2
        assert "stepps" in capsys.readouterr().err

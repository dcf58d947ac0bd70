"""The recipe: limits, types, TOML, and that it and the command line are the same thing."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.recipe import Recipe
from onnxprune.recipe.choices import (
    ALLOCATIONS,
    BUDGETS,
    CRITERIA,
    FORMATS,
    LAYOUTS,
    METRICS,
    SCOPES,
    SELECTIONS,
    SOLVERS,
    SOLVES,
    TARGETS,
    VALUES,
)

FIELDS = {item.name: item for item in dataclasses.fields(Recipe)}


def test_defaults_are_a_valid_recipe() -> None:
    assert Recipe() == Recipe.from_dict(Recipe().to_dict())


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().sparsity = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsity": 1.0}, "--sparsity"),
        ({"sparsity": -0.1}, "--sparsity"),
        ({"sparsity": 70.0}, "--sparsity"),
        ({"sparsity": math.nan}, "--sparsity"),
        ({"criterion": "best"}, "obs, wanda, magnitude"),
        ({"criterion": "obs+best"}, "joined by +"),
        ({"criterion": "fisher+fisher"}, "names fisher twice"),
        ({"alpha": -1.0, "criterion": "adaptive"}, "--alpha is -1"),
        ({"alpha": 2.0}, "--alpha is for --criterion adaptive"),
        ({"selection": "luck"}, "rank, sample"),
        ({"granularity": "head"}, "weight, neuron, hybrid"),
        ({"granularity": "hybrid:0.0"}, "0 < S < 1"),
        ({"granularity": "hybrid:1.5"}, "0 < S < 1"),
        ({"granularity": "neuron", "pattern": "2:4"}, "--granularity neuron and --pattern 2:4"),
        ({"granularity": "hybrid", "solver": "sweep"}, "--solver sweep walks them"),
        ({"granularity": "hybrid", "selection": "sample"}, "--selection sample"),
        ({"threshold": "0.5"}, "abs:X, rel:X, attention:X"),
        ({"threshold": "mean", "sparsity": 0.5}, "--sparsity and --threshold"),
        ({"threshold": "mean", "pattern": "2:4"}, "--pattern 2:4 does not"),
        ({"threshold": "mean", "granularity": "hybrid"}, "weights or neurons"),
        ({"threshold": "mean", "allocation": "uniform"}, "--allocation uniform"),
        ({"threshold": "mean", "removal": 0.0}, "--removal is 0"),
        ({"removal": 0.5}, "--removal is for --threshold"),
        ({"threshold": "attention:1"}, "--criterion obs chooses for itself"),
        ({"threshold": "attention:1", "criterion": "attention", "selection": "sample"}, "--selection sample"),
        ({"allocation": "even"}, "sensitivity"),
        ({"solve": "fast"}, "one-shot"),
        ({"attention": ("tokens",)}, "off, token, head, channel, layer"),
        ({"attention": ("off", "token")}, "--attention off goes with nothing else"),
        ({"attention": ()}, "--attention off goes with nothing else"),
        ({"format": "zip"}, "packed"),
        ({"values": "int4"}, "fp16"),
        ({"values": "fp16", "format": "dense"}, "--values fp16 is for packed weights, --format is dense"),
        ({"layout": "chw"}, "nchw"),
        ({"structured_sparsity": 0.5}, "--structured-sparsity is for structured patterns"),
        ({"pattern": "2:4", "round_to": 4}, "--round-to is for structured patterns"),
        ({"pattern": "structured", "round_to": 0}, "--round-to is 0"),
        ({"pattern": "structured", "structured_sparsity": 0.5}, "has one stage"),
        ({"pattern": "structured+2:4", "structured_sparsity": 1.0}, "--structured-sparsity is 1"),
        ({"pattern": "structured+2:4", "sparsity": 0.4}, "both stages together"),
        ({"pattern": "head,tail"}, "channel, neuron, head"),
        ({"pattern": "head+fast"}, "--pattern is 'head+fast'"),
        ({"pattern": "head+auto"}, "structured+auto is for weights one by one"),
        ({"pattern": "head", "threshold": "mean"}, "removes whole units"),
        ({"pattern": "head", "target_size": "5MB"}, "--target-size is for weights"),
        ({"pattern": "head", "criterion": "fisher"}, "removes whole units"),
        ({"pattern": "head+2:4", "finetune": True, "schedule": "cubic:3"}, "--schedule cubic:3"),
        ({"pattern": "head+2:4", "min_agreement": 0.9}, "--min-agreement finds one share"),
        ({"pattern": "head+2:4", "target_speedup": "2x"}, "reached by removing units alone"),
        ({"pattern": "head", "target_speedup": "2x", "budget": "flops"}, "--budget says"),
        ({"pattern": "random"}, "N:M"),
        ({"pattern": "4:4"}, "0 < N < M"),
        ({"pattern": "0:4"}, "0 < N < M"),
        ({"pattern": "block:0x4"}, "1x1"),
        ({"pattern": "block:4"}, "block:RxC"),
        ({"pattern": "2:4", "sparsity": 0.6}, "more than pattern 2:4 can give"),
        ({"pattern": "2:4,adjacent"}, "block:RxC"),
        ({"pattern": "auto", "allocation": "uniform"}, "--pattern auto"),
        ({"pattern": "auto", "allocation": "owl"}, "--allocation owl does not"),
        ({"target_speedup": "half"}, "--target-speedup is 'half'"),
        ({"target_speedup": "2x", "target_runtime": "stock"}, "--target-runtime stock has none"),
        ({"target_speedup": "2x", "pattern": "2:4"}, "pattern 2:4 has one"),
        ({"target_size": "big"}, "--target-size is 'big'"),
        ({"target_size": "1MB", "sparsity": 0.5}, "--target-size and --sparsity each say"),
        ({"target_size": "1MB", "target_speedup": "2x"}, "--target-size and --target-speedup each say"),
        ({"target_size": "1MB", "format": "dense"}, "--target-size needs packed weights"),
        ({"plan": "p.json", "sparsity": 0.5}, "--plan and --sparsity each say"),
        ({"plan": "p.json", "allocation": "erk"}, "--plan says how much each layer loses"),
        ({"target_speedup": "2x", "sparsity": 0.5}, "--target-speedup and --sparsity each say"),
        ({"granularity": "neuron", "solver": "sweep"}, "--solver sweep walks them"),
        (
            {"attention": ("layer",), "allocation": "erk"},
            "--attention layer weighs what",
        ),
        ({"attention": ("token",), "threshold": "mean"}, "attention does not weigh"),
        ({"budget": "flops", "allocation": "erk"}, "--allocation erk knows no damage"),
        ({"budget": "flops", "plan": "p.json"}, "--budget says what --sparsity is a share of"),
        ({"budget": "bytes"}, "weights, flops"),
        ({"min_agreement": 0.9, "target_size": "1MB"}, "--target-size and --min-agreement each say"),
        ({"min_agreement": 0.9, "threshold": "mean"}, "--threshold and --min-agreement each say"),
        ({"samples": 0}, "--samples"),
        ({"min_size": 0}, "--min-size"),
        ({"max_length": -1}, "--max-length"),
        ({"batch_size": 0}, "--batch-size"),
        ({"threads": 0}, "--threads"),
        ({"resize": 0}, "--resize"),
        ({"damping": 0.0}, "--damping"),
        ({"damping": 10.0}, "--damping"),
        ({"damping": math.nan}, "--damping"),
        ({"damping": 1e-300}, "--damping"),
        ({"max_memory": 0.0}, "--max-memory"),
        ({"max_memory": math.nan}, "--max-memory"),
        ({"max_memory": math.inf}, "--max-memory"),
        ({"seed": -1}, "--seed"),
        ({"mean": (0.5, math.nan)}, "--mean"),
        ({"std": (math.inf,)}, "--std"),
        ({"labels": "label"}, "--labels is for fine-tuning, for --metric"),
        ({"max_drop": "much", "eval": "e.py:f"}, "--max-drop is 'much'"),
        ({"max_drop": "1%", "eval": "e.py:f", "sparsity": 0.5}, "--sparsity 0.5 sets it"),
        ({"min_agreement": 0.98, "sparsity": 0.5}, "--min-agreement finds the sparsity"),
        ({"min_agreement": 0.98, "target_speedup": "2x"}, "--target-speedup and --min-agreement each say"),
        ({"min_agreement": 0.98, "finetune": True, "schedule": "cubic:3"}, "--schedule cubic:3"),
        ({"max_drop": "1%"}, "--max-drop needs a metric"),
        ({"min_agreement": 0.0}, "--min-agreement is 0"),
        ({"min_agreement": 1.5}, "--min-agreement is 1.5"),
        ({"min_agreement": math.nan}, "--min-agreement is nan"),
        ({"metric": "accuracy"}, "--metric accuracy needs labels"),
        ({"metric": "accuracy", "labels": "y", "eval": "e.py:f"}, "--eval and --metric"),
        ({"metric": "kindness", "labels": "y"}, "--metric is 'kindness'"),
        ({"patience": 3}, "--patience is for a search"),
        ({"time_limit": 3.0}, "--time-limit is for a search"),
        ({"patience": 0, "min_agreement": 0.9}, "--patience is 0"),
        ({"time_limit": 0.0, "min_agreement": 0.9}, "--time-limit is 0"),
        ({"time_limit": math.inf, "min_agreement": 0.9}, "--time-limit is inf"),
        ({"labels": "", "finetune": True}, "--labels is empty"),
        ({"labels": "label", "finetune": True, "scope": "block"}, "--scope block"),
        ({"labels": "label", "finetune": True, "augment": ("flip", "mix")}, "--augment mix"),
    ],
)
def test_refuses_values_out_of_range_and_names_the_option(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["selection", "allocation", "solve", "solver", "format", "values", "layout"])
def test_every_choice_is_accepted(name: str) -> None:
    for choice in FIELDS[name].metadata["choices"]:
        assert getattr(Recipe(**{name: choice}), name) == choice


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_is_accepted_and_named_in_the_help(criterion: str) -> None:
    assert Recipe(criterion=criterion).criterion == criterion
    assert criterion in FIELDS["criterion"].metadata["help"]


def test_labels_serve_gradients_without_fine_tuning() -> None:
    assert Recipe(criterion="obs+fisher", labels="label").labels == "label"
    with pytest.raises(UsageError, match="--labels is for fine-tuning"):
        Recipe(criterion="wanda", labels="label")


def test_metrics_are_those_that_there_are() -> None:
    from onnxprune import metrics

    assert tuple(metrics.METRICS) == METRICS


def test_sparsity_and_a_floor_say_what_to_drop() -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(max_drop="1%", eval="e.py:f", sparsity=0.5)
    assert caught.value.hint == "drop --sparsity to search, or --max-drop to prune to that sparsity"


def test_choices_are_the_public_tuples() -> None:
    found = {name: item.metadata["choices"] for name, item in FIELDS.items() if item.metadata["choices"]}
    assert found == {
        "selection": SELECTIONS,
        "allocation": ALLOCATIONS,
        "budget": BUDGETS,
        "solve": SOLVES,
        "solver": SOLVERS,
        "format": FORMATS,
        "values": VALUES,
        "target_runtime": TARGETS,
        "layout": LAYOUTS,
        "scope": SCOPES,
        "metric": METRICS,
    }


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({}, "cpu"),
        ({"target_runtime": "stock"}, "stock"),
        ({"target_runtime": "cuda", "batch": 8, "cuda_table": "t.json"}, "cuda"),
        ({"format": "dense"}, "stock"),
        ({"format": "sparse-initializer"}, "stock"),
    ],
)
def test_target(changes: dict[str, Any], target: str) -> None:
    assert Recipe(**changes).target == target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_runtime": "cuda", "format": "dense"}, "--format is dense"),
        ({"batch": 8}, "--batch is for --target-runtime cuda"),
        ({"target_runtime": "stock", "cuda_table": "t"}, "--cuda-table is for --target-runtime cuda"),
        ({"target_runtime": "cuda", "batch": 0}, "--batch is 0, wanted at least 1"),
        ({"target_runtime": "cuda", "target_speedup": "2x"}, "--target-runtime cuda is not predicted"),
        ({"target_runtime": "cpu", "format": "dense"}, "--format is dense"),
        ({"target_runtime": "npu"}, "--target-runtime is 'npu', wanted one of cpu, stock, cuda"),
    ],
)
def test_targets_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({}, 0.7),
        ({"sparsity": 0.0}, 0.0),
        ({"sparsity": 0.35}, 0.35),
        ({"pattern": "2:4"}, 0.5),
        ({"pattern": "1:4"}, 0.75),
        ({"pattern": "2:4", "sparsity": 0.3}, 0.3),
        ({"pattern": "2:4", "sparsity": 0.5}, 0.5),
        ({"pattern": "block:4x1"}, 0.7),
        ({"pattern": "block:16x1", "sparsity": 0.5}, 0.5),
    ],
)
def test_target_sparsity(changes: dict[str, Any], target: float) -> None:
    assert Recipe(**changes).target_sparsity == pytest.approx(target)


def test_every_field_has_help() -> None:
    for name, item in FIELDS.items():
        text = item.metadata["help"]
        assert text and text[0] != " " and text.endswith((".", ")")), name


class TestFromDict:
    def test_unknown_key_is_named_with_the_known_ones(self) -> None:
        with pytest.raises(UsageError, match="unknown key 'sparsty'") as caught:
            Recipe.from_dict({"sparsty": 0.7})
        assert "sparsity" in caught.value.hint

    def test_hyphens_are_underscores(self) -> None:
        assert Recipe.from_dict({"min-size": 12, "max_length": 5}) == Recipe(min_size=12, max_length=5)

    def test_newer_schema_is_refused(self) -> None:
        with pytest.raises(UsageError, match="schema_version 2"):
            Recipe.from_dict({"schema_version": 2})

    def test_does_not_change_its_argument(self) -> None:
        values = {"schema_version": 1, "min-size": 12}
        Recipe.from_dict(values)
        assert values == {"schema_version": 1, "min-size": 12}

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("sparsity", "0.7"),
            ("sparsity", True),
            ("samples", 1.5),
            ("samples", True),
            ("samples", None),
            ("refit", 1),
            ("refit", "yes"),
            ("data", 3),
            ("include", [1]),
            ("mean", ["a"]),
            ("pattern", None),
        ],
    )
    def test_wrong_types_are_refused_by_name(self, key: str, value: object) -> None:
        with pytest.raises(UsageError, match=key):
            Recipe.from_dict({key: value})

    def test_integers_serve_as_floats(self) -> None:
        recipe = Recipe.from_dict({"sparsity": 0, "mean": [0, 1], "max_memory": 2})
        assert (recipe.sparsity, recipe.mean, recipe.max_memory) == (0.0, (0.0, 1.0), 2.0)
        assert all(type(value) is float for value in (recipe.sparsity, *recipe.mean, recipe.max_memory))

    def test_one_glob_needs_no_list(self) -> None:
        assert Recipe.from_dict({"exclude": "head*"}).exclude == ("head*",)


class TestToml:
    def test_reads_the_whole_file(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.toml"
        path.write_text('sparsity = 0.5\nexclude = ["a", "b*"]\n')
        assert Recipe.from_dict(Recipe.from_toml(path)) == Recipe(sparsity=0.5, exclude=("a", "b*"))

    def test_reads_the_table_of_a_pyproject(self, tmp_path: Path) -> None:
        path = tmp_path / "pyproject.toml"
        path.write_text('[project]\nname = "x"\n[tool.onnxprune]\nsparsity = 0.25\n')
        assert Recipe.from_dict(Recipe.from_toml(path)) == Recipe(sparsity=0.25)

    @pytest.mark.parametrize("content", [b"sparsity = ", b"\xff\xfe", b"sparsity 0.7"])
    def test_broken_file_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "broken.toml"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"broken\.toml"):
            Recipe.from_toml(path)

    def test_missing_file_and_folder_are_named(self, tmp_path: Path) -> None:
        for path in (tmp_path / "nowhere.toml", tmp_path):
            with pytest.raises(UsageError, match="cannot read recipe"):
                Recipe.from_toml(path)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
RECIPES = st.builds(
    Recipe,
    sparsity=st.none() | st.floats(0, 0.5),
    pattern=st.sampled_from(["unstructured", "2:4", "1:4", "block:4x1"]),
    criterion=st.sampled_from(CRITERIA),
    refit=st.booleans(),
    damping=st.floats(1e-8, 9.9),
    include=st.lists(TEXT, max_size=3).map(tuple),
    exclude=st.lists(TEXT, max_size=3).map(tuple),
    data=st.none() | TEXT,
    mean=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(tuple),
    batch_size=st.none() | st.integers(1, 2**40),
    max_memory=st.floats(1e-3, 1e6),
    seed=st.integers(0, 2**63),
)


@given(RECIPES)
def test_json_round_trip(recipe: Recipe) -> None:
    import json

    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@given(RECIPES)
def test_toml_round_trip(recipe: Recipe) -> None:
    from onnxprune.options import to_toml

    assert Recipe.from_dict(tomllib.loads(to_toml(recipe))) == recipe


class TestCommandLine:
    """Every option of ``prune`` is a field of the recipe and the other way round."""

    # What only makes sense for one run at a terminal and is no setting of it.
    RUN_ONLY = frozenset(
        ("output", "force", "report", "config", "dump_config", "dry_run", "as_json", "quiet", "model")
    )

    def parameters(self) -> dict[str, Any]:
        from onnxprune.cli import cli

        return {param.name: param for param in cli.commands["prune"].params}

    def test_every_option_is_a_field(self) -> None:
        assert set(self.parameters()) - self.RUN_ONLY == set(FIELDS)

    def test_options_are_spelled_like_their_fields(self) -> None:
        for name, param in self.parameters().items():
            if name in FIELDS:
                assert param.opts == ["--" + name.replace("_", "-")], name

    def test_switches_have_a_no_form(self) -> None:
        for name, item in FIELDS.items():
            off = self.parameters()[name].secondary_opts
            assert off == (["--no-" + name.replace("_", "-")] if item.type == "bool" else []), name

    def test_help_and_choices_come_from_the_field(self) -> None:
        for name, item in FIELDS.items():
            param = self.parameters()[name]
            assert param.help.startswith(item.metadata["help"]), name
            if item.metadata["choices"]:
                assert tuple(param.type.choices) == item.metadata["choices"], name

    def test_help_tells_the_default(self) -> None:
        for name in FIELDS:
            default = getattr(Recipe(), name)
            if default not in (None, ()):
                assert "(default: " in self.parameters()[name].help, name

    def test_every_field_has_one_heading(self) -> None:
        from onnxprune.options import SECTIONS

        listed = [name for names in SECTIONS.values() for name in names]
        assert sorted(listed) == sorted(FIELDS)

    def test_data_fields_exist(self) -> None:
        from onnxprune.options import DATA_FIELDS

        assert set(DATA_FIELDS) <= set(FIELDS)

    SAMPLES: tuple[tuple[list[str], dict[str, Any]], ...] = (
        (["--sparsity", "0.6"], {"sparsity": 0.6}),
        (["--pattern", "2:4"], {"pattern": "2:4"}),
        (["--pattern", "auto", "--target-speedup", "2x"], {"pattern": "auto", "target_speedup": "2x"}),
        (["--target-size", "5MB"], {"target_size": "5MB"}),
        (["--budget", "flops"], {"budget": "flops"}),
        (["--plan", "p.json"], {"plan": "p.json"}),
        (["--pattern", "channel", "--round-to", "4"], {"pattern": "channel", "round_to": 4}),
        (
            ["--pattern", "head+2:4", "--structured-sparsity", "0.3", "--sparsity", "0.65"],
            {"pattern": "head+2:4", "structured_sparsity": 0.3, "sparsity": 0.65},
        ),
        (["--criterion", "wanda"], {"criterion": "wanda"}),
        (["--criterion", "adaptive", "--alpha", "2"], {"criterion": "adaptive", "alpha": 2.0}),
        (["--threshold", "rel:0.5", "--removal", "0.8"], {"threshold": "rel:0.5", "removal": 0.8}),
        (["--selection", "sample"], {"selection": "sample"}),
        (["--granularity", "hybrid:0.3"], {"granularity": "hybrid:0.3"}),
        (["--allocation", "uniform"], {"allocation": "uniform"}),
        (["--solve", "one-shot"], {"solve": "one-shot"}),
        (["--solver", "sweep"], {"solver": "sweep"}),
        (["--no-refit"], {"refit": False}),
        (["--damping", "0.1"], {"damping": 0.1}),
        (["--include", "a*", "--include", "b"], {"include": ("a*", "b")}),
        (["--exclude", "head"], {"exclude": ("head",)}),
        (["--min-size", "1"], {"min_size": 1}),
        (["--format", "dense"], {"format": "dense"}),
        (["--values", "fp16"], {"values": "fp16"}),
        (["--target-runtime", "stock"], {"target_runtime": "stock"}),
        (
            ["--target-runtime", "cuda", "--batch", "8", "--cuda-table", "t.json"],
            {"target_runtime": "cuda", "batch": 8, "cuda_table": "t.json"},
        ),
        (["--data", "x.npz"], {"data": "x.npz"}),
        (["--samples", "8"], {"samples": 8}),
        (["--batch-size", "4"], {"batch_size": 4}),
        (["--mean", "0.485,0.456,0.406"], {"mean": (0.485, 0.456, 0.406)}),
        (["--std", "127.5"], {"std": (127.5,)}),
        (["--mean", "-1, 2"], {"mean": (-1.0, 2.0)}),
        (["--resize", "256"], {"resize": 256}),
        (["--layout", "nhwc"], {"layout": "nhwc"}),
        (["--tokenizer", "t.json"], {"tokenizer": "t.json"}),
        (["--max-length", "64"], {"max_length": 64}),
        (["--eval", "e.py:f"], {"eval": "e.py:f"}),
        (["--max-drop", "1%", "--eval", "e.py:f"], {"max_drop": "1%", "eval": "e.py:f"}),
        (["--min-agreement", "0.98"], {"min_agreement": 0.98}),
        (["--metric", "f1", "--labels", "y"], {"metric": "f1", "labels": "y"}),
        (["--min-agreement", "0.9", "--patience", "3"], {"min_agreement": 0.9, "patience": 3}),
        (["--min-agreement", "0.9", "--time-limit", "7.5"], {"min_agreement": 0.9, "time_limit": 7.5}),
        (["--seed", "3"], {"seed": 3}),
        (["--threads", "2"], {"threads": 2}),
        (["--max-memory", "0.5"], {"max_memory": 0.5}),
        (["--allow-external"], {"allow_external": True}),
        (["--no-cache"], {"cache": False}),
        (["--finetune"], {"finetune": True}),
        (["--finetune", "--steps", "20"], {"finetune": True, "steps": 20}),
        (["--finetune", "--minutes", "1.5"], {"finetune": True, "minutes": 1.5}),
        (["--finetune", "--lr", "3e-4"], {"finetune": True, "lr": 3e-4}),
        (["--finetune", "--loss", "f.py:loss"], {"finetune": True, "loss": "f.py:loss"}),
        (["--attention", "token", "--attention", "layer"], {"attention": ("token", "layer")}),
        (
            ["--finetune", "--augment", "flip", "--augment", "mix"],
            {"finetune": True, "augment": ("flip", "mix")},
        ),
        (["--finetune", "--labels", "label"], {"finetune": True, "labels": "label"}),
        (["--finetune", "--scope", "block"], {"finetune": True, "scope": "block"}),
        (["--finetune", "--schedule", "cubic:3"], {"finetune": True, "schedule": "cubic:3"}),
    )

    def test_every_field_has_a_sample(self) -> None:
        assert {name for _, values in self.SAMPLES for name in values} == set(FIELDS)

    @pytest.mark.parametrize(("words", "values"), SAMPLES, ids=lambda item: str(item)[:20])
    def test_option_fills_its_field_and_nothing_else(self, words: list[str], values: dict[str, Any]) -> None:
        from onnxprune.cli import cli
        from onnxprune.options import given

        with cli.commands["prune"].make_context(
            "prune", ["m.onnx", *words], help_option_names=["-h", "--help"]
        ) as ctx:
            typed = given(ctx)
        assert typed == values
        assert Recipe.from_dict(typed) == Recipe(**values)

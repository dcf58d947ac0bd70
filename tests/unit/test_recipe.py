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
from onnxprune.recipe import (
    ALLOCATIONS,
    CRITERIA,
    FORMATS,
    LAYOUTS,
    SCOPES,
    SOLVERS,
    SOLVES,
    TARGETS,
    VALUES,
    Recipe,
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
        ({"allocation": "even"}, "sensitivity"),
        ({"solve": "fast"}, "one-shot"),
        ({"attention": ("tokens",)}, "off, token, head, layer"),
        ({"attention": ("off", "token")}, "--attention off goes with nothing else"),
        ({"attention": ()}, "--attention off goes with nothing else"),
        ({"format": "zip"}, "packed"),
        ({"values": "int4"}, "fp16"),
        ({"values": "fp16", "format": "dense"}, "--values fp16 is for packed weights, --format is dense"),
        ({"layout": "chw"}, "nchw"),
        ({"pattern": "random"}, "N:M"),
        ({"pattern": "4:4"}, "0 < N < M"),
        ({"pattern": "0:4"}, "0 < N < M"),
        ({"pattern": "block:0x4"}, "1x1"),
        ({"pattern": "block:4"}, "block:RxC"),
        ({"pattern": "2:4", "sparsity": 0.6}, "more than pattern 2:4 can give"),
        ({"pattern": "2:4,adjacent"}, "block:RxC"),
        ({"pattern": "auto", "allocation": "uniform"}, "--pattern auto"),
        ({"speedup": 2.0}, "--pattern auto"),
        ({"pattern": "auto", "speedup": 0.5}, "--speedup"),
        ({"pattern": "auto", "speedup": math.inf}, "--speedup"),
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
        ({"labels": "label"}, "--labels is for fine-tuning"),
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


@pytest.mark.parametrize("name", ["criterion", "allocation", "solve", "solver", "format", "values", "layout"])
def test_every_choice_is_accepted(name: str) -> None:
    for choice in FIELDS[name].metadata["choices"]:
        assert getattr(Recipe(**{name: choice}), name) == choice


def test_choices_are_the_public_tuples() -> None:
    found = {name: item.metadata["choices"] for name, item in FIELDS.items() if item.metadata["choices"]}
    assert found == {
        "criterion": CRITERIA,
        "allocation": ALLOCATIONS,
        "solve": SOLVES,
        "solver": SOLVERS,
        "format": FORMATS,
        "values": VALUES,
        "target_runtime": TARGETS,
        "layout": LAYOUTS,
        "scope": SCOPES,
    }


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({}, "cpu"),
        ({"target_runtime": "stock"}, "stock"),
        ({"format": "dense"}, "stock"),
        ({"format": "sparse-initializer"}, "stock"),
    ],
)
def test_target(changes: dict[str, Any], target: str) -> None:
    assert Recipe(**changes).target == target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_runtime": "cuda"}, "--target-runtime cuda"),
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
        (["--pattern", "auto", "--speedup", "2"], {"pattern": "auto", "speedup": 2.0}),
        (["--criterion", "wanda"], {"criterion": "wanda"}),
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

"""Options and recipe files; that options and recipe fields agree is in test_recipe.py."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import click
import pytest

from onnxprune.cli import cli
from onnxprune.errors import UsageError
from onnxprune.options import DATA_FIELDS, SECTIONS, given, read_config, recipe_options, to_toml
from onnxprune.recipe import Recipe


def parse(*words: str) -> dict[str, object]:
    with cli.commands["prune"].make_context("prune", ["m.onnx", *words]) as ctx:
        return given(ctx)


def test_given_knows_what_was_typed() -> None:
    assert parse() == {}
    assert parse("--samples", "256") == {"samples": 256}  # the default, but typed
    assert parse("--refit") == {"refit": True}
    assert parse("--no-refit", "--refit") == {"refit": True}  # the last one counts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mean", "a,b"), "such as 0.485,0.456,0.406"),
        (("--mean", ""), "such as 0.485,0.456,0.406"),
        (("--mean", "1,,2"), "such as 0.485,0.456,0.406"),
        (("--samples", "many"), "'many' is not a valid int"),
        (("--sparsity", "70%"), "not a valid float"),
        (("--solver", "best"), "'admm', 'sweep'"),
        (("--sparsty", "0.7"), "sparsity"),
    ],
)
def test_bad_values_are_usage_errors(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse(*words)
    assert message in caught.value.format_message()


def test_negative_numbers_are_values_and_not_options() -> None:
    assert parse("--mean", "-1,-2") == {"mean": (-1.0, -2.0)}


def test_a_command_may_take_some_of_the_options() -> None:
    @click.command()
    @recipe_options(("samples", "mean"))
    def command(**_: object) -> None:
        """Do."""

    assert [param.name for param in command.params] == ["samples", "mean"]


@pytest.mark.parametrize("command", ["compare", "bench"])
def test_commands_that_run_models_take_all_data_options(command: str) -> None:
    assert set(DATA_FIELDS) <= {param.name for param in cli.commands[command].params}


class TestHelp:
    def help(self, command: str = "prune") -> str:
        with cli.commands[command].make_context("x", [], resilient_parsing=True) as ctx:
            return cli.commands[command].get_help(ctx)

    def test_has_headings_in_order(self) -> None:
        places = [self.help().index(f"\n{title}:\n") for title in ("Output", *SECTIONS)]
        assert places == sorted(places)

    def test_lists_each_option_once(self) -> None:
        for name in Recipe().to_dict():
            if name != "schema_version":
                assert self.help().count(f"  --{name.replace('_', '-')} ") == 1, name

    def test_leaves_empty_headings_out(self) -> None:
        assert "How it is stored" not in self.help("compare")


class TestToml:
    def test_is_complete_and_commented(self) -> None:
        text = to_toml(Recipe(sparsity=0.5, exclude=('he"ad\\', "\x7f\n"), mean=(0.5, 1e-7)))
        assert tomllib.loads(text)["exclude"] == ['he"ad\\', "\x7f\n"]
        for name in Recipe().to_dict():
            assert f"{name} =" in text
        for title in SECTIONS:
            assert f"# {title}\n" in text

    def test_fields_without_a_value_can_be_filled_in(self) -> None:
        text = to_toml(Recipe()).replace("# threads =", "threads = 3").replace("# data =", 'data = "x"')
        assert Recipe.from_dict(tomllib.loads(text)) == Recipe(threads=3, data="x")


class TestReadConfig:
    def test_toml(self, tmp_path: Path) -> None:
        path = tmp_path / "r.toml"
        path.write_text("min-size = 3\n")
        assert read_config(path) == {"min_size": 3}

    def test_empty_toml_is_all_defaults(self, tmp_path: Path) -> None:
        path = tmp_path / "r.toml"
        path.write_text("")
        assert read_config(path) == {}

    def test_report(self, tmp_path: Path) -> None:
        path = tmp_path / "model.pruned.json"
        path.write_text(json.dumps({"schema_version": 1, "recipe": Recipe(sparsity=0.25).to_dict()}))
        assert Recipe.from_dict(read_config(path)) == Recipe(sparsity=0.25)

    @pytest.mark.parametrize("content", ["{}", '{"recipe": 3}', "[]", "{"])
    def test_json_without_recipe(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "other.json"
        path.write_text(content)
        with pytest.raises(UsageError, match=r"other\.json"):
            read_config(path)

    def test_toml_whose_table_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "pyproject.toml"
        path.write_text("[tool]\nonnxprune = 3\n")
        with pytest.raises(UsageError, match="no recipe"):
            read_config(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("sparsty = 0.5", "unknown key 'sparsty'"), ('sparsity = "high"', "'sparsity' is 'high'")],
)
def test_a_mistake_in_a_recipe_names_the_file(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(line)
    with pytest.raises(UsageError, match=rf"recipe\.toml: .*{message}"):
        read_config(path)

from __future__ import annotations

import doctest
import io
from collections.abc import Sequence

from rich.console import Console

from onnxprune.report import weights
from onnxprune.report.report import LayerReport, SkippedWeight
from tests.unit.report.examples import SKIPPED, layer


def shown(layers: Sequence[LayerReport], report_path: str = "", width: int = 120) -> str:
    stream = io.StringIO()
    weights.render_layers(Console(file=stream, width=width), layers, report_path)
    return stream.getvalue()


def test_examples() -> None:
    result = doctest.testmod(weights)
    assert result.attempted >= 1
    assert result.failed == 0


class TestLayers:
    def test_few_layers_are_all_listed_without_ado(self) -> None:
        output = shown([layer(0), layer(1)])
        assert "2 layers\n" in output
        assert "layer.0.attention.self.query.weight" in output

    def test_many_layers_are_cut_with_a_hint_to_the_rest(self) -> None:
        layers = [layer(i) for i in range(100)]
        output = shown(layers, "r.json")
        assert f"100 layers, the {weights.MAX_LAYERS} that matter most (all in r.json)" in output
        assert output.count("self.query.weight") == weights.MAX_LAYERS
        assert "all with --json" in shown(layers)

    def test_notes_of_layers_are_shown(self) -> None:
        assert "damping raised to 0.1" in shown([layer(0, note="damping raised to 0.1")])

    def test_equal_notes_are_one_line(self) -> None:
        layers = [layer(i, name=f"w{i}", note="kept dense") for i in range(6)]
        assert "kept dense: w0, w1, w2, w3 and 2 more\n" in shown(layers)

    def test_columns_without_values_are_left_out(self) -> None:
        assert "effect" not in shown([layer(0), layer(1)])
        assert "effect" in shown([layer(0, sensitivity=0.1)])


class TestSkipped:
    def test_grouped_by_reason_largest_first(self) -> None:
        groups = weights.group_reasons(SKIPPED)
        assert [(reason, len(items)) for reason, items in groups] == [
            ("gathered with constant indices", 1),
            ("too small", 12),
            ("excluded by --exclude head", 1),
        ]

    def test_equal_reasons_keep_their_whole_text(self) -> None:
        same = [SkippedWeight(name, "", 1, "a: b") for name in "xy"]
        assert weights.group_reasons(same)[0][0] == "a: b"

    def test_nothing_lost_when_there_are_many_reasons(self) -> None:
        many = [SkippedWeight(f"w{i}", "", 100 - i, f"reason {i}") for i in range(20)]
        stream = io.StringIO()
        weights.render_skipped(Console(file=stream, width=100), many)
        output = stream.getvalue()
        assert f"and {20 - weights.MAX_REASONS} more for other reasons" in output
        assert "20 weights left alone" in output


class TestMostTelling:
    def test_by_sensitivity_in_graph_order(self) -> None:
        layers = [layer(i, sensitivity=s) for i, s in enumerate((0.1, 0.9, None, 0.5))]
        assert weights.most_telling(layers, 2) == [layers[1], layers[3]]

    def test_by_error_without_sensitivity(self) -> None:
        layers = [layer(i, error=e) for i, e in enumerate((0.1, 0.9, 0.5))]
        assert weights.most_telling(layers, 2) == [layers[1], layers[2]]

    def test_by_size_without_any(self) -> None:
        layers = [layer(i, error=None, weights=w) for i, w in enumerate((5, 9, 7))]
        assert weights.most_telling(layers, 1) == [layers[1]]

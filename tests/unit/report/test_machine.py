from __future__ import annotations

from onnxprune.doctor import Check
from onnxprune.report import machine
from tests.unit.report.examples import shown


class TestChecks:
    CHECKS = (
        Check("python", "ok", "3.11"),
        Check("disk", "note", "little"),
        Check("onnx", "problem", "gone", "get it"),
    )

    def test_all_lines_and_the_verdict(self) -> None:
        output = shown(machine.render_checks, self.CHECKS)
        assert [line.split()[0] for line in output.splitlines()[:3]] == ["ok", "note", "problem"]
        assert "hint: get it" in output and "1 problem: see the hints above" in output

    def test_quiet_shows_problems_only(self) -> None:
        output = shown(machine.render_checks, self.CHECKS, quiet=True)
        assert "3.11" not in output and "gone" in output
        assert shown(machine.render_checks, self.CHECKS[:1], quiet=True) == "ready to prune\n"

from __future__ import annotations

from onnxprune.storage.choose import Candidate, choose


def candidate(elements: int, fast: int | None, small: int) -> Candidate:
    sizes = {"small": small} if fast is None else {"fast": fast, "small": small}
    return Candidate(elements, sizes)


NS = {"fast": 10, "small": 20}


def test_nothing() -> None:
    assert choose({}, NS) == {}


def test_the_smallest_wins_without_a_margin() -> None:
    weights = {"a": candidate(100, 101, 100), "b": candidate(100, 90, 100), "c": candidate(100, None, 100)}
    assert choose(weights, NS, 0.0) == {"a": "small", "b": "fast", "c": "small"}


def test_equal_sizes_take_the_faster() -> None:
    assert choose({"a": candidate(100, 100, 100)}, NS, 0.0) == {"a": "fast"}


def test_the_margin_holds_for_all_together() -> None:
    weights = {str(i): candidate(100, 110, 100) for i in range(10)}
    chosen = choose(weights, NS, 0.03)  # 30 of 1000 bytes: three of them
    assert sorted(name for name, form in chosen.items() if form == "fast") == ["0", "1", "2"]


def test_what_costs_least_for_its_elements_comes_first() -> None:
    weights = {"a": candidate(100, 120, 100), "b": candidate(100, 105, 100), "c": candidate(900, 130, 100)}
    assert choose(weights, NS, 0.12) == {"a": "small", "b": "fast", "c": "fast"}


def test_the_largest_weight_counts_when_it_fits() -> None:
    """By cost per element the small ones come first and leave no room for the table."""
    weights = {f"layer{i}": candidate(100, 1010, 1000) for i in range(6)}
    weights["table"] = candidate(1000, 10_110, 10_000)
    chosen = choose(weights, NS, 0.01)  # 160 bytes
    assert chosen["table"] == "fast" and list(chosen.values()).count("fast") == 6


def test_a_weight_that_is_too_dear_alone_leaves_the_others_their_chance() -> None:
    weights = {"table": candidate(1000, 20_000, 10_000), "layer": candidate(10, 1001, 1000)}
    assert choose(weights, NS, 0.01) == {"table": "small", "layer": "fast"}


def test_order_does_not_matter() -> None:
    weights = {name: candidate(100, 110, 100) for name in "cab"}
    backwards = dict(reversed(weights.items()))
    assert choose(weights, NS, 0.05) == choose(backwards, NS, 0.05)


def test_each_weight_trades_for_what_is_cheapest_for_its_time() -> None:
    """At 70 % zeros gaps8 is a little faster than gaps4 and much larger."""
    weights = {"a": Candidate(1000, {"gaps8": 1130, "gaps4": 1024, "bitmap": 1000})}
    load_ns = {"gaps8": 7, "gaps4": 10, "bitmap": 20}
    assert choose(weights, load_ns, 0.025) == {"a": "gaps4"}
    assert choose(weights, load_ns, 0.02) == {"a": "bitmap"}


def test_a_slower_form_is_never_taken_for_its_speed() -> None:
    assert choose({"a": Candidate(1000, {"fast": 100, "small": 101})}, NS, 1.0) == {"a": "fast"}

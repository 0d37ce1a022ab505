"""What the benchmarks do with their samples."""

from pathlib import Path

import pytest

from bench.__main__ import main
from bench.results import Result, compare, make_table, write_results
from bench.sampling import interleave, spread


def test_samples_are_taken_in_turn_after_one_round_that_does_not_count() -> None:
    taken: list[str] = []

    def take(name: str) -> float:
        taken.append(name)
        return float(len(taken))

    samples = interleave(2, {"a": lambda: take("a"), "b": lambda: take("b")})
    assert "".join(taken) == "ab" + "ab" + "ba"
    assert samples == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_a_ratio_is_that_of_the_medians_and_the_spread_is_the_width_of_the_middle_half() -> None:
    result = compare("x", [1, 2, 3, 4, 100], [2, 2, 2, 2, 2], unit="ms", note="")
    assert (result.value, result.baseline, result.ratio, result.spread) == (3, 2, 1.5, 2)
    assert spread([1]) == 0


def test_what_was_not_measured_this_time_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [Result(name="a", value=1, unit="ms"), Result(name="b", value=1, unit="ms")])
    write_results(path, [Result(name="b", value=2, unit="ms")])
    assert [line for line in path.read_text().splitlines() if '"value"' in line] == ['  "value": 1,', '  "value": 2,']
    assert make_table([Result(name="a", value=1, unit="ms")]).count("\n") == 2


def test_an_unknown_name_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "speed"])
    assert "no such measure: speed (use import_time" in capsys.readouterr().err

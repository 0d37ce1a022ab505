"""Rows of docs/security.md come from marked tests, and only from those that tell what a row needs."""

from pathlib import Path

import pytest
from services.security_table import ROOT, Case, ShapelessCase, main, missing, read_cases, write_page

SHAPE = '''
import pytest

@pytest.mark.security_case("Unsigned")
{mark}
def test_it():
    """A message | without a
    signature.

    Refused: dropped,
        and counted.
    Evidence: the counter.
    Red before: it ran.
    """
'''


def write(root: Path, text: str) -> Path:
    (root / "tests").mkdir()
    (root / "tests" / "test_one.py").write_text(text)
    return root


def read_one(root: Path, text: str) -> Case:
    (case,) = read_cases(write(root, text))
    return case


def test_a_row_tells_what_the_docstring_says(tmp_path: Path) -> None:
    case = read_one(tmp_path, SHAPE.format(mark=""))
    assert case == Case(
        name="Unsigned",
        attack="A message | without a signature.",
        refused="dropped, and counted.",
        evidence="the counter.",
        red_before="it ran.",
        path="tests/test_one.py",
        test="test_it",
        is_full=False,
    )
    row = write_page([case]).splitlines()[-1]
    assert row == (
        "| Unsigned | A message \\| without a signature. | dropped, and counted. | the counter. Red before: it ran. "
        "| [`test_it`](../tests/test_one.py) |"
    )


@pytest.mark.parametrize("mark", ["@pytest.mark.full", "@pytest.mark.parametrize('x', [1])\n@pytest.mark.full"])
def test_a_test_that_takes_long_is_labelled(tmp_path: Path, mark: str) -> None:
    case = read_one(tmp_path, SHAPE.format(mark=mark))
    assert case.is_full
    assert write_page([case]).endswith("*full* |\n")


def test_a_module_that_takes_long_labels_all_its_tests(tmp_path: Path) -> None:
    assert read_one(tmp_path, "pytestmark = [pytest.mark.full]\n" + SHAPE.format(mark="")).is_full


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("Evidence: the counter.", "", "Evidence"),
        ("Refused: dropped,", "Dropped", "Refused"),
        ("signature.", "signature", "full stop"),
        ('"""', "'''\n    '''#", "Attack, Refused, Evidence"),
        ('"Unsigned"', "name", "name of a case"),
    ],
)
def test_a_test_without_the_shape_is_refused(tmp_path: Path, old: str, new: str, missing: str) -> None:
    text = (
        SHAPE.format(mark="").replace(old, new, 1) if old != '"""' else SHAPE.format(mark="").split('"""')[0] + "pass"
    )
    with pytest.raises(ShapelessCase, match=missing):
        read_cases(write(tmp_path, text))


def test_a_test_without_the_mark_is_no_row(tmp_path: Path) -> None:
    assert read_cases(write(tmp_path, SHAPE.format(mark="").replace("security_case", "security"))) == []


def test_every_case_that_is_wanted_has_a_test_which_tells_what_a_row_needs() -> None:
    assert missing(read_cases(ROOT)) == []


def test_the_page_is_what_the_tests_say() -> None:
    assert main(["--check"]) == 0, "run `make security-table`"

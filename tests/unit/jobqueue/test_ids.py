"""Ids are made without asking anybody, sort by time, and are legal everywhere."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue.errors import InvalidSpec
from jobqueue.ids import is_experiment_id, make_experiment_id, parse_experiment_id

LARGEST = "exp-7" + "z" * 25


def test_an_id_is_legal_as_label_host_name_object_key_and_message_id() -> None:
    for _ in range(100):
        assert re.fullmatch(r"exp-[0-9a-hjkmnp-tv-z]{26}", make_experiment_id())


def test_ids_are_distinct_and_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for second in range(1_750_000_000, 1_750_000_200):
        monkeypatch.setattr(time, "time_ns", lambda at=second: at * 10**9)
        ids.append(make_experiment_id())
    assert sorted(ids) == ids
    assert len({make_experiment_id() for _ in range(1000)}) == 1000


def test_an_id_made_is_an_id_read() -> None:
    made = make_experiment_id()
    assert parse_experiment_id(made) == made
    assert is_experiment_id(LARGEST)


@pytest.mark.parametrize(
    "text",
    ["", "exp-", LARGEST[:-1], LARGEST + "z", LARGEST + "\n", LARGEST.upper(), "exp-8" + "z" * 25, "exp-0" + "i" * 25],
)
def test_what_is_no_id_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(InvalidSpec, match="exp- and 26 characters"):
        parse_experiment_id(text)


@given(st.text())
def test_no_text_breaks_the_check(text: str) -> None:
    assert isinstance(is_experiment_id(text), bool)

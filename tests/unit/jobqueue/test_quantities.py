"""Sizes and durations are read as people write them, and written so that they are read back."""

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue.quantities import (
    MAX_BYTES,
    MAX_DURATION,
    describe_size,
    format_duration,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("16GiB", 16 * 2**30), ("16Gi", 16 * 2**30), ("16G", 16 * 10**9), ("500MB", 5 * 10**8), ("4 gb", 4 * 2**30),
        ("4kb", 4 * 2**10), ("4mb", 4 * 2**20), ("4gb", 4 * 2**30), ("4tb", 4 * 2**40), ("4pb", 4 * 2**50),
        (" 1.5GiB ", 3 * 2**29), ("0.1KiB", 102), ("1kB", 1000), ("1k", 1000), ("2tib", 2**41),
        ("2TB", 2 * 10**12), ("3P", 3 * 10**15),
        ("7", 7), ("7B", 7), (7, 7), (0, 0), (MAX_BYTES, MAX_BYTES), ("3PiB", 3 * 2**50),
    ],
)  # fmt: skip
def test_sizes_are_read_binary_and_decimal_told_apart(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "value",
    ["", "GiB", "-1", "1Gb", "1 G B", "1e9", "1,5GiB", "1GiBs", "inf", "1ib", "9" * 5000, "8EiB", "9000PiB",
     -1, MAX_BYTES + 1, 1.5, True, None, b"1", [1]],
)  # fmt: skip
def test_what_is_no_size_is_refused_with_what_to_write(value: object) -> None:
    with pytest.raises(ValueError, match=r"not a size: .*\(use ") as caught:
        parse_size(value)
    assert "16GiB" in str(caught.value)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1_567_000_000, "1.46 GiB"), (1000 * 2**20, "1000 MiB"),
     (2**30 - 1, "1024 MiB"), (999 * 2**20, "999 MiB"), (16 * 2**30, "16 GiB")],
)  # fmt: skip
def test_a_size_for_people_is_short_and_has_no_exponent(size_bytes: int, text: str) -> None:
    assert describe_size(size_bytes) == text


@given(st.integers(min_value=0, max_value=2**60 - 1))
def test_a_size_for_people_is_never_in_scientific_notation(size_bytes: int) -> None:
    assert "e" not in describe_size(size_bytes)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800), ("1w", 604800), ("250ms", 0.25), ("1.5h", 5400),
        ("PT6H", 21600), ("P1DT2H3M4.5S", 93784.5), (" 5s ", 5), (90, 90), (0.5, 0.5), (0, 0),
        (timedelta(hours=1), 3600), ("P2D", 172800),
    ],
)  # fmt: skip
def test_durations_are_read(value: object, seconds: float) -> None:
    assert parse_duration(value) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value",
    ["", "90", "1h 30m", "h", "-5s", "P", "PT", "1y", "P1Y", "4000d", "9" * 400 + "d", "1e3s", "P" + "9" * 400 + "D",
     -1, float("nan"), float("inf"), 10**12, 10**400, True, None, timedelta(seconds=-1), MAX_DURATION * 2],
)  # fmt: skip
def test_what_is_no_duration_is_refused_with_what_to_write(value: object) -> None:
    with pytest.raises(ValueError, match=r"not a duration: .*\(use "):
        parse_duration(value)


@given(st.timedeltas(min_value=timedelta(0), max_value=MAX_DURATION))
def test_a_duration_is_written_so_that_it_is_read_back_to_the_millisecond(duration: timedelta) -> None:
    read = parse_duration(format_duration(duration))
    assert abs(read - duration) < timedelta(milliseconds=1)


@given(st.integers(min_value=0, max_value=3650 * 86400))
def test_whole_seconds_are_read_back_exactly(seconds: int) -> None:
    assert parse_duration(format_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


@given(st.text() | st.integers() | st.floats())
def test_anything_else_is_a_value_error_and_nothing_worse(value: object) -> None:
    for parse in (parse_size, parse_duration):
        with suppress(ValueError):
            parse(value)

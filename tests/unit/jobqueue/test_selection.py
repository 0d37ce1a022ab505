"""Which request queues names and patterns select."""

import pytest

from jobqueue.errors import InvalidSetting
from jobqueue.routing import Selection, is_suited, parse_selection


def test_plain_names_are_names_whatever_is_left_out_of_the_patterns() -> None:
    selection = parse_selection(["a_cpu", "lab_*", "!a_*"])
    assert selection == Selection(names=("a_cpu",), patterns=("lab_*",), excluded=("a_*",))
    assert selection.words == ("a_cpu", "lab_*", "!a_*")


@pytest.mark.parametrize("name", ["lab_vision_cpu", "lab_x", "lab_private"])
def test_a_pattern_finds_request_queues(name: str) -> None:
    assert parse_selection(["lab_*", "!lab_private_*"]).finds(name)


@pytest.mark.parametrize(
    "name",
    ["lab_private_cpu", "vision_cpu", "lab_a_dead", "lab_a_first", "lab_a_deferred", "lab_a_reporting", "lab_a.pidbox"],
)
def test_what_is_left_out_foreign_or_a_companion_is_not_found(name: str) -> None:
    assert not parse_selection(["lab_*", "!lab_private_*"]).finds(name)


@pytest.mark.parametrize(
    ("name", "is_found"),
    [("lab_a", True), ("team_a", True), ("lab_private_a", False), ("team_old_a", False), ("vision_a", False)],
)
def test_any_of_several_patterns_finds_a_queue_and_any_of_several_leaves_it_out(name: str, *, is_found: bool) -> None:
    assert parse_selection(["lab_*", "team_*", "!lab_private_*", "!team_old_*"]).finds(name) is is_found


@pytest.mark.parametrize("name", ["celeryev.5f3a", "amq.gen-xyz", "jobqueue.queues", "celery@host.celery.pidbox"])
def test_the_queues_of_celery_and_of_brokers_are_never_found(name: str) -> None:
    assert not parse_selection(["*"]).finds(name)


def test_patterns_that_only_leave_out_leave_out_of_everything() -> None:
    selection = parse_selection(["!lab_*"])
    assert selection.finds("vision_cpu")
    assert not selection.finds("lab_cpu")


def test_blanks_around_words_and_empty_words_mean_nothing() -> None:
    assert parse_selection(["lab_a", " lab_b ", "", " ", " !x_*"]) == parse_selection(["lab_a", "lab_b", "!x_*"])


@pytest.mark.parametrize("word", ["lab.a", "lab a", "-lab", "lab/a", "a" * 71, "lab_a;lab_b"])
def test_a_name_that_no_queue_can_have_is_refused(word: str) -> None:
    with pytest.raises(InvalidSetting, match="no queue's name"):
        parse_selection([word])


def test_names_alone_find_nothing() -> None:
    assert not parse_selection(["a_cpu", "!b_*"]).patterns


@pytest.mark.parametrize("word", ["lab_a_dead", "lab_*_first", "!lab_*_reporting", "lab.*", "lab_ *", "!lab/?", "!"])
def test_a_word_that_no_request_queue_can_match_is_refused(word: str) -> None:
    with pytest.raises(InvalidSetting):
        parse_selection([word])


@pytest.mark.parametrize(
    ("patterns", "prefix"),
    [
        (["lab_*"], "lab_"),
        (["lab_a*", "lab_b?"], "lab_"),
        (["lab_*", "vision_*"], ""),
        (["*"], ""),
        (["l[ab]_*"], "l"),
        ([], ""),
    ],
)
def test_the_beginning_that_all_patterns_share_is_known(patterns: list[str], prefix: str) -> None:
    assert parse_selection(patterns).prefix == prefix


def test_a_queue_suits_a_slot_by_its_name() -> None:
    assert is_suited("a_gpu", has_device=True)
    assert not is_suited("a_gpu", has_device=False)
    assert is_suited("a_cpu", has_device=False)
    assert not is_suited("a_cpu", has_device=True)
    assert is_suited("odd", has_device=True)
    assert is_suited("odd", has_device=False)

"""What may name a file, what an address shows of itself, and where things lie in a store."""

import pytest

from jobqueue.artifacts import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    Artifact,
    attempt_prefix,
    input_key,
    log_key,
    log_prefix,
    manifest_key,
    output_key,
    path_fault,
    result_key,
    workspace_key,
)
from jobqueue.ids import ExperimentId

ID = ExperimentId("exp-01arz3ndektsv4rrffq69g5fav")
_PART = "is absolute, or has an empty, `.` or `..` part"
_CONTROL = "has a control character"
_DEEP = "/".join(["x" * 63] * (MAX_PATH_BYTES // 64))


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("a/b c/\u00fc\u05e9\u200d.pt", ""),
        ("..a/.b/c.", ""),
        ("", _PART), ("/a", _PART), ("a//b", _PART), ("a/", _PART), ("./a", _PART), ("a/./b", _PART), ("a/..", _PART),
        ("a\nb", _CONTROL), ("a\x1bb", _CONTROL), ("a\x7fb", _CONTROL), ("a\ud800", "is not UTF-8"),
        ("a/" + "\u00fc" * (MAX_NAME_BYTES // 2) + "x/b", ""),
        ("a/" + "\u00fc" * (MAX_NAME_BYTES // 2) + "xx/b", f"has a name of more than {MAX_NAME_BYTES} bytes"),
        (_DEEP + "/", _PART),
        (_DEEP + "x", ""),
        (_DEEP + "/y", f"has more than {MAX_PATH_BYTES} bytes"),
    ],
)  # fmt: skip
def test_a_path_names_a_file_below_a_folder_or_is_told_what_keeps_it_from_that(path: str, fault: str) -> None:
    assert path_fault(path) == fault


def test_things_lie_where_older_nodes_and_clients_look_for_them() -> None:
    attempt = f"experiments/{ID}/attempts/2-77"
    assert attempt_prefix(ID, 2, 77) == attempt
    assert output_key(attempt, "model.pt") == f"{attempt}/outputs/model.pt"
    assert manifest_key(attempt) == f"{attempt}/manifest.json"
    assert log_prefix(attempt, "stdout") == f"{attempt}/logs/stdout/"
    assert log_key(attempt, "stdout", 65536) == f"{attempt}/logs/stdout/0000000000065536"
    assert result_key(ID) == f"experiments/{ID}/RESULT"
    assert workspace_key("ab" * 32) == f"workspaces/{'ab' * 32}.tar.zst"
    assert input_key("ab" * 32, tree=False) == f"inputs/{'ab' * 32}"
    assert input_key("ab" * 32, tree=True) == f"inputs/{'ab' * 32}.tar.zst"


@pytest.mark.parametrize(
    ("uri", "is_tree"),
    [
        ("s3://b/a.tar.zst", True), ("https://h/a.tar.zst?sign=1", True), ("http://h/a.tar.zst?x", True),
        ("https://h/a?name=b.tar.zst", False), ("s3://b/what?.tar.zst", True), ("file:///a.tar", False),
    ],
)  # fmt: skip
def test_an_archive_is_told_by_the_end_of_the_path_of_its_address(uri: str, *, is_tree: bool) -> None:
    assert Artifact(uri=uri).is_tree is is_tree


def test_what_signs_an_address_is_not_shown() -> None:
    assert repr(Artifact(uri="https://h/a?sign=hunter2", size_bytes=3)) == (
        "Artifact(uri='https://h/a?...', sha256='', size_bytes=3, unpacked_bytes=0)"
    )
    assert "uri='s3://b/a'," in repr(Artifact(uri="s3://b/a"))

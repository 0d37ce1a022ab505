"""What an experiment says of itself."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.attempt.progress import ProgressFile, parse_progress_json, parse_progress_line


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        (b"::jobqueue progress=0.62 loss=0.41::", '{"progress": 0.62, "loss": 0.41}'),
        (b"12:00 ::jobqueue epoch=3:: and more", '{"epoch": 3}'),
        (b"::jobqueue loss=nan state=ok::", '{"loss": "nan", "state": "ok"}'),
        (b"::jobqueue::", None),
        (b"::jobqueue progress::", None),
        (b"jobqueue progress=1", None),
        (b"::jobqueue progress=1::" + b" " * 5000, None),
    ],
)
def test_a_line_of_output_carries_progress(line: bytes, progress: str | None) -> None:
    assert parse_progress_line(line) == progress


@given(st.binary(max_size=200))
def test_no_line_upsets_the_parsers(line: bytes) -> None:
    parse_progress_line(b"::jobqueue " + line + b"::")
    parse_progress_json(line)


def test_deeply_nested_json_is_ignored() -> None:
    assert parse_progress_json(b"[" * 4000) is None
    assert parse_progress_json(b'["a list"]') is None


def test_the_newest_complete_line_of_the_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    progress = ProgressFile(path)
    assert progress.poll() is None
    path.write_text('{"progress": 0.1}\n{"progress": 0.2}\n{"progr')
    assert progress.poll() == '{"progress": 0.2}'
    assert progress.poll() is None
    with path.open("a") as file:
        file.write('ess": 0.3}\n')
    assert progress.poll() == '{"progress": 0.3}'


def test_a_link_or_a_pipe_in_its_place_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"password": 1}\n')
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe")
    assert ProgressFile(tmp_path / "link").poll() is None
    assert ProgressFile(tmp_path / "pipe").poll() is None

"""What an experiment says of itself."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.attempt.progress import ProgressFile, parse_progress_json, parse_progress_line
from workers.attempt.redaction import Redactor


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        (b"::jobqueue progress=0.62 loss=0.41::", '{"progress": 0.62, "loss": 0.41}'),
        (b"12:00 ::jobqueue epoch=3:: and more", '{"epoch": 3}'),
        (b"::jobqueue loss=nan state=ok::", '{"loss": "nan", "state": "ok"}'),
        (b"::jobqueue state=half-\xff::", '{"state": "half-\\ufffd"}'),
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
    parse_progress_json(line, Redactor(()))


def test_deeply_nested_json_is_ignored() -> None:
    assert parse_progress_json(b"[" * 4000, Redactor(())) is None
    assert parse_progress_json(b'["a list"]', Redactor(())) is None


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


def test_of_many_lines_that_came_at_once_the_newest_alone_is_searched_for_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, searched = tmp_path / "progress", list[str]()
    redact = Redactor.redact
    monkeypatch.setattr(Redactor, "redact", lambda redactor, text: searched.append(text) or redact(redactor, text))
    path.write_text("".join(f'{{"step": {number}}}\n' for number in range(1000)))
    assert ProgressFile(path, secrets=(b"secret",)).poll() == '{"step": 999}'
    assert len(searched) < 10


def test_reading_it_again_and_again_leaves_nothing_open(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path / "progress")
    (tmp_path / "progress").write_text('{"step": 1}\n')
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(200):
        progress.poll()
    assert len([*Path("/proc/self/fd").iterdir()]) < before + 100


def test_a_link_or_a_pipe_in_its_place_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"password": 1}\n')
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe")
    assert ProgressFile(tmp_path / "link").poll() is None
    assert ProgressFile(tmp_path / "pipe").poll() is None


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ('{"key": "hunter2-hunter2"}', '{"key": "[secret]"}'),
        ('{"a hunter2-hunter2": ["x", {"y": "<hunter2-hunter2>"}]}', '{"a [secret]": ["x", {"y": "<[secret]>"}]}'),
        (r'{"key": "\u0068unter2-hunter2", "line": "one\ntwo"}', '{"key": "[secret]", "line": "[secret]"}'),
        (
            '{"number": 123456789, "other": 0.5, "sum": 12345678900}',
            '{"number": "[secret]", "other": 0.5, "sum": "[secret]"}',
        ),
        ('{"word": "schl\u00fcssel"}', '{"word": "[secret]"}'),
        ('{"token": {"key": "abc"}}', None),
        ('{"fine": true, "more": null, "text": "hunter"}', '{"fine": true, "more": null, "text": "hunter"}'),
    ],
)
def test_no_secret_leaves_by_the_progress_file(tmp_path: Path, line: str, progress: str | None) -> None:
    secrets = (
        b"hunter2",
        b"hunter2-hunter2",
        b"one\ntwo",
        b"123456789",
        "schl\u00fcssel".encode(),
        b'{"key": "abc"}',
        b"",
    )
    path = tmp_path / "progress"
    path.write_text(f"{line}\n", encoding="utf-8")
    assert ProgressFile(path, secrets=secrets).poll() == progress


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.text(min_size=1, max_size=3),
)
def test_whatever_an_experiment_writes_holds_no_secret(value: object, secret: str) -> None:
    secrets = (secret.encode(errors="replace"),)
    found = parse_progress_json(json.dumps({"x": value}).encode(), Redactor(secrets))
    assert found is None or secrets[0] not in found.replace("[secret]", "").encode() or secret in "[secret]"


def test_progress_that_is_nested_to_the_limit_of_the_reader_is_ignored() -> None:
    line = b'{"a":' * 800 + b"1" + b"}" * 800
    for _ in range(2):
        found = parse_progress_json(line, Redactor((b"x",)))
        assert found is None or found.count("a") == 800

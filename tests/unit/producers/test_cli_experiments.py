"""Submitting, looking, waiting, cancelling, downloading: over servers in memory, with a thread in a worker's place."""

import json
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result
from services.hand_worker import HandWorker
from services.waiting import wait_until

from jobqueue.config import Settings
from jobqueue.errors import RegistryUnavailable, StoreUnavailable, Unavailable
from jobqueue.ids import ExperimentId
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.base import Record
from jobqueue.storage import open_store
from producers import Client
from producers.cli import jobqueue
from producers.cli.follow import copy_output, tell_where
from producers.handle import Experiment

_SPEC = ("--image", "python:3.12-slim")
pytestmark = pytest.mark.usefixtures("laptop_keys")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def _call(*words: str) -> Result:
    return CliRunner().invoke(jobqueue, words)


def _submit(*options: str) -> ExperimentId:
    result = _call("submit", *_SPEC, *options, "--", "true")
    assert result.exit_code == 0, result.stderr
    return ExperimentId(result.stdout.strip())


def _take(experiment_id: ExperimentId) -> HandWorker:
    store = open_store(Settings().storage)
    worker = HandWorker(experiment_id, registry=open_registry("memory://"), store=store)
    worker.run()
    return worker


def _end(
    worker: HandWorker, outcome: Outcome, *, files: dict[str, bytes] | None = None, left_out: tuple[str, ...] = ()
) -> None:
    worker.put_outputs(files or {}, left_out=left_out)
    worker.finish(**vars(outcome))


_GOOD = Outcome(reason=Reason.EXITED_ZERO, exit_code=0)
_BAD = Outcome(reason=Reason.EXITED_NONZERO, detail="exit code 3", exit_code=3, last_lines=("boom",))


def test_submit_writes_the_id_alone_on_stdout_and_warns_on_stderr(project: str) -> None:
    result = _call("submit", *_SPEC, "--", "python", "train.py", "--lr", "0.1")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("exp-")
    assert len(result.stdout.split()) == 1
    assert "warning: no worker serves the queue" in result.stderr


def test_all_wrong_fields_are_said_at_once_as_a_usage_error(project: str) -> None:
    result = _call("submit", "--memory", "4zb", "--cpus", "many", "--", "true")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert all(word in result.stderr for word in ("image: missing", "memory: not a size", "cpus: "))


@pytest.mark.parametrize(
    "words", [(), ("--env", "A", *_SPEC, "--", "true"), ("--no-such-option",), ("-f", "none.toml")]
)
def test_what_cannot_be_submitted_is_a_usage_error(project: str, words: tuple[str, ...]) -> None:
    assert _call("submit", *words).exit_code == 2


def test_a_spec_file_gives_the_fields_and_options_win(project: str, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "train.py").write_text("print(1)\n")
    (folder / "spec.toml").write_text(
        'image = "python:3.12-slim"\ncommand = "python train.py"\nworkspace = "."\nname = "first"\nlabels = {a = "1"}\n'
    )
    result = _call("submit", "-f", "here/spec.toml", "--name", "second", "--label", "b=2")
    assert result.exit_code == 0, result.stderr
    record = json.loads(_call("show", result.stdout.strip(), "-o", "json").stdout)
    assert (record["name"], record["labels"]) == ("second", {"a": "1", "b": "2"})


def test_a_json_spec_works_as_well(project: str) -> None:
    Path("spec.json").write_text(json.dumps({"image": "python:3.12-slim", "command": "true", "name": "from-json"}))
    result = _call("submit", "-f", "spec.json", "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["state"] == "QUEUED"


def test_a_file_that_is_no_spec_says_so(project: str) -> None:
    Path("spec.toml").write_text("image: python\n")
    result = _call("submit", "-f", "spec.toml")
    assert result.exit_code == 2
    assert "spec.toml: not TOML or JSON" in result.stderr


def test_ls_shows_the_newest_first(project: str) -> None:
    older, newer = _submit("--name", "older"), _submit("--name", "newer")
    assert _call("ls", "--project", project, "-o", "name").stdout.split() == [newer, older]
    table = _call("ls", "--project", project).stdout.splitlines()
    assert table[0].split() == ["ID", "AGE", "STATE", "NAME", "QUEUE", "REASON"]
    assert "newer" in table[1]
    assert _call("ls", "--project", project, "--name", "older", "-o", "name").stdout.split() == [older]


def test_ls_of_nothing_writes_nothing_on_stdout(project: str) -> None:
    result = _call("ls", "--project", project)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no experiments\n")


@pytest.mark.parametrize("command", ["show", "why", "logs", "wait", "cancel", "get"])
def test_an_unknown_experiment_is_102(project: str, command: str) -> None:
    result = _call(command, "nothing-like-it")
    assert result.exit_code == 102
    assert "error: there is no experiment" in result.stderr
    assert "hint:" in result.stderr


def test_wait_says_how_it_ended(project: str) -> None:
    good, bad, gone = _submit(), _submit(), _submit()
    _end(_take(good), _GOOD)
    _end(_take(bad), _BAD)
    assert _call("cancel", gone).exit_code == 0
    assert _call("wait", good).exit_code == 0
    assert _call("wait", bad).exit_code == 100
    assert _call("wait", gone).exit_code == 103
    assert _call("wait", good, bad, gone).exit_code == 100


def test_wait_gives_up_after_its_timeout(project: str) -> None:
    waiting = _submit()
    result = _call("wait", waiting, "--timeout", "50ms")
    assert result.exit_code == 101
    assert "QUEUED" in result.stdout


def test_a_timeout_that_is_none_is_a_usage_error(project: str) -> None:
    assert _call("wait", "last", "--timeout", "soon").exit_code == 2


def test_cancel_of_what_runs_is_on_its_way_and_of_what_is_over_changes_nothing(project: str) -> None:
    running, over = _submit(), _submit()
    _take(running)
    _end(_take(over), _GOOD)
    assert "will be stopped soon" in _call("cancel", running).stdout
    late = _call("cancel", over)
    assert (late.exit_code, "over before" in late.stdout) == (1, True)


def test_show_tells_reason_hint_and_outputs(project: str) -> None:
    experiment = _submit("--name", "shown")
    _end(_take(experiment), _BAD, files={"outputs/model.pt": b"x" * 2048})
    text = _call("show", "shown").stdout
    assert "reason" in text
    assert "exit code 3" in text
    assert "boom" in text
    assert "outputs/model.pt  2 KiB" in text
    found = json.loads(_call("show", experiment, "-o", "json").stdout)
    assert found["reason"] == "EXITED_NONZERO"
    assert found["outputs"] == [{"path": "outputs/model.pt", "size_bytes": 2048}]


def test_why_is_one_cause_to_a_line(project: str) -> None:
    first, *causes = _call("why", _submit()).stdout.splitlines()

    assert first.startswith("QUEUED: waiting")
    assert any(cause.startswith("no worker serves the queue") for cause in causes)
    assert "messages that wait at the broker: 1" in causes


def test_logs_are_printed_as_they_are(project: str) -> None:
    experiment = _submit()
    _take(experiment).send_log(0, b"epoch 1\nepoch 2\n")
    assert _call("logs", experiment).stdout == "epoch 1\nepoch 2\n"
    assert _call("logs", experiment, "--stream", "stderr").stdout == ""


def test_both_streams_come_out_as_they_went_in_unless_one_is_asked_for(project: str) -> None:
    experiment = _submit()
    attempt = _take(experiment)
    attempt.send_log(0, b"epoch 1\n")
    attempt.send_log(0, b"ValueError: bad\n", stream="stderr")
    shown = _call("logs", experiment)
    assert (shown.stdout, shown.stderr) == ("epoch 1\n", "ValueError: bad\n")
    assert _call("logs", experiment, "--stream", "stdout").stderr == ""
    assert _call("logs", experiment, "--stream", "stderr").stdout == "ValueError: bad\n"


@pytest.mark.parametrize("broken", ["stdout", "stderr"])
def test_a_stream_that_breaks_off_is_told_whichever_it_is(broken: str) -> None:
    class Experiment:
        def logs(self, *, follow: bool, stream: str) -> Iterator[str]:
            if follow and stream == broken:
                raise StoreUnavailable("it is away")
            yield f"all of {stream}"

    with pytest.raises(StoreUnavailable):
        copy_output(cast(Any, Experiment()))


def test_get_downloads_the_outputs_and_lists_them(project: str, tmp_path: Path) -> None:
    experiment = _submit()
    _end(_take(experiment), _GOOD, files={"outputs/a.txt": b"a", "outputs/b/c.txt": b"c"})
    result = _call("get", experiment, "out", "-o", "name")
    assert result.exit_code == 0, result.stderr
    assert sorted(result.stdout.split()) == ["out/outputs/a.txt", "out/outputs/b/c.txt"]
    assert (tmp_path / "out/outputs/b/c.txt").read_bytes() == b"c"


def test_outputs_that_were_left_out_are_told(project: str) -> None:
    done = _submit()
    _end(_take(done), _GOOD, left_out=("outputs/link: leads out\x1b",))
    assert "left out: outputs/link: leads out?\n" in _call("get", done).stderr
    assert "left out" in _call("show", done).stdout
    assert json.loads(_call("show", done, "-o", "json").stdout)["left_out"] == ["outputs/link: leads out\x1b"]


def test_get_into_a_file_says_so(project: str) -> None:
    done = _submit()
    _end(_take(done), _GOOD, files={"model.pt": b"weights"})
    Path("taken").write_text("")
    result = _call("get", done, "taken")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: File exists: taken")


def test_get_of_what_is_not_over_is_102(project: str) -> None:
    assert _call("get", _submit()).exit_code == 102


def _run(outcome: Outcome, *options: str, name: str, **left: Any) -> Result:
    """Run `jobqueue run` with a thread that takes the experiment, prints a line and ends it."""

    def work() -> None:
        experiments = open_registry("memory://").experiments
        found: list[Record] = wait_until(lambda: experiments.find(name=name), what=f"{name} is submitted")
        held = _take(found[0].submission.id)
        held.send_log(0, b"hello\n")
        _end(held, outcome, **left)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        return _call("run", *_SPEC, "--name", name, *options, "--", "true")
    finally:
        worker.join()


def test_who_follows_one_that_waits_is_told_where_it_is_once_for_each_place(
    project: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client() as client:
        experiment = client.get(_submit())
        tell_where(experiment, partial(next, iter([False, False, True])))
        _end(_take(experiment.id), _GOOD)
        tell_where(experiment, partial(next, iter([False, True])))
    assert capsys.readouterr().err == f"[QUEUED: waiting in '{project}_cpu' for a worker to take it]\n"


def test_who_follows_while_the_registry_is_away_is_told_so_once_each_time(
    project: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client() as client:
        experiment = client.get(_submit())
        record = experiment.look()
        looks = iter([record, None, None, record])

        def look() -> Record:
            if found := next(looks):
                return found
            raise RegistryUnavailable("the registry does not answer")

        monkeypatch.setattr(experiment, "look", look)
        tell_where(experiment, partial(next, iter([False, False, False, False, True])))
    waits = f"[QUEUED: waiting in '{project}_cpu' for a worker to take it]\n"
    assert capsys.readouterr().err == f"{waits}[the registry does not answer; waiting for it]\n{waits}"


def test_who_is_interrupted_while_submitting_is_told_whether_it_was_submitted(
    project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "submit", submit)
    result = _call("run", *_SPEC, "--", "true")
    assert result.exit_code == 130
    assert "interrupted before it was submitted (if that came too late, `jobqueue ls` shows it)" in result.stderr


@pytest.mark.parametrize(
    ("error", "fate"),
    [(RegistryUnavailable("it does not answer"), "goes on"), (StoreUnavailable("it does not answer"), "is over")],
    ids=["registry", "store"],
)
def test_who_is_left_by_a_server_is_told_what_becomes_of_the_experiment(
    error: Unavailable, fate: str, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(experiment: Experiment) -> None:
        monkeypatch.setattr(experiment, "exception", away)

    def away(*_: object) -> None:
        raise error

    monkeypatch.setattr("producers.cli.submit.copy_output", copy)
    result = _call("run", *_SPEC, "--", "true")
    assert result.exit_code == 69
    assert re.search(rf"\nnote: (exp-\w+) {fate}; look again: jobqueue logs -f \1\n", result.stderr)


def test_what_is_warned_of_is_written_before_anything_is_packed(
    project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def pack(*_: object) -> None:
        sys.stderr.flush()
        seen.append(cast("BytesIO", sys.stderr.buffer).getvalue())
        raise KeyboardInterrupt

    (tmp_path / "weights.bin").write_bytes(b"0" * 3000)
    monkeypatch.setattr("producers.packaging._LARGE_BYTES", 1000)
    monkeypatch.setattr("producers.preparation.pack_workspace", pack)
    _call("submit", *_SPEC, "--workspace", str(tmp_path), "--", "true")
    (before,) = seen
    assert b"weights.bin (2.93 KiB)" in before


def test_run_succeeds_with_the_experiment(project: str) -> None:
    result = _run(_GOOD, name=f"good-{project}")
    assert result.exit_code == 0, result.stderr
    assert "submitted exp-" in result.stderr
    assert "SUCCEEDED" in result.stderr


def test_a_result_file_that_is_not_json_is_nothing_to_run(project: str) -> None:
    result = _run(_GOOD, name=f"broken-{project}", files={"outputs/result.json": b"{"})
    assert result.exit_code == 0, result.stderr
    assert "SUCCEEDED" in result.stderr


def test_run_tells_which_outputs_were_left_out(project: str) -> None:
    result = _run(_GOOD, name=f"less-{project}", left_out=("model.pt: is not there",))
    assert result.exit_code == 0
    assert "left out: model.pt: is not there\n" in result.stderr


def test_run_exits_with_the_programs_own_code(project: str) -> None:
    result = _run(_BAD, name=f"bad-{project}")
    assert result.exit_code == 3
    assert "error: " in result.stderr


def test_run_exits_with_100_when_the_program_has_no_code(project: str) -> None:
    assert _run(Outcome(reason=Reason.TIMED_OUT, detail="1h"), name=f"late-{project}").exit_code == 100


@pytest.mark.parametrize(("reason", "code"), [(Reason.TIMED_OUT, 143), (Reason.OUT_OF_MEMORY, 137)])
def test_run_exits_with_100_when_the_program_was_ended(project: str, reason: Reason, code: int) -> None:
    ended = _run(Outcome(reason=reason, exit_code=code), name=f"ended-{project}")
    assert ended.exit_code == 100


def test_quiet_run_writes_nothing_of_its_own(project: str) -> None:
    result = _run(_GOOD, "--quiet", name=f"quiet-{project}")
    assert "submitted" not in result.stderr


def test_ctrl_c_detaches_and_says_how_to_look_again(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(experiment: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("producers.cli.submit.copy_output", interrupt)
    result = _call("run", *_SPEC, "--name", f"left-{project}", "--", "true")
    assert result.exit_code == 130
    [record] = open_registry("memory://").experiments.find(name=f"left-{project}")
    assert f"jobqueue logs -f {record.submission.id}" in result.stderr
    assert f"jobqueue cancel {record.submission.id}" in result.stderr
    assert record.state is State.QUEUED
    assert not record.is_cancelled


def test_a_wrong_setting_is_a_usage_error(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQUEUE_LEASE", "soon")
    result = _call("ls")
    assert result.exit_code == 2
    assert "JOBQUEUE_LEASE" in result.stderr

"""What a client believes of a registry and a store that somebody else writes to."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobqueue.artifacts import Manifest, OutputFile, manifest_key, manifest_to_json, output_key, result_key
from jobqueue.errors import ArtifactRefused, ExperimentFailed
from jobqueue.lifecycle import Outcome, Reason, State
from jobqueue.marker import marker_from_json, marker_to_json
from jobqueue.storage.markers import read_marker
from producers.cli import jobqueue
from producers.cli.group import EXIT_FAILED
from producers.client import Client
from producers.handle import Experiment

PIECE = b"x" * 2**20


def say_succeeded(worker: Any) -> None:
    """Do in the registry what its password is enough for; there is nothing in the store."""
    worker.run()
    worker.registry.leases.advance(worker.lease, State.FINALIZING)
    worker.registry.leases.finish(worker.lease, Outcome(reason=Reason.EXITED_ZERO, exit_code=0), state=State.SUCCEEDED)


def endless(store: Any, monkeypatch: pytest.MonkeyPatch, key: str) -> list[int]:
    """Have an object of the store go on and on; return a list that grows with what is read of it."""
    get, read = store.get, list[int]()

    def pieces() -> Iterator[bytes]:
        for piece in repeat(PIECE, 1000):
            read.append(len(piece))
            yield piece

    monkeypatch.setattr(store, "get", lambda asked: pieces() if asked == key else get(asked))
    return read


@pytest.mark.security_case("A success that only the registry tells of")
def test_a_success_is_believed_from_the_store_alone(exp: Experiment, worker: Any) -> None:
    """Whoever can write to the registry has an experiment succeed that never ran, for scripts that wait for it.

    Refused: what is waited for raises, since only the marker in the store makes a success.
    Evidence: `exception()` and `result()` of an experiment that has ended in the registry alone.
    Red before: `exception()` returned None, and `jobqueue run` and `wait` exited with 0.
    """
    say_succeeded(worker)

    assert exp.wait(60)
    error = exp.exception()
    assert isinstance(error, ArtifactRefused)
    assert "the store has no result of it" in error.message
    with pytest.raises(ArtifactRefused):
        exp.result()


@pytest.mark.security_case("A success that only the registry tells of")
def test_a_failure_that_the_registry_calls_a_success_is_a_failure(exp: Experiment, worker: Any) -> None:
    """Whoever can write to the registry turns the failure of an experiment into a success.

    Refused: it has failed, as the marker in the store says.
    Evidence: what `exception()` and `result()` say, with the exit code of the marker.
    Red before: the registry's word counted, and the result was read as that of a success.
    """
    worker.mark(Outcome(reason=Reason.EXITED_NONZERO, exit_code=3), State.FAILED)
    say_succeeded(worker)

    error = exp.exception(60)
    assert isinstance(error, ExperimentFailed)
    assert error.exit_code == 3
    with pytest.raises(ExperimentFailed):
        exp.result()


@pytest.mark.security_case("A success that only the registry tells of")
def test_a_script_that_waits_does_not_go_on_after_a_forged_success(
    client: Client, exp: Experiment, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script goes on after `jobqueue wait`, because somebody wrote into the registry that all is well.

    Refused: the command fails, or exits as the marker in the store says.
    Evidence: its exit codes, without a marker and with one of a failure.
    Red before: it exited with 0.
    """
    monkeypatch.setattr("producers.cli.follow.open_client", lambda _: client)
    say_succeeded(worker)

    assert CliRunner().invoke(jobqueue, ["wait", exp.id]).exit_code != 0
    worker.mark(Outcome(reason=Reason.EXITED_NONZERO, exit_code=3), State.FAILED)
    again = client.get(exp.id)
    assert CliRunner().invoke(jobqueue, ["wait", again.id]).exit_code == EXIT_FAILED


@pytest.mark.security_case("A success that only the registry tells of")
@pytest.mark.parametrize("code", [0, 256, -256, 2**31])
def test_a_failure_has_no_exit_code_that_the_system_makes_a_success_of(
    code: int, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to the registry has an experiment fail with 256, of which a process keeps eight bits.

    Refused: `jobqueue run` exits with 100 then.
    Evidence: the code that the command ends its process with.
    Red before: it was 256, which a shell takes for 0.
    """
    monkeypatch.setattr("producers.cli.submit.open_client", lambda _: client)
    failed = ExperimentFailed("failed", reason=Reason.EXITED_NONZERO.name, exit_code=code)
    monkeypatch.setattr(Experiment, "exception", lambda *_: failed)
    monkeypatch.setattr("producers.cli.submit.copy_output", lambda _: None)

    assert CliRunner().invoke(jobqueue, ["run", "--image", "any", "--", "true"]).exit_code == EXIT_FAILED


@pytest.mark.security_case("Results changed after the end")
@pytest.mark.parametrize("how", ["read", "download", "result"])
def test_an_output_is_read_no_further_than_its_manifest_says(
    how: str, exp: Experiment, worker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can write an attempt's prefix puts a file without an end in the place of a small result.

    Refused: as soon as more has come than the manifest says.
    Evidence: how much of it is read, and that nothing is left on the disk.
    Red before: all of it was read, into the memory or onto the disk of whoever asked, before its digest was looked at.
    """
    worker.run()
    worker.put_outputs({"outputs/result.json": b"{}"})
    worker.finish(exit_code=0)
    read = endless(worker.store, monkeypatch, output_key(worker.prefix, "outputs/result.json"))
    do: dict[str, Callable[[], object]] = {
        "read": lambda: exp.outputs.read_bytes("outputs/result.json"),
        "download": lambda: exp.outputs.download(tmp_path / "out"),
        "result": exp.result,
    }

    with pytest.raises(ArtifactRefused, match="has changed in the store"):
        do[how]()
    assert sum(read) == len(PIECE)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.security_case("Results changed after the end")
def test_a_marker_is_small_and_of_the_experiment_that_was_asked_for(
    exp: Experiment, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can write to the store puts another experiment's marker, or one without an end, in the place of one.

    Refused: it is read no further than a marker can be long, and has to name its experiment.
    Evidence: the errors, and how much is read.
    Red before: any length was read into memory, and the experiment that it names was not looked at.
    """
    worker.run()
    worker.finish(exit_code=0)
    key, store = result_key(exp.id), worker.store
    marker = marker_from_json(b"".join(store.get(key)))
    other = f"{exp.id[:-1]}{'0' if exp.id[-1] != '0' else '1'}"

    store.put(key, marker_to_json(replace(marker, experiment_id=other)))
    with pytest.raises(ArtifactRefused, match="another experiment"):
        read_marker(store, exp.id)
    read = endless(store, monkeypatch, key)
    with pytest.raises(ArtifactRefused, match="longer"):
        read_marker(store, exp.id)
    assert sum(read) <= 2 * len(PIECE)


def test_a_manifest_with_a_size_below_zero_is_none(exp: Experiment, worker: Any) -> None:
    worker.run()
    listed = Manifest(files=(OutputFile(path="a", size_bytes=-1, sha256="0" * 64),))
    worker.store.put(manifest_key(worker.prefix), manifest_to_json(listed))
    worker.finish(exit_code=0)

    with pytest.raises(ArtifactRefused, match="not a manifest"):
        exp.outputs.download("never")


@pytest.mark.security_case("terminal escape and HTML in names, logs and errors")
def test_progress_that_is_nested_too_deep_is_none(exp: Experiment, worker: Any) -> None:
    """Whoever can write to the registry nests an experiment's progress so deep that no reader can take it.

    Refused: it is shown without its progress.
    Evidence: the property, the sentence and the table of a notebook.
    Red before: each raised RecursionError, and so did the list of all experiments.
    """
    worker.run(progress="[" * 100_000)

    assert exp.progress == {}
    assert "RUNNING" in exp.why()
    assert "RUNNING" in exp._repr_html_()

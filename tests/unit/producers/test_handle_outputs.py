"""Outputs are read by name, checked, and written below the folder that the user named."""

from pathlib import Path

import pytest
from services.hand_worker import HandWorker

from jobqueue.artifacts import output_key
from jobqueue.errors import ArtifactRefused, InvalidSpec, NotFound
from jobqueue.lifecycle import Reason
from producers.handle import Experiment


@pytest.fixture
def files() -> dict[str, bytes]:
    return {"model.pt": b"weights", "metrics/loss.csv": b"1\n2\n", "outputs/empty": b""}


def end_with(worker: HandWorker, files: dict[str, bytes], reason: Reason = Reason.EXITED_ZERO) -> None:
    worker.run()
    worker.put_outputs(files)
    worker.finish(reason, exit_code=0)


def test_every_file_can_be_listed_and_read(exp: Experiment, worker: HandWorker, files: dict[str, bytes]) -> None:
    end_with(worker, files)

    assert set(exp.outputs) == set(files)
    assert len(exp.outputs) == 3
    assert {file.path: file.size_bytes for file in exp.outputs.files} == {
        path: len(data) for path, data in files.items()
    }
    assert all(exp.outputs.read_bytes(path) == data for path, data in files.items())


def test_a_failed_experiment_has_outputs_too(exp: Experiment, worker: HandWorker, files: dict[str, bytes]) -> None:
    end_with(worker, files, Reason.EXITED_NONZERO)

    assert "model.pt" in exp.outputs


def test_they_are_written_below_the_folder(
    exp: Experiment, worker: HandWorker, files: dict[str, bytes], tmp_path: Path
) -> None:
    end_with(worker, files)
    out = tmp_path / "new" / "out"

    written = exp.outputs.download(out)
    exp.outputs.download(out)

    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in written} == files
    assert {path for path in out.rglob("*") if path.is_file()} == set(written)


def test_what_was_left_out_is_told_with_its_reason(exp: Experiment, worker: HandWorker) -> None:
    worker.run()
    worker.put_outputs({"model.pt": b""}, left_out=("outputs/link: leads out of the workspace",))
    worker.finish(exit_code=0)

    assert exp.outputs.left_out == ("outputs/link: leads out of the workspace",)


def test_before_the_end_there_are_none(exp: Experiment) -> None:
    with pytest.raises(NotFound, match="no result"):
        list(exp.outputs)


def test_an_unknown_file_is_named_with_those_that_exist(
    exp: Experiment, worker: HandWorker, files: dict[str, bytes]
) -> None:
    end_with(worker, files)

    with pytest.raises(NotFound, match=r"there are: metrics/loss.csv, model.pt"):
        exp.outputs.read_bytes("modle.pt")


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "."])
def test_a_path_that_leads_out_is_refused(exp: Experiment, worker: HandWorker, tmp_path: Path, path: str) -> None:
    from jobqueue.artifacts import Manifest, OutputFile, manifest_key, manifest_to_json

    worker.run()
    listed = Manifest(files=(OutputFile(path=path, size_bytes=0, sha256="0" * 64),))
    try:
        worker.store.put(manifest_key(worker.prefix), manifest_to_json(listed))
    except ArtifactRefused:
        pytest.skip("the manifest refuses it already")
    worker.finish(exit_code=0)

    with pytest.raises(ArtifactRefused):
        exp.outputs.download(tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_a_link_in_the_folder_leads_nothing_out(
    exp: Experiment, worker: HandWorker, files: dict[str, bytes], tmp_path: Path
) -> None:
    end_with(worker, files)
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "metrics").symlink_to(elsewhere)

    with pytest.raises(ArtifactRefused, match="leads out"):
        exp.outputs.download(out)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.security_case("Outputs that are one file")
def test_two_outputs_are_not_written_into_one_file(exp: Experiment, worker: HandWorker, tmp_path: Path) -> None:
    """Outputs whose paths are one on the disk of who fetches them: by case, by a link, by how a letter is composed.

    Refused: the second one, by both names.
    Evidence: the error, and that the first file is as it was; here a link in the folder makes them one.
    Red before: the second one took the first one's place, under the first one's name and digest.
    """
    worker.run()
    worker.put_outputs({"Metrics/loss.csv": b"1\n", "metrics/loss.csv": b"forged"})
    worker.finish(exit_code=0)
    out = tmp_path / "out"
    (out / "Metrics").mkdir(parents=True)
    (out / "metrics").symlink_to("Metrics")

    with pytest.raises(ArtifactRefused, match=r"'Metrics/loss\.csv' and 'metrics/loss\.csv' are one file"):
        exp.outputs.download(out)
    assert (out / "Metrics" / "loss.csv").read_bytes() == b"1\n"


def test_changed_bytes_are_refused_and_nothing_is_left_half_written(
    exp: Experiment, worker: HandWorker, files: dict[str, bytes], tmp_path: Path
) -> None:
    end_with(worker, files)
    worker.store.put(output_key(worker.prefix, "model.pt"), b"other")

    with pytest.raises(ArtifactRefused, match="has changed"):
        exp.outputs.read_bytes("model.pt")
    with pytest.raises(ArtifactRefused):
        exp.outputs.download(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
    assert not (tmp_path / "out" / "model.pt").exists()


@pytest.mark.parametrize("folder", ["", " "])
def test_an_empty_name_is_not_the_current_folder(
    exp: Experiment, worker: HandWorker, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    worker.run()
    worker.put_outputs({"train.py": b"print(1)"})
    worker.finish(exit_code=0)

    with pytest.raises(InvalidSpec, match="folder: is empty"):
        exp.outputs.download(folder)
    assert not (tmp_path / "train.py").exists()

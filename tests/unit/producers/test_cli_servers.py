"""Queues, keys, reports and the doctor, over the servers in memory."""

import json
import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from jobqueue.brokers import open_broker
from jobqueue.codec import encode_report
from jobqueue.errors import NotFound
from jobqueue.ids import ExperimentId, NodeId, WorkerId
from jobqueue.keys import KeyRing, Reader, Signer, ensure_laptop_keys, make_pair
from jobqueue.lifecycle import Fault, Reason, State
from jobqueue.registry import open_registry
from jobqueue.registry.memory_directory import MemoryDirectory
from jobqueue.registry.presence import WorkerRecord
from jobqueue.report import LogEntry, Progress, Report, Severity, TaskState
from jobqueue.resources import Offer
from producers.cli import doctor, jobqueue
from producers.connections import without_password

_ID = ExperimentId("exp-01arz3ndektsv4rrffq69g5fav")
_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"p{uuid4().hex}"
    for variable, value in {
        "BROKER_URL": "memory://",
        "STORAGE_URL": "memory://cli",
        "STATE_DIR": str(tmp_path),
        "PROJECT": name,
    }.items():
        monkeypatch.setenv(f"JOBQUEUE_{variable}", value)
    return name


def _call(*words: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(jobqueue, words, input=stdin)


def test_queues_are_made_shown_and_deleted(project: str) -> None:
    assert _call("queues", "create", "--reporting").stdout.split() == [
        f"{project}_cpu",
        f"{project}_cpu_reporting",
        f"{project}_gpu",
        f"{project}_gpu_reporting",
    ]
    shown = json.loads(_call("queues", "ls", "-o", "json").stdout)
    assert {row["queue"]: row["ready"] for row in shown}[f"{project}_cpu"] == 0
    assert _call("queues", "delete", f"{project}_cpu", "--yes").exit_code == 0
    assert f"{project}_cpu" not in _call("queues", "ls", "-o", "name").stdout.split()


def test_deleting_asks_first(project: str) -> None:
    _call("queues", "create")
    refused = _call("queues", "delete", f"{project}_cpu", stdin="n\n")
    assert refused.exit_code == 1
    assert "0 messages" in refused.stderr
    assert f"{project}_cpu" in _call("queues", "ls", "-o", "name").stdout.split()


def test_a_queue_that_is_not_there_is_102(project: str) -> None:
    assert _call("queues", "ls", "no-such_cpu").exit_code == 102
    assert _call("queues", "delete", "no-such_cpu", "--yes").exit_code == 102


@pytest.mark.parametrize("name", ["über", "a b", "x_dead", "x" * 71, "-x", "a/b"])
def test_a_name_that_cannot_be_a_request_queues_is_a_usage_error(project: str, name: str) -> None:
    refused = _call("queues", "create", "--", name)
    assert refused.exit_code == 2
    assert "not the name of a request queue" in refused.stderr
    assert "in the experiment" not in refused.stderr


def test_without_queues_ls_says_how_to_make_them(project: str) -> None:
    result = _call("queues", "ls")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "jobqueue queues create" in result.stderr


def test_new_keys_write_their_public_lines_alone_on_stdout(project: str, tmp_path: Path) -> None:
    for role, lines in (("node", 2), ("sender", 1), ("reporting", 1), ("clerk", 1), ("operator", 1)):
        result = _call("keys", "new", role)
        assert all(line.startswith(f"jobqueue-{role}-") for line in result.stdout.splitlines())
        assert len(result.stdout.splitlines()) == lines
        assert "private" not in result.stdout
        assert "jobqueue keys trust" in result.stderr
    assert KeyRing(tmp_path / "keys").sender()


@pytest.mark.parametrize("form", ["line", "file", "stdin"])
def test_a_key_is_trusted_for_some_queues_by_line_file_or_stdin(project: str, tmp_path: Path, form: str) -> None:
    key = make_pair(tmp_path / "elsewhere", Signer.SENDER)
    path = tmp_path / "mailed.pub"
    path.write_text(key.line)
    given = {"line": key.line, "file": str(path), "stdin": "-"}[form]
    result = _call("keys", "trust", given, "--queue", "vision_", stdin=key.line)
    assert result.stdout.strip() == key.key_id
    ring = KeyRing(tmp_path / "keys")
    assert ring.trusted(key.key_id, queue="vision_cpu") == key
    with pytest.raises(NotFound):
        ring.trusted(key.key_id, queue="other_cpu")


@pytest.mark.parametrize(
    "given",
    [b"", b"\xff" * 300, "jobqueue-sender-ed25519 \N{EM DASH} now".encode()],
    ids=["nothing", "bytes", "a dash"],
)
def test_what_is_no_key_on_stdin_is_refused(project: str, given: bytes) -> None:
    result = _call("keys", "trust", "-", stdin=given)
    assert "not a key" in result.stderr


def test_who_trusts_a_site_and_still_seals_to_oneself_is_warned(project: str, tmp_path: Path) -> None:
    site = tmp_path / "site's"
    lines = [make_pair(site, Reader.NODE).line, make_pair(site, Signer.OPERATOR).line]
    ensure_laptop_keys(tmp_path / "keys")
    own = KeyRing(tmp_path / "keys").recipient("vision_cpu").key_id
    for line in lines:
        assert own in _call("keys", "trust", line).stderr
    assert own in _call("keys", "trust", lines[1], "--queue", "vision_").stderr
    assert not _call("keys", "trust", lines[0], "--queue", "vision_").stderr
    assert not _call("keys", "trust", make_pair(site, Signer.SENDER).line).stderr
    (tmp_path / "keys" / "sender").chmod(0o777)
    assert _call("keys", "trust", lines[0]).exit_code == 0


def test_what_a_node_has_written_is_trusted_as_it_is(project: str, tmp_path: Path) -> None:
    written = (
        CliRunner(env={"JOBQUEUE_KEYS": str(tmp_path / "node's")}).invoke(jobqueue, ["keys", "new", "node"]).stdout
    )
    result = _call("keys", "trust", "-", stdin=written)
    sealing, signing = result.stdout.split()
    ring = KeyRing(tmp_path / "keys")
    assert (ring.recipient("q").key_id, ring.trusted_node(signing, queue="q").key_id) == (sealing, signing)


def test_an_operator_publishes_node_keys_and_takes_them_back(
    project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = CliRunner(env={"JOBQUEUE_KEYS": str(tmp_path / "node's")}).invoke(jobqueue, ["keys", "new", "node"]).stdout
    assert _call("keys", "publish", lines).exit_code == 102, "there is no operator here"
    assert _call("keys", "new", "operator").stdout.startswith("jobqueue-operator-")
    (key_id,) = _call("keys", "publish", "-", "--queue", "vision_", stdin=lines).stdout.split()
    assert _call("keys", "publish", "-", "--queue", "vision_", stdin=lines).exit_code == 0
    (row,) = json.loads(_call("keys", "published", "-o", "json").stdout)
    assert (row["key"], row["queues"]) == (key_id, "vision_*")
    assert _call("keys", "publish", "--queue", "vision_").exit_code == 2, "which key?"
    monkeypatch.setenv("JOBQUEUE_PUBLISHED_FOR", "400d")
    assert "jobqueue keys publish" in _call("keys", "publish").stderr
    (again,) = json.loads(_call("keys", "published", "-o", "json").stdout)
    assert {**again, "signed": "", "until": ""} == {**row, "signed": "", "until": ""}
    assert row["signed"] <= again["signed"] < row["until"] < again["until"]
    assert _call("keys", "publish", lines.splitlines()[1]).exit_code == 1, "nothing is sealed to what signs"
    assert _call("keys", "publish", lines, "--queue", "a/b").exit_code != 0
    assert _call("keys", "unpublish", key_id).stdout.split() == [key_id]
    assert _call("keys", "unpublish", key_id).exit_code == 102
    assert _call("keys", "publish").exit_code == 102, "there is nothing to sign anew"
    assert json.loads(_call("keys", "published", "-o", "json").stdout) == []
    assert "no operator that is trusted here publishes a key" in _call("keys", "published").stderr


def test_what_is_published_is_signed_with_every_operators_key_that_is_here(
    project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _call("keys", "new", "operator").stdout
    key_id = _call("keys", "publish", make_pair(tmp_path / "node's", Reader.NODE).line).stdout.strip()
    lines += _call("keys", "rotate", "operator").stdout
    assert _call("keys", "publish").exit_code == 0
    for line in lines.splitlines():
        monkeypatch.setenv("JOBQUEUE_KEYS", str(tmp_path / uuid4().hex))
        _call("keys", "trust", line)
        (row,) = json.loads(_call("keys", "published", "-o", "json").stdout)
        assert row["key"] == key_id
    monkeypatch.delenv("JOBQUEUE_KEYS")
    with closing(open_registry("memory://")) as registry:
        before = registry.directory.documents()
        assert _call("keys", "unpublish", key_id).exit_code == 0
        cut_short = KeyRing(tmp_path / "keys").operators()[-1].public.key_id
        registry.directory.put({cut_short: before[cut_short]}, seen=registry.directory.documents())
    (tmp_path / "keys" / "operator" / f"{cut_short}.published").unlink()
    assert _call("keys", "publish").exit_code == 102, "the newer of both lists is empty"
    other = make_pair(tmp_path / "other's", Reader.NODE)
    _call("keys", "publish", other.line)
    assert {row["key"] for row in json.loads(_call("keys", "published", "-o", "json").stdout)} == {other.key_id}
    assert _call("keys", "unpublish", other.key_id).exit_code == 0
    assert json.loads(_call("keys", "published", "-o", "json").stdout) == []


def test_an_older_client_publishes_nothing_where_it_would_lose_keys_that_it_does_not_know(
    project: str, tmp_path: Path
) -> None:
    _call("keys", "new", "operator")
    operator, node = KeyRing(tmp_path / "keys").operators()[-1], make_pair(tmp_path / "node's", Reader.NODE)
    newer = node.line.replace("node-mlkem768-x25519", "node-mlkem1024-x448")
    inside = {"at": "2026-01-01T00:00:00Z", "until": "2999-01-01T00:00:00Z", "keys": [{"queue": "", "line": newer}]}
    body = json.dumps(inside)
    signature = operator.sign(b"jobqueue/v1/published" + body.encode()).hex()
    with closing(open_registry("memory://")) as registry:
        document = json.dumps({"body": body, "signature": signature}).encode()
        assert registry.directory.put({operator.public.key_id: document}, seen={})
    for words in (["publish"], ["publish", node.line], ["unpublish", node.key_id]):
        result = _call("keys", *words)
        assert result.exit_code == 1
        assert "update jobqueue" in result.stderr


def test_who_never_gets_to_publish_is_told_so_and_has_changed_nothing(
    project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _call("keys", "new", "operator")
    node = make_pair(tmp_path / "node's", Reader.NODE)
    with monkeypatch.context() as crowd:
        crowd.setattr(MemoryDirectory, "put", lambda *_, **__: False)
        result = _call("keys", "publish", node.line)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "run it again" in result.stderr
    assert json.loads(_call("keys", "published", "-o", "json").stdout) == []


def test_a_rotation_tells_what_comes_next(project: str, tmp_path: Path) -> None:
    old = _call("keys", "new", "sender").stdout
    result = _call("keys", "rotate", "sender", "--after", "10m")
    new = result.stdout
    assert KeyRing(tmp_path / "keys").sender().public.line == old.strip()
    assert new.startswith("jobqueue-sender-")
    assert new != old
    assert "jobqueue keys revoke" in result.stderr
    assert _call("keys", "rotate", "sender", "--after", "0s").exit_code == 0
    assert KeyRing(tmp_path / "keys").sender().public.line not in (old.strip(), new.strip())


def test_what_is_not_there_is_not_rotated(project: str, tmp_path: Path) -> None:
    result = _call("keys", "rotate", "clerk")
    assert result.exit_code == 102
    assert "jobqueue keys new clerk" in result.stderr
    assert not (tmp_path / "keys" / "clerk").exists()


def test_what_is_no_key_is_refused(project: str) -> None:
    assert _call("keys", "trust", "jobqueue-sender-ed25519 AAAA then").exit_code == 1
    assert _call("keys", "trust", "no-such-file").exit_code == 102


def test_show_lists_keys_and_writes_no_private_half(project: str, tmp_path: Path) -> None:
    ensure_laptop_keys(tmp_path / "keys")
    rows = json.loads(_call("keys", "show", "-o", "json").stdout)
    assert sorted((row["role"], row["half"]) for row in rows) == [
        *[("node", "private")] * 2,
        *[("node", "public")] * 2,
        ("sender", "private"),
        ("sender", "public"),
        ("trusted", "public"),
    ]
    assert not [row for row in rows if "private" in row["line"]]
    assert _call("keys", "show", rows[0]["key_id"]).stdout.strip() == rows[0]["line"]
    assert _call("keys", "show", "unknown").exit_code == 102


def test_a_revoked_key_is_gone(project: str, tmp_path: Path) -> None:
    key = _call("keys", "trust", make_pair(tmp_path / "elsewhere", Signer.SENDER).line).stdout.strip()
    assert _call("keys", "revoke", key).exit_code == 0
    assert _call("keys", "revoke", key).exit_code == 102


def _report(payload: Progress | LogEntry | str, *, sequence: int, **changes: object) -> bytes:
    report = Report(
        at=_AT,
        experiment_id=_ID,
        worker_id=WorkerId("cpu@node"),
        sequence=sequence,
        attempt=1,
        token=7,
        payload=payload,
        **changes,  # type: ignore[arg-type]
    )
    return encode_report(report)


_TOLD = [
    _report(Progress(task_state=TaskState.PRESTART), sequence=0, state=State.PREPARING),
    _report(Progress(task_state=TaskState.STARTED), sequence=1, state=State.RUNNING),
    _report(LogEntry(message="pulled\x1b[2J", severity=Severity.INFO), sequence=2),
    _report(Progress(task_state=TaskState.STARTED, json='{"progress": 0.5}'), sequence=3),
    _report("a text", sequence=4),
    _report(
        Progress(task_state=TaskState.FAILED, error="it exited with 3", error_code=3),
        sequence=5,
        state=State.FAILED,
        reason=Reason.EXITED_NONZERO,
        fault=Fault.USER,
        exit_code=3,
    ),
]


def _send(project: str, *bodies: bytes) -> None:
    assert _call("queues", "create", "--reporting").exit_code == 0
    with closing(open_broker("memory://", lease=timedelta(minutes=1))) as broker:
        for body in bodies:
            assert broker.post.send(f"{project}_cpu_reporting", body, content_type="application/vnd.jobqueue.report")


def test_reports_are_shown_decoded_and_taken_from_the_queue(project: str) -> None:
    _send(project, *_TOLD)
    result = _call("reports", "listen", "--queue", f"{project}_cpu", "--count", "6", "--timeout", "10s")
    assert result.exit_code == 0, result.stderr
    lines = [line.split("  ", 2) for line in result.stdout.splitlines()]
    assert [line[1] for line in lines] == [f"{_ID} #1.{number} [not verified]" for number in range(6)]
    assert "anybody can have written these reports" in result.stderr
    assert [line[2] for line in lines] == [
        "Prestart PREPARING",
        "Started RUNNING",
        "Info: pulled?[2J",
        'Started {"progress": 0.5}',
        "a text",
        "Failed FAILED EXITED_NONZERO it exited with 3 (exit code 3)",
    ]
    again = _call("reports", "listen", "--queue", f"{project}_cpu", "--timeout", "100ms")
    assert again.stdout == ""


def test_reports_as_json_are_one_object_to_a_line(project: str) -> None:
    _send(project, *_TOLD)
    result = _call("reports", "listen", "--queue", f"{project}_cpu", "--count", "6", "-o", "json", "--timeout", "10s")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [report["sequence"] for report in found] == list(range(6))
    assert {report["signed_by"] for report in found} == {None}
    assert found[2]["logging"]["message"] == "pulled\x1b[2J"
    assert found[4]["text"] == "a text"
    assert found[5]["progress"] == {"state": "Failed", "json": "", "error": {"msg": "it exited with 3", "code": 3}}
    assert (found[5]["state"], found[5]["reason"], found[5]["exit_code"]) == ("FAILED", "EXITED_NONZERO", 3)


def test_what_is_no_report_does_not_stop_the_listener(project: str) -> None:
    _send(project, b"\xff\xff", _TOLD[0])
    result = _call("reports", "listen", "--queue", f"{project}_cpu", "--count", "1", "--timeout", "10s")
    assert "Prestart" in result.stdout
    assert "warning: 2 bytes in" in result.stderr


def test_listening_makes_the_queue_that_workers_report_to(project: str) -> None:
    assert _call("reports", "listen", "--timeout", "50ms").exit_code == 0
    with closing(open_broker("memory://", lease=timedelta(seconds=60))) as broker:
        assert broker.queues.exists(f"{project}_cpu_reporting")


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_engine", lambda: "")


def _findings() -> dict[str, tuple[str, str]]:
    rows = json.loads(_call("doctor", "-o", "json").stdout)
    return {row["name"]: (row["verdict"], row["fix"]) for row in rows}


def test_the_doctor_sends_nobody_to_the_doctor(project: str, no_engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQUEUE_REGISTRY_URL", "memory://")
    monkeypatch.setenv("JOBQUEUE_STORAGE_URL", "file:///dev/null/store")
    monkeypatch.delenv("JOBQUEUE_BROKER_URL")
    fixes = {row["name"]: row["fix"] for row in json.loads(_call("doctor", "-o", "json").stdout)}
    assert fixes["broker"].startswith("start everything on this machine with `jobqueue dev`")
    assert fixes["store"] == "is it running, and is JOBQUEUE_STORAGE_URL right?"


def test_the_doctor_finds_all_well(project: str, tmp_path: Path, no_engine: None) -> None:
    ensure_laptop_keys(tmp_path / "keys")
    _call("queues", "create")
    _announce(project, "OK")
    found = _findings()
    verdicts = {name: verdict for name, (verdict, _) in found.items() if "disk" not in name}
    assert verdicts == {
        "settings": "ok",
        "broker": "ok",
        "queues": "ok",
        "registry": "ok",
        "clock": "ok",
        "workers": "ok",
        "store": "ok",
        "keys": "ok",
        "engine": "warn",
        "devices": "ok",
    }
    assert _call("doctor").exit_code == 0


def test_the_doctor_knows_of_published_keys(project: str, no_engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    line = _call("keys", "new", "node").stdout
    operator = _call("keys", "new", "operator").stdout
    _call("keys", "publish", line)
    monkeypatch.setenv("JOBQUEUE_KEYS", os.environ["JOBQUEUE_STATE_DIR"] + "/another")
    _call("keys", "new", "sender")
    assert "cannot submit from here" in _call("doctor").stdout
    _call("keys", "trust", operator)
    assert "cannot submit from here" not in _call("doctor").stdout


def test_the_doctor_names_a_worker_that_takes_nothing(project: str, tmp_path: Path, no_engine: None) -> None:
    _announce(project, "NO_ENGINE")
    try:
        assert _findings()["workers"][0] == "warn"
        assert "taking nothing: cpu@test: NO_ENGINE" in _call("doctor").stdout
    finally:
        _announce(project, "OK")


def _announce(project: str, state: str) -> None:
    worker = WorkerRecord(
        worker_id=WorkerId("cpu@test"),
        node_id=NodeId("test"),
        queues=(f"{project}_cpu",),
        offer=Offer(cpus=1, memory_bytes=1, disk_bytes=1),
        runtime="process",
        state=state,
    )
    open_registry("memory://").workers.announce(worker, ttl=timedelta(minutes=1))


def test_the_doctor_names_the_fix_for_what_is_missing(project: str, no_engine: None) -> None:
    found = _findings()
    assert found["queues"] == ("warn", f"jobqueue queues create {project}_cpu {project}_gpu")
    assert found["keys"][0] == "warn"
    assert "jobqueue keys new sender" in found["keys"][1]
    assert _call("doctor").exit_code == 0


def test_the_doctor_fails_on_a_private_key_that_others_can_read(project: str, tmp_path: Path, no_engine: None) -> None:
    ensure_laptop_keys(tmp_path / "keys")
    [path] = (tmp_path / "keys" / "sender").glob("*.key")
    path.chmod(0o644)
    assert _findings()["keys"] == ("FAIL", f"chmod 600 {path}")
    result = _call("doctor")
    assert result.exit_code == 69
    assert f"fix: chmod 600 {path}" in result.stdout


def test_the_doctor_fails_on_a_wrong_setting(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQUEUE_LEASE", "soon")
    assert _call("doctor").exit_code == 69
    assert list(_findings()) == ["settings"]


def test_the_doctor_names_a_variable_that_is_no_setting(
    project: str, monkeypatch: pytest.MonkeyPatch, no_engine: None
) -> None:
    monkeypatch.setenv("JOBQUEUE_BROKER", "amqp://somewhere")
    assert _findings()["settings"] == ("warn", "did you mean JOBQUEUE_BROKER_URL?")


def test_the_doctor_wants_the_engine_where_it_is_asked_for(
    project: str, monkeypatch: pytest.MonkeyPatch, no_engine: None
) -> None:
    monkeypatch.setenv("JOBQUEUE_RUNTIME", "docker")
    assert _findings()["engine"][0] == "FAIL"
    monkeypatch.setenv("JOBQUEUE_RUNTIME", "process")
    assert _findings()["engine"][0] == "ok"


@pytest.mark.parametrize(("seconds", "verdict"), [(-29, "ok"), (29, "ok"), (31, "warn"), (-31, "warn")])
def test_a_clock_that_is_far_from_the_registrys_is_told(seconds: int, verdict: str) -> None:
    assert doctor._judge_clock(timedelta(seconds=seconds)).verdict == verdict


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://me:secret@host:5672/x", "amqp://me@host:5672/x"),
        ("redis://:secret@host/0", "redis://@host/0"),
        ("redis+socket:///run/x.sock", "redis+socket:///run/x.sock"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown

"""Switching protections off: for tests on one machine, loudly, and nowhere else."""

import logging

import pytest

from jobqueue.errors import InvalidSetting
from jobqueue.unprotected import VARIABLE, Protection, is_off

HERE = {
    "JOBQUEUE_BROKER_URL": "amqp://guest:guest@127.0.0.1:5672//",
    "JOBQUEUE_REGISTRY_URL": "redis+socket:///run/redis.sock",
    "JOBQUEUE_STORAGE_URL": "s3://bucket/prefix",
    "JOBQUEUE_STORAGE_ENDPOINT": "http://localhost:9000",
}


@pytest.fixture(autouse=True)
def _servers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HERE.items():
        monkeypatch.setenv(name, value)


def test_every_protection_is_on_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not any(is_off(protection) for protection in Protection)
    monkeypatch.setenv(VARIABLE, "")
    assert not any(is_off(protection) for protection in Protection)
    monkeypatch.setenv(VARIABLE, "quarantine, marker")
    assert [protection for protection in Protection if is_off(protection)] == ["quarantine", "marker"]


def test_switching_one_off_is_said_loudly(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(VARIABLE, "guard,guard")
    assert is_off(Protection.GUARD)
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.CRITICAL, "protection.off")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOBQUEUE_BROKER_URL", "amqp://guest@broker.example//"),
        ("JOBQUEUE_BROKER_URL", ""),
        ("JOBQUEUE_REGISTRY_URL", "rediss://10.0.0.1:6379/0"),
        ("JOBQUEUE_STORAGE_ENDPOINT", ""),
        ("JOBQUEUE_STORAGE_ENDPOINT", "http://127.0.0.1.example"),
    ],
)
def test_it_is_refused_where_a_server_is_elsewhere_or_unnamed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, "sweep")
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSetting, match="on this machine"):
        is_off(Protection.SWEEP)


def test_a_word_that_is_no_protection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sweep,lease")
    with pytest.raises(InvalidSetting, match="consumer"):
        is_off(Protection.SWEEP)

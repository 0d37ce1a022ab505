"""Settings: arguments win over the environment, that over files; what cannot be used is an error of ours."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from jobqueue.brokers import open_broker
from jobqueue.config import Settings, misspelt_variables
from jobqueue.errors import InvalidSetting


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start in, and an environment without settings of ours."""
    for name in [name for name in os.environ if name.startswith(("JOBQUEUE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_any_setting_everything_is_embedded(here: Path) -> None:
    settings = Settings()
    state = here / "home" / ".local" / "state" / "jobqueue"
    assert settings.state_dir == state
    assert settings.broker == settings.registry == f"redis+socket://{state}/dev/redis.sock"
    assert settings.storage == (state / "store").as_uri()
    assert settings.keys_dir == state / "keys"
    assert settings.cache_dir == here / "home" / ".cache" / "jobqueue"
    assert (settings.lease, settings.grace) == (timedelta(seconds=60), timedelta(seconds=30))
    assert (settings.networks, settings.images, settings.queues) == (("none",), ("*",), ())


@pytest.mark.security_case("settings of another user of the machine")
def test_settings_that_another_user_laid_into_a_shared_folder_are_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user of a login host lays a `jobqueue.toml` into `/tmp`, with a broker and keys of his own.

    Refused: the file, by whoever starts anything of ours there; one in a folder that others cannot write to counts.
    Evidence: the error; the same file in the same folder once that is not everybody's.
    Red before: what was submitted there went to his broker, sealed to his key.
    """
    file = here / "jobqueue.toml"
    file.write_text('project = "strangers"\n')
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    else:
        os.chown(file, 65534, 65534)
    here.chmod(0o1777)
    with pytest.raises(InvalidSetting, match=r"jobqueue\.toml here is another user's"):
        Settings()
    here.chmod(0o755)
    assert Settings().project == "strangers"


def test_celery_is_told_what_is_wrong_without_a_traceback() -> None:
    command = [sys.executable, "-m", "celery", "-A", "jobqueue", "worker"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "JOBQUEUE_LEASE": "abc"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode != 0
    assert "error: JOBQUEUE_LEASE: not a duration: 'abc'" in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("url", ["redis", "amqp", "hunter2", ""])
def test_a_broker_without_a_scheme_is_none(url: str) -> None:
    with pytest.raises(InvalidSetting, match="use one of amqp://") as refused:
        open_broker(url, lease=timedelta(seconds=60))
    assert "hunter2" not in str(refused.value)


def test_state_folders_beside_each_other_share_the_locks_of_devices_unless_a_folder_is_named(here: Path) -> None:
    one, two = (Settings(state_dir=here / name).device_locks_dir for name in ("one", "two"))
    assert one == two == here / "jobqueue-devices"
    assert Settings(state_dir=here / "one", device_locks=here / "locks").device_locks_dir == here / "locks"


def test_arguments_win_over_the_environment_that_over_twins_and_those_over_the_file(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "jobqueue.toml").write_text('project = "file"\nlease = "1s"\ngrace = "1s"\nmax_timeout = "1s"\n')
    (here / "twin").write_text("2s\n")
    for name in ("LEASE", "GRACE", "MAX_TIMEOUT"):
        monkeypatch.setenv(f"JOBQUEUE_{name}_FILE", str(here / "twin"))
    for name in ("GRACE", "MAX_TIMEOUT"):
        monkeypatch.setenv(f"JOBQUEUE_{name}", "3s")
    settings = Settings(max_timeout="4s")
    assert settings.project == "file"
    assert [settings.lease, settings.grace, settings.max_timeout] == [timedelta(seconds=n) for n in (2, 3, 4)]


def test_lists_are_written_with_commas_or_as_lists(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "jobqueue.toml").write_text('images = ["python:*", "busybox"]\nnetworks = "none, bridge"\n')
    monkeypatch.setenv("JOBQUEUE_QUEUES", "a_*, b_gpu,")
    settings = Settings()
    assert settings.images == ("python:*", "busybox")
    assert settings.networks == ("none", "bridge")
    assert settings.queues == ("a_*", "b_gpu")


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEASE", "KEYS", "BROKER_URL", "LEASE_FILE"):
        monkeypatch.setenv(f"JOBQUEUE_{name}", "")
    assert Settings() == Settings(lease="60s")


def test_folders_are_absolute_and_a_tilde_is_home(here: Path) -> None:
    assert Settings(keys="~/keys").keys_dir == here / "home" / "keys"
    assert Settings(keys="keys").keys_dir == here / "keys"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE", "soon"), ("LEASE", "0s"), ("MAX_TIMEOUT", "0s"), ("LOG_LIMIT", "8Gb"), ("RUNTIME", "podman"),
        ("LOG_FORMAT", "xml"), ("PROJECT", "my project"), ("PROJECT", "x" * 65), ("GRACE", "-1s"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"JOBQUEUE_{name}", value)
    with pytest.raises(InvalidSetting, match=f"^JOBQUEUE_{name}: "):
        Settings()


def test_all_wrong_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQUEUE_LEASE", "soon")
    monkeypatch.setenv("JOBQUEUE_RUNTIME", "podman")
    with pytest.raises(InvalidSetting, match=r"JOBQUEUE_RUNTIME.*") as caught:
        Settings()
    assert "JOBQUEUE_LEASE" in str(caught.value)


@pytest.mark.parametrize("content", ["lease = ", "[jobqueue", "\xff\xfe"])
def test_a_file_that_is_no_toml_is_an_error_that_names_it(here: Path, content: str) -> None:
    (here / "jobqueue.toml").write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidSetting, match=r"jobqueue\.toml"):
        Settings()


def test_an_unknown_setting_in_the_file_is_named(here: Path) -> None:
    (here / "jobqueue.toml").write_text('leese = "1s"\n')
    with pytest.raises(InvalidSetting, match=r"JOBQUEUE_LEESE: no such setting \(did you mean JOBQUEUE_LEASE\?\)"):
        Settings()


def test_a_variable_that_is_no_setting_is_named_with_the_close_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQUEUE_BROKER", "amqp://h")
    monkeypatch.setenv("JOBQUEUE_BROKER_URL_FILE", "/run/secrets/broker")
    monkeypatch.setenv("JOBQUEUE_XYZ", "1")
    assert misspelt_variables() == {"JOBQUEUE_BROKER": "JOBQUEUE_BROKER_URL", "JOBQUEUE_XYZ": ""}


def test_a_changed_copy_follows_its_own_fields() -> None:
    settings = Settings(broker_url="redis://a", registry_url="", state_dir="/a")
    assert (settings.broker, settings.registry, settings.keys_dir) == ("redis://a", "redis://a", Path("/a/keys"))

    changed = settings.model_copy(update={"broker_url": "redis://b", "state_dir": Path("/b")})

    assert (changed.broker, changed.registry, changed.keys_dir) == ("redis://b", "redis://b", Path("/b/keys"))
    assert changed.storage == "file:///b/store"


def test_a_twin_that_cannot_be_read_is_an_error_that_names_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (here / "nowhere", here):
        monkeypatch.setenv("JOBQUEUE_BROKER_URL_FILE", str(path))
        with pytest.raises(InvalidSetting, match="JOBQUEUE_BROKER_URL_FILE"):
            Settings()
    (here / "binary").write_bytes(b"\xff")
    monkeypatch.setenv("JOBQUEUE_BROKER_URL_FILE", str(here / "binary"))
    with pytest.raises(InvalidSetting, match="JOBQUEUE_BROKER_URL_FILE"):
        Settings()


def test_a_password_in_a_url_is_shown_nowhere() -> None:
    settings = Settings(broker_url="amqp://u:hunter2@h/", registry_url="redis://:hunter2@h")
    assert "hunter2" not in repr(settings)
    with pytest.raises(InvalidSetting) as caught:
        Settings(broker_url=["hunter2"])
    assert "hunter2" not in str(caught.value)


def test_another_broker_than_redis_needs_a_registry_of_its_own() -> None:
    assert Settings(broker_url="amqp://h", registry_url="redis://r").registry == "redis://r"
    assert Settings(broker_url="rediss://h").registry == "rediss://h"
    with pytest.raises(InvalidSetting, match="JOBQUEUE_REGISTRY_URL"):
        _ = Settings(broker_url="sqs://").registry

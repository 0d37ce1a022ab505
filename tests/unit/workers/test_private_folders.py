"""Which folders and files of a node its experiments are not to see."""

from pathlib import Path

import pytest

from jobqueue.config import Settings
from workers.attempt.runtimes.opening import find_private


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("url", "stores"), [("file:///opt/the%20store", {Path("/opt/the store")}), ("s3://bucket/file:/opt", set())]
)
def test_a_store_that_is_a_folder_is_private_like_keys_and_cache(tmp_path: Path, url: str, stores: set[Path]) -> None:
    settings = Settings(state_dir=tmp_path / "state", storage_url=url)
    others = {tmp_path / "jobqueue-devices", tmp_path / "jobqueue.toml"}
    assert set(find_private(settings)) == {settings.keys_dir, settings.cache_dir, *others, *stores}


@pytest.mark.parametrize("name", ["broker_url", "keys_passphrase", "management_url", "storage_url"])
def test_a_file_that_a_setting_is_read_from_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "secret").write_text("file:///secret")
    monkeypatch.setenv(f"JOBQUEUE_{name.upper()}_FILE", "secret")
    assert tmp_path / "secret" in find_private(Settings(state_dir=tmp_path))


def test_so_are_the_key_of_tls_and_the_credentials_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/opt/aws")
    settings = Settings(state_dir=tmp_path, tls_ca="/opt/ca.pem", tls_cert="/opt/both.pem", tls_key="/opt/key.pem")
    assert {Path("/opt/aws"), Path("/opt/both.pem"), Path("/opt/key.pem")} < set(find_private(settings))
    assert Path("/opt/ca.pem") not in find_private(settings)


def test_a_variable_that_names_no_file_hides_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = find_private(settings := Settings(state_dir=tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", "")
    assert find_private(settings) == expected


def test_a_user_without_a_home_starts_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(state_dir=tmp_path, cache_dir=tmp_path)
    expected = find_private(settings)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    assert find_private(settings) == expected


def test_the_home_of_the_workers_user_is_private_and_one_that_is_the_systems_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert home in find_private(Settings(state_dir=tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: home.stat().st_uid + 1)
    assert home not in find_private(Settings(state_dir=tmp_path))

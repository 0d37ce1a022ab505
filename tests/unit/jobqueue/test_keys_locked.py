"""Private keys under a passphrase, secrets that are mounted, keys made for later."""

import errno
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobqueue.config import Settings
from jobqueue.errors import InvalidSetting, KeyRefused, NotFound
from jobqueue.keys import KeyRing, Reader, Signer, ensure_laptop_keys, list_keys, make_pair, revoke, trust
from jobqueue.keys import locking as module

NOW = datetime(2026, 7, 1, tzinfo=UTC)
PASSPHRASE = "correct horse ünï"


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The salts for which the slow function was called."""
    salts: list[bytes] = []
    real = module.Scrypt

    def noted(*, salt: bytes, **options: int) -> module.Scrypt:
        salts.append(salt)
        return real(salt=salt, **options)

    module._derive.cache_clear()
    monkeypatch.setattr(module, "Scrypt", noted)
    yield salts
    module._derive.cache_clear()


def test_a_private_key_under_a_passphrase_is_used_with_it_and_refused_without(tmp_path: Path) -> None:
    ensure_laptop_keys(tmp_path, passphrase=PASSPHRASE)
    ring = KeyRing(tmp_path, passphrase=PASSPHRASE)
    assert ring.node_key(ring.recipient("q").key_id).open(ring.recipient("q").seal(b"x", info=b""), info=b"") == b"x"
    for wrong, said in (("", "none is set"), ("correct horse", "does not open")):
        with pytest.raises(KeyRefused, match=said) as caught:
            KeyRing(tmp_path, passphrase=wrong).sender()
        assert "JOBQUEUE_KEYS_PASSPHRASE_FILE" in caught.value.hint
        assert str(tmp_path) in caught.value.message
    revoke(tmp_path, ring.sender().public.key_id, passphrase=PASSPHRASE)


def test_the_file_of_a_private_key_under_a_passphrase_shows_nothing_of_it(tmp_path: Path) -> None:
    make_pair(tmp_path, Signer.SENDER, passphrase=PASSPHRASE)
    (path,) = (tmp_path / "sender").glob("*.key")
    (entry,) = (entry for entry in list_keys(tmp_path, passphrase=PASSPHRASE) if entry.path == path)
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert entry.key.line.split()[1] not in text
    assert "private" not in text
    assert PASSPHRASE not in repr(entry)


@pytest.mark.parametrize("cut", [10, 60])
def test_a_changed_or_cut_file_is_refused(tmp_path: Path, cut: int) -> None:
    make_pair(tmp_path, Signer.SENDER, passphrase=PASSPHRASE)
    (path,) = (tmp_path / "sender").glob("*.key")
    kind, content, created_at = path.read_text().split()
    for changed in (content[: -(-len(content) // 4) * 4 - 4], content[: cut // 4 * 4], content[::-1].lstrip("=")):
        path.write_text(f"{kind} {changed} {created_at}")
        with pytest.raises(KeyRefused):
            KeyRing(tmp_path, passphrase=PASSPHRASE).sender()


def test_keys_without_a_passphrase_are_used_beside_those_under_it(tmp_path: Path) -> None:
    older = make_pair(tmp_path, Reader.NODE)
    newer = make_pair(tmp_path, Reader.NODE, passphrase=PASSPHRASE)
    ring = KeyRing(tmp_path, passphrase=PASSPHRASE)
    assert ring.node_key(older.key_id)
    assert ring.node_key(newer.key_id)


def test_the_slow_function_is_called_once_for_a_file_and_never_for_a_message(
    tmp_path: Path, derived: list[bytes]
) -> None:
    make_pair(tmp_path, Signer.SENDER, passphrase=PASSPHRASE)
    derived.clear()
    module._derive.cache_clear()
    seconds = [0.0]
    ring = KeyRing(tmp_path, passphrase=PASSPHRASE, clock=lambda: seconds[0])
    for _ in range(3):
        ring.sender().sign(b"message")
        seconds[0] += 5
    make_pair(tmp_path, Signer.SENDER)
    seconds[0] += 5
    ring.sender()
    assert len(derived) == 1


def test_a_wrong_passphrase_costs_the_slow_function_once(tmp_path: Path, derived: list[bytes]) -> None:
    make_pair(tmp_path, Signer.SENDER, passphrase=PASSPHRASE)
    derived.clear()
    ring = KeyRing(tmp_path, passphrase="wrong")
    for _ in range(3):
        with pytest.raises(KeyRefused):
            ring.sender()
    assert len(derived) == 1


def test_the_passphrase_comes_from_a_file_of_its_own_and_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\n", encoding="utf-8")
    monkeypatch.setenv("JOBQUEUE_KEYS_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    settings = Settings(keys=tmp_path / "keys")
    ensure_laptop_keys(settings.keys_dir, passphrase=settings.keys_passphrase)
    ring = KeyRing.of(settings)
    assert ring.sender()
    assert PASSPHRASE not in repr(settings) + repr(ring)
    with pytest.raises(KeyRefused):
        KeyRing(settings.keys_dir).sender()


@pytest.mark.parametrize(
    ("owner", "find"),
    [
        (Signer.SENDER, lambda ring: ring.sender().public),
        (Signer.NODE, lambda ring: ring.node_signer().public),
        (Reader.NODE, lambda ring: ring.recipient("q")),
        (Reader.REPORTING, lambda ring: ring.own_reporting()),
        (Reader.REPORTING, lambda ring: ring.reporting("q")),
    ],
)
def test_a_key_that_is_made_for_later_is_not_used_before(
    tmp_path: Path, owner: Signer | Reader, find: Callable[[KeyRing], object]
) -> None:
    now = [NOW]
    ring = KeyRing(tmp_path, now=lambda: now[0])
    old = make_pair(tmp_path, owner, used_from=NOW - timedelta(days=1))
    new = make_pair(tmp_path, owner, used_from=NOW + timedelta(hours=1))
    assert find(ring) == old
    now[0] = NOW + timedelta(hours=1)
    assert find(ring) == new


def test_a_key_whose_maker_has_a_clock_that_is_ahead_is_used_where_there_is_no_other(tmp_path: Path) -> None:
    only = make_pair(tmp_path, Signer.SENDER, used_from=NOW + timedelta(hours=1))
    assert KeyRing(tmp_path, now=lambda: NOW).sender().public == only


class Mount:
    """A secret as Kubernetes mounts it: files are links through `..data`, which is swapped when the secret changes."""

    def __init__(self, folder: Path, *, mode: int = 0o440) -> None:
        self.folder, self._mode, self._version = folder, mode, 0
        folder.mkdir(parents=True)

    def show(self, files: dict[str, str]) -> None:
        """Have the folder hold these files, in one step."""
        self._version += 1
        version = self.folder / f"..2026_07_01_{self._version}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
            (version / name).chmod(self._mode)
        (self.folder / "..data_tmp").symlink_to(version.name)
        (self.folder / "..data_tmp").replace(self.folder / "..data")
        for path in self.folder.iterdir():
            if not path.name.startswith(".") and path.name not in files:
                path.unlink()
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file lies on a file system that is mounted read-only."""
    monkeypatch.setattr(os, "fstatvfs", lambda _descriptor: SimpleNamespace(f_flag=os.ST_RDONLY))
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_flag=os.ST_RDONLY))


def _files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("mode", [0o400, 0o440])
@pytest.mark.usefixtures("read_only")
def test_a_mounted_secret_is_read_and_seen_when_it_is_swapped(tmp_path: Path, mode: int) -> None:
    for name in ("old", "new"):
        make_pair(tmp_path / name, Reader.NODE)
        make_pair(tmp_path / name, Signer.NODE)
    mount = Mount(tmp_path / "keys" / "node", mode=mode)
    mount.folder.chmod(0o1777)  # as a secret's volume has it
    mount.show(_files(tmp_path / "old" / "node"))
    seconds = [0.0]
    ring = KeyRing(tmp_path / "keys", clock=lambda: seconds[0])
    first, signer = ring.recipient("q"), ring.node_signer()
    assert ring.node_key(first.key_id)
    mount.show({**_files(tmp_path / "old" / "node"), **_files(tmp_path / "new" / "node")})
    seconds[0] += 1
    assert ring.recipient("q") != first
    assert ring.node_signer() != signer
    assert ring.node_key(first.key_id)
    mount.show(_files(tmp_path / "new" / "node"))
    seconds[0] += 1
    with pytest.raises(NotFound):
        ring.node_key(first.key_id)


def test_a_trusted_key_that_is_taken_out_of_a_mounted_secret_is_revoked(tmp_path: Path) -> None:
    key = make_pair(tmp_path / "sender", Signer.SENDER)
    trust(tmp_path / "other", key.line, queue_prefix="lab_")
    mount = Mount(tmp_path / "keys" / "trusted")
    mount.show(_files(tmp_path / "other" / "trusted"))
    seconds = [0.0]
    ring = KeyRing(tmp_path / "keys", clock=lambda: seconds[0])
    assert ring.trusted(key.key_id, queue="lab_cpu") == key
    mount.show({})
    seconds[0] += 1
    with pytest.raises(NotFound):
        ring.trusted(key.key_id, queue="lab_cpu")


@pytest.mark.security_case("key file world-readable")
@pytest.mark.usefixtures("read_only")
def test_a_mounted_private_key_is_refused_when_everybody_can_read_it(tmp_path: Path) -> None:
    """A secret with private keys is mounted readable for everybody, as Kubernetes does by default.

    Refused: the key is not used, and the hint is the mode to mount it with; the pod's group may read it.
    Evidence: looking it up raises KeyRefused for 0444 and 0644.
    """
    make_pair(tmp_path / "made", Signer.SENDER)
    for mode in (0o444, 0o644):
        mount = Mount(tmp_path / f"{mode:o}" / "sender", mode=mode)
        mount.show(_files(tmp_path / "made" / "sender"))
        with pytest.raises(KeyRefused, match="defaultMode"):
            KeyRing(tmp_path / f"{mode:o}").sender()


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("no folder")
    with pytest.raises(KeyRefused, match="no key can be put"):
        make_pair(tmp_path / "keys", Signer.SENDER)


def test_a_file_without_a_passphrase_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passphrase").write_text("\n")
    monkeypatch.setenv("JOBQUEUE_KEYS_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    with pytest.raises(InvalidSetting, match="JOBQUEUE_KEYS_PASSPHRASE"):
        Settings()


def test_a_key_is_revoked_whatever_is_wrong_with_others(tmp_path: Path) -> None:
    make_pair(tmp_path, Signer.SENDER, passphrase=PASSPHRASE)
    stolen = trust(tmp_path, make_pair(tmp_path / "other", Signer.SENDER).line, queue_prefix="lab_")
    (tmp_path / "trusted" / "stray.pub").write_text("no key")
    revoke(tmp_path, stolen)
    assert [path.name for path in (tmp_path / "trusted").iterdir()] == ["stray.pub"]
    with pytest.raises(NotFound):
        revoke(tmp_path, stolen)


def test_what_cannot_be_revoked_because_it_is_mounted_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    key_id = trust(tmp_path, make_pair(tmp_path / "other", Signer.SENDER).line)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(KeyRefused, match="Read-only") as caught:
        revoke(tmp_path, key_id)
    assert "secret" in caught.value.hint

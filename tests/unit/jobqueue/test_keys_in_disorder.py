"""Of a folder of keys in disorder everything is told, and a key is taken out of use whatever is wrong with it."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jobqueue.errors import KeyRefused, NotFound
from jobqueue.keys import KeyRing, Reader, Signer, SigningPublicKey, make_pair, revoke, survey_keys, trust
from producers.cli import jobqueue

PASSPHRASE = "correct horse"


def call(folder: Path, *words: str, passphrase: str = "") -> Result:
    settings = {"JOBQUEUE_KEYS": str(folder), "JOBQUEUE_BROKER_URL": "memory://"}
    if passphrase:
        settings["JOBQUEUE_KEYS_PASSPHRASE"] = passphrase
    return CliRunner(env=settings).invoke(jobqueue, ["keys", *words])


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Let nobody look into a folder, whoever runs this."""
    user, mode = os.geteuid(), folder.stat().st_mode
    folder.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)


@pytest.fixture
def stolen(tmp_path: Path) -> SigningPublicKey:
    """Trust the key of a sender, for all queues and for some."""
    key = make_pair(tmp_path / "elsewhere", Signer.SENDER)
    for prefix in ("", "lab_"):
        trust(tmp_path / "keys", key.line, queue_prefix=prefix)
    return key


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _fill(path: Path) -> None:
    path.write_bytes(os.urandom(200_000))


def _let_others_write(path: Path) -> None:
    path.chmod(0o666)


def _link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _copy_under_another_name(path: Path) -> None:
    path.with_name("friend.pub").write_bytes(path.read_bytes())


@pytest.mark.parametrize("damage", [_empty, _fill, _let_others_write, _link_to_nothing, _copy_under_another_name])
def test_every_file_of_a_key_goes_with_it_whatever_is_in_it(
    tmp_path: Path, stolen: SigningPublicKey, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "keys" / "trusted"
    damage(folder / f"{stolen.key_id}.pub")
    revoke(tmp_path / "keys", stolen.key_id)
    assert list(folder.iterdir()) == []
    with pytest.raises(NotFound):
        revoke(tmp_path / "keys", stolen.key_id)


def test_a_folder_that_is_none_keeps_no_key_trusted_and_is_named(tmp_path: Path, stolen: SigningPublicKey) -> None:
    (tmp_path / "keys" / "node").write_text("no folder")
    with pytest.raises(KeyRefused, match=f"{stolen.key_id} is out of use elsewhere, but .*/node cannot be read"):
        revoke(tmp_path / "keys", stolen.key_id)
    with pytest.raises(NotFound):
        KeyRing(tmp_path / "keys").trusted(stolen.key_id, queue="lab_cpu")


def test_what_is_wrong_with_what_is_left_is_told_after_a_key_was_revoked(
    tmp_path: Path, stolen: SigningPublicKey
) -> None:
    stray = tmp_path / "keys" / "trusted" / "stray.pub"
    stray.write_text("no key")
    result = call(tmp_path / "keys", "revoke", stolen.key_id)
    assert (result.exit_code, result.stdout.split()) == (0, [stolen.key_id])
    assert str(stray) in result.stderr


@pytest.mark.parametrize("passphrase", ["", "another one"])
def test_a_sender_s_own_key_is_taken_out_of_use_also_where_it_cannot_be_opened(tmp_path: Path, passphrase: str) -> None:
    key = make_pair(tmp_path, Signer.SENDER, passphrase=PASSPHRASE)
    revoke(tmp_path, key.key_id, passphrase=passphrase)
    assert list((tmp_path / "sender").iterdir()) == []


def test_a_node_s_private_key_that_cannot_be_opened_is_named_and_nothing_is_sealed_to_it(tmp_path: Path) -> None:
    opens, signs = (make_pair(tmp_path, owner, passphrase=PASSPHRASE) for owner in (Reader.NODE, Signer.NODE))
    for key in (opens, signs):
        with pytest.raises(KeyRefused, match=rf"{key.key_id}\.key: .*passphrase"):
            revoke(tmp_path, key.key_id)
    assert {path.suffix for path in (tmp_path / "node").iterdir()} == {".key"}
    revoke(tmp_path, signs.key_id, passphrase=PASSPHRASE)
    with pytest.raises(NotFound):
        revoke(tmp_path, opens.key_id, passphrase=PASSPHRASE)
    assert KeyRing(tmp_path, passphrase=PASSPHRASE).node_key(opens.key_id), "for what was sealed to it before"


def test_what_can_be_used_is_listed_and_all_else_is_named(tmp_path: Path, stolen: SigningPublicKey) -> None:
    keys = tmp_path / "keys"
    locked = make_pair(keys, Signer.SENDER, passphrase=PASSPHRASE)
    for name in ("stray.pub", f"größe.{stolen.key_id}.key", "\udcff.pub"):
        (keys / "trusted" / name).write_text("no key")
    (keys / "clerk").write_text("no folder")
    result = call(keys, "show", "-o", "json")
    assert result.exit_code == 1
    assert sorted(row["key_id"] for row in json.loads(result.stdout)) == sorted([stolen.key_id] * 2 + [locked.key_id])
    for named in ("stray.pub", f"größe.{stolen.key_id}.key", f"{locked.key_id}.key", "clerk cannot be read"):
        assert named in result.stderr
    assert call(keys, "show", stolen.key_id).stdout.strip() == stolen.line
    assert call(keys, "show", "unknown").exit_code == 1, "it may be in what cannot be read"


def test_what_is_wrong_with_the_folder_itself_is_told_once(tmp_path: Path, stolen: SigningPublicKey) -> None:
    (tmp_path / "keys").chmod(0o777)
    assert call(tmp_path / "keys", "show", stolen.key_id).stderr.count("chmod 700") == 1


def test_a_role_s_keys_are_made_and_rotated_whatever_is_wrong_with_those_of_others(
    tmp_path: Path, stolen: SigningPublicKey
) -> None:
    (tmp_path / "keys" / "trusted" / "stray.pub").write_text("no key")
    for words in (["new", "sender"], ["rotate", "sender"]):
        assert call(tmp_path / "keys", *words).exit_code == 0
    assert KeyRing(tmp_path / "keys").sender().public != stolen


@pytest.mark.parametrize("passphrase", ["", "another one"])
def test_no_key_is_made_beside_one_that_does_not_open_with_the_same_passphrase(tmp_path: Path, passphrase: str) -> None:
    keys = tmp_path / "keys"
    make_pair(keys, Signer.SENDER, passphrase=PASSPHRASE)
    for words in (["new", "sender"], ["rotate", "sender"]):
        result = call(keys, *words, passphrase=passphrase)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "JOBQUEUE_KEYS_PASSPHRASE_FILE" in result.stderr
    assert len(list((keys / "sender").iterdir())) == 2
    assert KeyRing(keys, passphrase=PASSPHRASE).sender()


@pytest.mark.parametrize("name", ["", "trusted"])
def test_keys_that_nobody_may_look_at_are_an_error_of_ours(tmp_path: Path, stolen: SigningPublicKey, name: str) -> None:
    ring = KeyRing(tmp_path / "keys")
    with closed(tmp_path / "keys" / name):
        with pytest.raises(KeyRefused, match="cannot be read"):
            ring.trusted(stolen.key_id, queue="lab_cpu")
        _, refused = survey_keys(tmp_path / "keys")
        assert refused

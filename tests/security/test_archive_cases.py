"""What is packed on the submitter's machine: nothing from outside the folder, and no keys but those asked for."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path
from uuid import uuid4

import pytest
import zstandard

from jobqueue.artifacts import MAX_TREE_ENTRIES
from jobqueue.errors import ArtifactRefused, InvalidSpec
from jobqueue.storage import open_store
from producers.packaging import pack_workspace, upload_input
from workers.attempt.archive import unpack

pytestmark = pytest.mark.security
PEM = "-----BEGIN {} KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END {} KEY-----\n"
CANARY = "canary-5Q7wz"
SECRETS = {
    ".env": "TOKEN=", ".env.production": "TOKEN=", "conf/.ENV": "", "id_rsa": "", "id_ed25519": "", "id_ecdsa_sk": "",
    "server.pem": "", "store.p12": "", "store.pfx": "", "putty.ppk": "", "trust.jks": "", "passwords.kdbx": "",
    ".ssh/config": "", ".aws/credentials": "", ".azure/token": "", ".gnupg/ring": "", ".kube/config": "",
    "kubeconfig": "", "lab.kubeconfig": "", ".netrc": "", "_netrc": "", ".pypirc": "", ".npmrc": "", ".pgpass": "",
    ".git-credentials": "", ".vault-token": "", ".s3cfg": "", ".boto": "", "application_default_credentials.json": "",
    "gcloud/credentials.db": "",
    # By their content, whatever they are called.
    "notes.txt": PEM.replace("{}", "PRIVATE"), "deploy": PEM.replace("{}", "OPENSSH PRIVATE"),
    "both.crt": PEM.replace("{}", "X") + PEM.replace("{}", "EC PRIVATE"),
    "locked": PEM.replace("{}", "ENCRYPTED PRIVATE"), "keys/sender/x.key": "jobqueue-sender-ed25519-private AAAA 2026",
    "docker/config.json": '{\n  "auths": {"registry.example.org": {"auth": "',
    "dockerconfig": '{"auths":{"registry.example.org":{"auth":"',
    "project-1a2b3c.json": '{"type": "service_account", "private_key": ' + json.dumps(PEM.replace("{}", "PRIVATE")),
    "cluster.yaml": "users:\n- name: me\n  user:\n    client-key-data: LS0tLS1CRUdJTi",
    "modules/config": '[remote "origin"]\n\turl = https://someone:token@git.example.org/x.git\n# ',
}  # fmt: skip
HARMLESS = {
    "schema.json": '{"private_key": {"type": "string"}}', ".env.example": "TOKEN=", "environment.py": "x",
    "id_rsa.pub": "ssh-rsa AAAA", "keys.py": "'PRIVATE KEY'",
    # pragma: allowlist nextline secret
    "a.key": "k", "readme.md": "write `-----BEGIN PRIVATE KEY-----` first", "config": "url = https://git.example.org/x.git",
}  # fmt: skip


def fill(folder: Path, names: dict[str, str], *, text: str = "") -> None:
    for name, content in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content + text)


def unpacked(store_key: str, store: object, folder: Path) -> set[str]:
    archive = folder / "archive"
    archive.write_bytes(b"".join(store.get(store_key)))  # type: ignore[attr-defined]
    (folder / "out").mkdir()
    unpack(archive, folder / "out", max_bytes=1 << 30)
    return {str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*") if path.is_file()}


@pytest.mark.security_case("packing keys and credentials")
@pytest.mark.parametrize("kind", ["workspace", "input"])
def test_keys_and_credentials_stay_where_they_are_and_are_named(kind: str, tmp_path: Path) -> None:
    """A workspace or an input folder in which private keys, `.env` files and credentials of tools lie about.

    Refused: what looks like a secret, by its name or because a private key is in it, is left out; a warning names it.
    Evidence: no canary in the archive; every name in what the submitter is told, but for those that it shortens.
    Red before: keys under other names, and of service accounts, travelled, and an input folder with all its secrets.
    """
    source, work = tmp_path / "source", tmp_path / "work"
    work.mkdir()
    fill(source, SECRETS, text=CANARY)
    fill(source, HARMLESS)
    (source / "link").symlink_to("notes.txt")
    store = open_store(f"memory://{uuid4()}")
    artifact, warnings = pack_workspace(source, store) if kind == "workspace" else upload_input(source, store)
    found = unpacked(artifact.uri.removeprefix("store:"), store, work)
    assert found == set(HARMLESS)
    assert CANARY not in "".join(path.read_text() for path in (work / "out").rglob("*") if path.is_file())
    assert "look like secrets" in warnings[0]
    assert "a private key or a password" in warnings[1]
    assert all("!NAME" in warning for warning in warnings)


@pytest.mark.parametrize("kind", ["workspace", "input"])
def test_a_key_that_is_asked_for_by_name_travels(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    fill(source, {**SECRETS, ".jobqueueignore": "!notes.txt\n!.env\n"})
    store = open_store(f"memory://{uuid4()}")
    artifact, _ = pack_workspace(source, store) if kind == "workspace" else upload_input(source, store)
    assert unpacked(artifact.uri.removeprefix("store:"), store, tmp_path) == {"notes.txt", ".env", ".jobqueueignore"}


@pytest.mark.security_case("packing links out")
@pytest.mark.parametrize("kind", ["workspace", "input"])
def test_links_out_of_the_folder_are_not_followed(kind: str, tmp_path: Path) -> None:
    """A workspace with links to the submitter's own files: keys in the home folder, `/etc`, `/proc`, the folder above.

    Refused: what a link leads to is packed only if it lies in the same folder and would have been packed there.
    Evidence: no canary in the archive; the links are named in a warning.
    """
    source, home = tmp_path / "source", tmp_path / "home"
    fill(home, {"key": CANARY, "deep/key": CANARY})
    fill(source, {"a": "x", ".env": CANARY})
    for name, target in {
        "file": str(home / "key"), "folder": str(home), "up": "../home/deep", "hop": "folder/key", "root": "/",
        "environ": "/proc/self/environ", "fd": "/proc/self/fd", "sly": ".env", "passwd": "/etc/passwd",
    }.items():  # fmt: skip
        (source / name).symlink_to(target)
    store = open_store(f"memory://{uuid4()}")
    artifact, warnings = pack_workspace(source, store) if kind == "workspace" else upload_input(source, store)
    assert unpacked(artifact.uri.removeprefix("store:"), store, tmp_path) == {"a"}
    assert all(
        name in warnings[1] for name in ("file", "folder", "up", "hop", "root", "environ", "fd", "sly", "passwd")
    )


def test_names_that_would_be_one_elsewhere_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    source, store = tmp_path / "source", open_store("memory://")
    fill(source, {"Data/x": "1", "data/y": "2"})
    with pytest.raises(
        InvalidSpec, match=r"data.*differs from .*Data.* in case alone \(rename it, or list it in \.job"
    ):
        pack_workspace(source, store)
    with pytest.raises(InvalidSpec, match=r"rename it, or send a \.tar that the experiment unpacks itself"):
        upload_input(source, store)
    with tarfile.open(tmp_path / "letters.tar", "w") as archive:
        archive.add(source, "letters")
    assert upload_input(tmp_path / "letters.tar", store)[1] == []


@pytest.mark.security_case("zstd bomb")
def test_a_bomb_ends_early_with_flat_memory(tmp_path: Path) -> None:
    """A file of 64 GiB of zeros in some megabytes of frames, whose size was declared so that the ratio does not count.

    Refused: at the limit of the disk, by what the header says, before anything is unpacked.
    Evidence: some mebibytes of memory, and nothing written.
    """
    gibibytes, limit = 64, 8 << 20
    header = tarfile.TarInfo("zeros")
    header.size = gibibytes << 30
    zeros = zstandard.compress(bytes(1 << 20))
    archive, target = tmp_path / "archive", tmp_path / "target"
    target.mkdir()
    archive.write_bytes(zstandard.compress(header.tobuf(format=tarfile.GNU_FORMAT)) + zeros * (gibibytes << 10))
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactRefused, match="unpacks to more"):
            unpack(archive, target, max_bytes=limit, declared_bytes=gibibytes << 30)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert list(target.iterdir()) == []


@pytest.mark.full
@pytest.mark.security_case("zstd bomb")
def test_an_archive_of_very_many_files_is_refused_at_the_bound(tmp_path: Path) -> None:
    """A small archive of a million empty files.

    Refused: at the 100,001st entry.
    Evidence: the error, and how many files lie there; `test_workspace_archive.py` has the same with a small bound.
    """
    headers = b"".join(tarfile.TarInfo(f"{number:06d}").tobuf() for number in range(MAX_TREE_ENTRIES + 1))
    (tmp_path / "archive").write_bytes(zstandard.compress(headers * 10))
    (tmp_path / "target").mkdir()
    with pytest.raises(ArtifactRefused, match="100000 entries"):
        unpack(tmp_path / "archive", tmp_path / "target", max_bytes=1 << 30)
    assert sum(1 for _ in (tmp_path / "target").iterdir()) == MAX_TREE_ENTRIES


@pytest.mark.security_case("zstd bomb")
def test_an_archive_in_an_archive_is_a_file(tmp_path: Path) -> None:
    """An archive in an archive, so that the limits of the outer one say nothing of the inner one.

    Refused: one layer is unpacked, and what is in it stays packed.
    Evidence: one file of the inner archive's size.
    """
    inner = zstandard.compress(bytes(64 << 20))
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as outer:
        header = tarfile.TarInfo("inner.tar.zst")
        header.size = len(inner)
        outer.addfile(header, io.BytesIO(inner))
    (tmp_path / "archive").write_bytes(zstandard.compress(plain.getvalue()))
    (tmp_path / "target").mkdir()
    assert unpack(tmp_path / "archive", tmp_path / "target", max_bytes=1 << 20) == len(inner)
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["inner.tar.zst"]

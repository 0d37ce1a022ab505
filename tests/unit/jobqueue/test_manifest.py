"""A manifest survives its way through the store, and leads nobody out of the folder it is downloaded to."""

import json
from uuid import uuid4

import pytest

from jobqueue.artifacts import Manifest, OutputFile, manifest_from_json, manifest_key, manifest_to_json
from jobqueue.errors import ArtifactRefused, NotFound
from jobqueue.storage import open_store
from jobqueue.storage.manifests import load_manifest, save_manifest

MANIFEST = Manifest(
    files=(OutputFile(path="outputs/ü #1.pt", size_bytes=3, sha256="ab" * 32),), left_out=("outputs/link: a link",)
)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert manifest_from_json(manifest_to_json(MANIFEST)) == MANIFEST
    assert manifest_from_json(manifest_to_json(Manifest())) == Manifest()


def test_a_manifest_lies_beside_the_outputs() -> None:
    store = open_store(f"memory://{uuid4()}")
    save_manifest(store, "experiments/e/attempts/1-7", manifest=MANIFEST)
    assert load_manifest(store, "experiments/e/attempts/1-7") == MANIFEST
    with pytest.raises(NotFound):
        load_manifest(store, "experiments/e/attempts/2-8")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a\nb"])
def test_a_path_that_leads_out_is_refused(path: str) -> None:
    fields = json.loads(manifest_to_json(MANIFEST))
    fields["files"][0]["path"] = path
    with pytest.raises(ArtifactRefused, match="not a manifest"):
        manifest_from_json(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b'{"files": [3], "left_out": []}', b'{"files": [{}], "left_out": []}']
)
def test_other_bytes_are_refused(content: bytes) -> None:
    store = open_store(f"memory://{uuid4()}")
    store.put(manifest_key("p"), content)
    with pytest.raises(ArtifactRefused, match="not a manifest"):
        load_manifest(store, "p")

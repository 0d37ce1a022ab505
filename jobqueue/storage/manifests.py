"""The manifest of an attempt's outputs, in the store beside them."""

import hashlib
from typing import Final

from jobqueue.artifacts import Manifest, manifest_from_json, manifest_key, manifest_to_json
from jobqueue.errors import ArtifactRefused
from jobqueue.storage.base import Store, read_whole

_MAX_BYTES: Final = 128 << 20


def save_manifest(store: Store, prefix: str, *, manifest: Manifest) -> None:
    """Write the manifest of the attempt with `prefix`; once it is there, the outputs are complete."""
    store.put(manifest_key(prefix), manifest_to_json(manifest))


def digest_manifest(manifest: Manifest) -> str:
    """Return the sha256, in hex, of what `save_manifest` writes."""
    return hashlib.sha256(manifest_to_json(manifest)).hexdigest()


def load_manifest(store: Store, prefix: str, *, sha256: str = "") -> Manifest:
    """Return the manifest of the attempt with `prefix`.

    Args:
        store: where it lies.
        prefix: of the attempt.
        sha256: of its bytes, in hex, as the result marker says; empty when that does not say.

    Raises:
        NotFound: it has none.
        ArtifactRefused: what lies there is not a manifest, or not this one.
        StoreUnavailable: the store does not answer.
    """
    key = manifest_key(prefix)
    content = read_whole(store, key, at_most=_MAX_BYTES)
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactRefused(
            f"{key} has changed in the store since the attempt left it", hint="run the experiment again"
        )
    return manifest_from_json(content)

"""The manifest of an attempt's outputs, in the store beside them."""

from typing import Final

from jobqueue.artifacts import Manifest, manifest_from_json, manifest_key, manifest_to_json
from jobqueue.errors import ArtifactRefused
from jobqueue.storage.base import Store

_MAX_BYTES: Final = 128 << 20


def save_manifest(store: Store, prefix: str, *, manifest: Manifest) -> None:
    """Write the manifest of the attempt with `prefix`; once it is there, the outputs are complete."""
    store.put(manifest_key(prefix), manifest_to_json(manifest))


def load_manifest(store: Store, prefix: str) -> Manifest:
    """Return the manifest of the attempt with `prefix`.

    Raises:
        NotFound: it has none.
        ArtifactRefused: what lies there is not a manifest.
        StoreUnavailable: the store does not answer.
    """
    key = manifest_key(prefix)
    if (store.size(key) or 0) > _MAX_BYTES:
        raise ArtifactRefused(f"not a manifest: {key} has more than {_MAX_BYTES} bytes")
    return manifest_from_json(b"".join(store.get(key)))

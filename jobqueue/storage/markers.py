"""The result marker of an experiment in the store: written once, read by whoever wants the truth about the end."""

from typing import Final

from jobqueue.artifacts import result_key
from jobqueue.errors import ArtifactRefused
from jobqueue.ids import ExperimentId
from jobqueue.marker import Marker, marker_from_json, marker_to_json
from jobqueue.storage.base import Store, read_whole
from jobqueue.unprotected import Protection, is_off

_MAX_BYTES: Final = 1 << 20


def write_marker(store: Store, marker: Marker) -> Marker:
    """Write a marker unless there is one, and return the one that counts: the first.

    Raises:
        StoreUnavailable: the store does not answer; whether it was written is not known.
    """
    if is_off(Protection.MARKER):
        store.put(result_key(marker.experiment_id), marker_to_json(marker))
        return marker
    if store.put_if_absent(result_key(marker.experiment_id), marker_to_json(marker)):
        return marker
    return read_marker(store, marker.experiment_id) or marker


def read_marker(store: Store, experiment_id: ExperimentId) -> Marker | None:
    """Return the marker, or None when the experiment has not ended.

    Raises:
        ArtifactRefused: what lies there is no marker, or that of another experiment.
        StoreUnavailable: the store does not answer.
    """
    key = result_key(experiment_id)
    if store.size(key) is None:
        return None
    marker = marker_from_json(read_whole(store, key, at_most=_MAX_BYTES))
    if marker.experiment_id != experiment_id:
        raise ArtifactRefused(f"not a result marker of {experiment_id}: it is another experiment's")
    return marker

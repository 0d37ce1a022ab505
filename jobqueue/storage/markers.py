"""The result marker of an experiment in the store: written once, read by whoever wants the truth about the end."""

from jobqueue.artifacts import result_key
from jobqueue.ids import ExperimentId
from jobqueue.marker import Marker, marker_from_json, marker_to_json
from jobqueue.storage.base import Store
from jobqueue.unprotected import Protection, is_off


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
        StoreUnavailable: the store does not answer.
    """
    key = result_key(experiment_id)
    return marker_from_json(b"".join(store.get(key))) if store.size(key) is not None else None

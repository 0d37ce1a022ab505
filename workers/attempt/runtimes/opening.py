"""The runtime that a node's settings ask for, and what of the node its experiments are not to see."""

import os
from collections.abc import Callable
from pathlib import Path

from jobqueue.config import Settings
from jobqueue.storage import folders_of
from workers.attempt.runtimes import open_runtime
from workers.attempt.runtimes.base import ContainerRuntime
from workers.attempt.runtimes.gaps import EnginePolicy, check_accepted
from workers.attempt.runtimes.image_cache import ImageCache


def open_node_runtime(
    settings: Settings,
    *,
    nodes_of: Callable[[tuple[str, ...]], tuple[str, ...]] | None = None,
    image_cache: ImageCache | None = None,
) -> ContainerRuntime:
    """Return it; what it lacks is found out by `vet` and `check`.

    Raises:
        InvalidSetting: a gap is accepted that is none.
    """
    check_accepted(settings.accepted_gaps)
    return open_runtime(
        settings.runtime,
        state_dir=settings.state_dir,
        hidden=find_private(settings),
        nodes_of=nodes_of,
        image_cache=image_cache,
        policy=EnginePolicy(
            oci_runtime=settings.oci_runtime, accepted=settings.accepted_gaps, probe_image=settings.probe_image
        ),
    )


def find_private(settings: Settings) -> tuple[Path, ...]:
    """Return the folders and files, beside the state folder, that no experiment is to see, wherever they lie."""
    folders = (settings.cache_dir, settings.keys_dir, settings.device_locks_dir, *folders_of(settings.storage))
    # The store's credentials.
    files = (value for name, value in os.environ.items() if name.startswith("AWS_") and name.endswith("_FILE"))
    return (*folders, *settings.private_files, *map(Path, filter(None, files)), *_find_home())


def _find_home() -> list[Path]:
    """Return this user's home, where further credentials lie; some users have one that is the system's."""
    try:
        home = Path.home()
        return [home] if home.stat().st_uid == os.geteuid() else []
    except (OSError, RuntimeError):  # there is none, or nobody says where
        return []

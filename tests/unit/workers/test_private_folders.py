"""Which folders of a node its experiments are not to see, whoever starts them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobqueue.config import Settings
from jobqueue.errors import JobqueueError
from workers import composition
from workers.attempt import reach


class HiddenError(JobqueueError):
    """Nothing is opened here."""


@pytest.mark.parametrize("module", [composition, reach])
@pytest.mark.parametrize(
    ("url", "stores"), [("file:///opt/the%20store", {Path("/opt/the store")}), ("s3://bucket/file:/opt", set())]
)
def test_a_store_that_is_a_folder_is_hidden_like_keys_and_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: Any, url: str, stores: set[Path]
) -> None:
    settings = Settings(state_dir=tmp_path, storage_url=url)
    found: list[set[Path]] = []
    monkeypatch.setattr(module, "open_runtime", _keep(found))
    if module is composition:
        with pytest.raises(HiddenError):
            composition.make_site(settings, broker=None, worker_name="w", folder=None, share=None)  # type: ignore[arg-type]
    else:
        monkeypatch.setattr(reach, "Settings", lambda: settings)
        monkeypatch.setattr(reach.logging, "disable", lambda: None)
        assert reach.main() == 0
    assert found == [{settings.keys_dir, settings.cache_dir, *stores}]


def _keep(found: list[set[Path]]) -> Callable[..., None]:
    def open_runtime(*_: object, hidden: tuple[Path, ...], **__: object) -> None:
        found.append(set(hidden))
        raise HiddenError("")

    return open_runtime

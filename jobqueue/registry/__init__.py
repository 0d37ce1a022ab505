"""What is known of experiments, leases, live logs and workers."""

from functools import cache

from jobqueue.errors import InvalidSetting
from jobqueue.registry.base import Registry

__all__ = ["open_registry"]


def open_registry(url: str) -> Registry:
    """Open the registry at a URL, without asking it anything yet.

    Args:
        url: `redis://`, `rediss://`, `redis+socket:///path?virtual_host=N`, or `memory://`: one for this process.

    Raises:
        InvalidSetting: the URL cannot be used.
    """
    scheme, separator, _ = url.partition("://")
    if scheme in {"redis", "rediss", "redis+socket"}:
        from jobqueue.registry.redis import RedisRegistry

        return RedisRegistry(url)
    if scheme == "memory":
        return _memory()
    raise InvalidSetting(
        f"no registry can be opened at {scheme}://" if separator else "the registry's URL has no scheme",
        hint="use redis://, rediss://, redis+socket:// or memory://",
    )


@cache
def _memory() -> Registry:
    from jobqueue.registry.memory import MemoryRegistry

    return MemoryRegistry()

"""Which folders make a workspace large: those to leave out where it is too much."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

_NAMED: Final = 3
_LEVELS: Final = 2


def name_largest(weights: Iterable[tuple[str, int]], *, write: Callable[[int], str]) -> str:
    """Return the folders that weigh most, at most two levels deep, as in `data/frames/ (81000), runs/ (9000)`.

    Args:
        weights: the paths of files, each with what it weighs.
        write: writes what a folder weighs.
    """
    found = Counter[str]()
    for path, weight in weights:
        folders = path.split("/")[:-1][:_LEVELS]
        found["/".join([*folders, ""]) or "./"] += weight
    return ", ".join(f"{folder!r:.80} ({write(weight)})" for folder, weight in found.most_common(_NAMED) if weight)

"""Submit experiments and follow them: the side that a researcher imports.

Importing this package opens nothing and loads no library; each word is found when it is first used.
"""

from importlib import import_module

_WORDS = {
    "submit_experiment": "producers.submit",
    "submit_many": "producers.submit",
    "get": "producers.submit",
    "grid": "producers.submit",
    "Client": "producers.client",
    "Experiment": "producers.handle",
    "JobqueueWarning": "producers.preparation",
}

__all__ = list(_WORDS)


def __getattr__(name: str) -> object:
    if name not in _WORDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WORDS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WORDS])

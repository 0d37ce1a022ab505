"""Run machine-learning experiments in containers, from a notebook, over a message broker.

Importing this package opens nothing and loads neither Celery nor a container engine; the public words are found when
first used.
"""

from importlib import import_module

_WORDS = {
    "Client": "producers",
    "Experiment": "producers",
    "JobqueueWarning": "producers",
    "get": "producers",
    "grid": "producers",
    "submit_experiment": "producers",
    "submit_many": "producers",
    "Settings": "jobqueue.config",
    "State": "jobqueue.lifecycle",
    "Reason": "jobqueue.lifecycle",
    "JobqueueError": "jobqueue.errors",
    "InvalidSetting": "jobqueue.errors",
    "InvalidSpec": "jobqueue.errors",
    "BrokerUnavailable": "jobqueue.errors",
    "RegistryUnavailable": "jobqueue.errors",
    "StoreUnavailable": "jobqueue.errors",
    "ArtifactRefused": "jobqueue.errors",
    "NoSuchQueue": "jobqueue.errors",
    "NotFound": "jobqueue.errors",
    "IdempotencyMismatch": "jobqueue.errors",
    "ExperimentFailed": "jobqueue.errors",
    "ExperimentCancelled": "jobqueue.errors",
    "ExperimentTimeout": "jobqueue.errors",
}

__all__ = list(_WORDS)


def __getattr__(name: str) -> object:
    if name not in _WORDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WORDS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WORDS])

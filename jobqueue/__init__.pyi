# The public words as type checkers and editors see them; at run time each is found when it is first used.

from jobqueue.config import Settings as Settings
from jobqueue.errors import ArtifactRefused as ArtifactRefused
from jobqueue.errors import BrokerUnavailable as BrokerUnavailable
from jobqueue.errors import ExperimentCancelled as ExperimentCancelled
from jobqueue.errors import ExperimentFailed as ExperimentFailed
from jobqueue.errors import ExperimentTimeout as ExperimentTimeout
from jobqueue.errors import IdempotencyMismatch as IdempotencyMismatch
from jobqueue.errors import InvalidSetting as InvalidSetting
from jobqueue.errors import InvalidSpec as InvalidSpec
from jobqueue.errors import JobqueueError as JobqueueError
from jobqueue.errors import NoSuchQueue as NoSuchQueue
from jobqueue.errors import NotFound as NotFound
from jobqueue.errors import RegistryUnavailable as RegistryUnavailable
from jobqueue.errors import StoreUnavailable as StoreUnavailable
from jobqueue.lifecycle import Reason as Reason
from jobqueue.lifecycle import State as State
from producers import Client as Client
from producers import Experiment as Experiment
from producers import JobqueueWarning as JobqueueWarning
from producers import get as get
from producers import grid as grid
from producers import submit_experiment as submit_experiment
from producers import submit_many as submit_many

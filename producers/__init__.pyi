# The public words as type checkers and editors see them; at run time each is found when it is first used.

from producers.client import Client as Client
from producers.handle import Experiment as Experiment
from producers.preparation import JobqueueWarning as JobqueueWarning
from producers.submit import get as get
from producers.submit import grid as grid
from producers.submit import submit_experiment as submit_experiment
from producers.submit import submit_many as submit_many

"""The command line `jobqueue`: the table of its commands, each loaded when it is used."""

from typing import Final

import click

from producers.cli.group import Entry, LazyGroup

_HERE: Final = "producers.cli"
_ENTRIES: Final = {
    "run": Entry(target=f"{_HERE}.submit:run", summary="Submit an experiment, follow its log, exit with its code."),
    "submit": Entry(target=f"{_HERE}.submit:submit", summary="Submit an experiment and print its id."),
    "ls": Entry(target=f"{_HERE}.look:ls", summary="List experiments, newest first."),
    "show": Entry(target=f"{_HERE}.look:show", summary="Show all that is known of one experiment."),
    "why": Entry(target=f"{_HERE}.look:why", summary="Say why an experiment is where it is."),
    "logs": Entry(target=f"{_HERE}.follow:logs", summary="Print an experiment's output; -f follows it."),
    "wait": Entry(target=f"{_HERE}.follow:wait", summary="Wait until experiments are over."),
    "cancel": Entry(target=f"{_HERE}.act:cancel", summary="Cancel experiments."),
    "get": Entry(target=f"{_HERE}.act:get", summary="Download an experiment's outputs."),
    "queues": Entry(target=f"{_HERE}.queues:queues", summary="List, create, delete, pause and sweep request queues."),
    "dlq": Entry(target=f"{_HERE}.dlq:dlq", summary="List, show, replay and purge dead letters."),
    "nodes": Entry(target=f"{_HERE}.nodes:nodes", summary="List nodes; drain and resume them."),
    "keys": Entry(target=f"{_HERE}.keys:keys", summary="Make, show and trust keys."),
    "grants": Entry(target=f"{_HERE}.grants:grants", summary="Serve nodes that have no credentials of the store."),
    "reports": Entry(target=f"{_HERE}.reports:reports", summary="Listen to what workers report."),
    "doctor": Entry(target=f"{_HERE}.doctor:doctor", summary="Check settings and servers, and say how to mend them."),
    "dev": Entry(target=f"{_HERE}.dev:dev", summary="Run broker, registry, node and Flower in this terminal."),
}
_EPILOG: Final = """\b
Exit codes: 0 done, 1 refused or could not, 2 usage, 69 a server does not
answer, 100 FAILED, 101 not finished in time, 102 not found, 103 CANCELLED,
130 Ctrl-C.
Settings: JOBQUEUE_* in the environment, or jobqueue.toml.
Completion: eval "$(_JOBQUEUE_COMPLETE=bash_source jobqueue)"  (also zsh, fish)
"""


@click.group(
    name="jobqueue",
    cls=LazyGroup,
    entries=_ENTRIES,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="jobqueue", prog_name="jobqueue")
def jobqueue(*, debug: bool) -> None:
    """Run machine-learning experiments in containers: submit them, watch them, get their outputs."""
    del debug


def main() -> None:
    """Run the command line of this process."""
    jobqueue(prog_name="jobqueue")

"""From a spec to a plan: may it run here, and what does its container see."""

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from jobqueue.lifecycle import Outcome, Reason
from jobqueue.quantities import format_duration
from jobqueue.registry.base import Lease
from jobqueue.resources import Offer, fits_in, is_image_allowed
from jobqueue.spec import WORKSPACE, ExperimentSpec
from workers.attempt.runtimes.base import Labels, Plan
from workers.attempt.site import Policy

PROGRESS_FILE: Final = ".jobqueue/progress"
# Loaders of data, and the threads that libraries start for each core.
_FEWEST_PIDS: Final = 512
_PIDS_PER_CORE: Final = 64
# Libraries start a thread for each core that they see, which are all of the machine: on a large one, with some loaders
# of data, that is more than a container may have.
THREAD_VARIABLES: Final = tuple(
    f"{library}_NUM_THREADS" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "RAYON")
)


def refuse(
    spec: ExperimentSpec, *, policy: Policy, offer: Offer, find_fault: Callable[[str], str] = lambda _: ""
) -> Outcome | None:
    """Return why this node cannot run the experiment, or None when it can; `find_fault` is the runtime's."""
    if not is_image_allowed(spec.image, policy.images):
        return Outcome(reason=Reason.IMAGE_REFUSED, detail=f"this node allows {', '.join(policy.images)}")
    misfits = fits_in(spec.resources, offer)
    if spec.network not in policy.networks:
        misfits.append(f"asks for the network {spec.network!r}, this node allows {', '.join(policy.networks)}")
    elif fault := find_fault(spec.network):
        misfits.append(f"asks for the network {spec.network!r}, which this node cannot offer: {fault}")
    if spec.timeout > policy.max_timeout:
        misfits.append(
            f"asks for {format_duration(spec.timeout)}, this node allows {format_duration(policy.max_timeout)}"
        )
    return Outcome(reason=Reason.DOES_NOT_FIT, detail="; ".join(misfits)) if misfits else None


def make_plan(
    spec: ExperimentSpec,
    *,
    lease: Lease,
    queue: str,
    node_id: str,
    image: str,
    workspace: Path,
    inputs: Mapping[str, Path],
    grace: timedelta,
    gpus: tuple[str, ...] = (),
) -> Plan:
    """Return the container to start, with these devices and no other."""
    labels = Labels(experiment_id=lease.experiment_id, attempt=lease.attempt, token=lease.token, node_id=node_id)
    return Plan(
        labels=labels,
        image=image,
        command=spec.command,
        env=_environment(spec, lease=lease, queue=queue, grace=grace, gpus=gpus),
        workspace=workspace,
        inputs=inputs,
        resources=spec.resources,
        gpus=gpus,
        network=spec.network,
        pids=max(_FEWEST_PIDS, _PIDS_PER_CORE * math.ceil(spec.cpus)),
    )


def _environment(
    spec: ExperimentSpec, *, lease: Lease, queue: str, grace: timedelta, gpus: tuple[str, ...]
) -> dict[str, str]:
    """Return the container's variables; the user's own cannot replace the node's."""
    deadline = datetime.now(UTC) + spec.timeout
    return {
        "HOME": "/tmp",  # noqa: S108 - the container's own, the only folder it may write besides its workspace
        "USER": "experiment",  # an image may have none for whom it runs as, and libraries ask for it
        "PYTHONUNBUFFERED": "1",
        "NVIDIA_VISIBLE_DEVICES": ",".join(gpus) or "void",
        "CUDA_VISIBLE_DEVICES": ",".join(gpus) or "-1",
        **dict.fromkeys(THREAD_VARIABLES, str(max(1, int(spec.cpus)))),
        **spec.env,
        **spec.secrets,
        "JOBQUEUE_EXPERIMENT_ID": lease.experiment_id,
        "JOBQUEUE_NAME": spec.name or "",
        "JOBQUEUE_ATTEMPT": str(lease.attempt),
        "JOBQUEUE_TOKEN": str(lease.token),
        "JOBQUEUE_QUEUE": queue,
        "JOBQUEUE_PROJECT": spec.project,
        "JOBQUEUE_OUTPUTS": str(WORKSPACE / "outputs"),
        "JOBQUEUE_PROGRESS": str(WORKSPACE / PROGRESS_FILE),
        "JOBQUEUE_DEADLINE": deadline.isoformat(timespec="seconds"),
        "JOBQUEUE_GRACE_SECONDS": f"{grace.total_seconds():g}",
        "JOBQUEUE_GPUS": ",".join(gpus),
    }

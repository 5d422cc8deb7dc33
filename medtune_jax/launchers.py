"""What started this process: alone, or as one of several by SLURM, Open MPI, Kubernetes or on TPU workers."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from typing import Any

from medtune_jax.errors import UserError

_FLAGS = "--coordinator=HOST:PORT --num_processes=N --process_id=I"


def launcher() -> str:
    """Returns what started this process as one of several, "" where it is alone or that is not known yet.

    Not known are TPU VMs, whose machine's metadata JAX asks, and Kubernetes (`connected_pod`).
    """
    said = os.environ.get
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(map(said, slurm)) and int(said("SLURM_NTASKS", "1")) > 1:
        return "SLURM"
    if int(said("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    if "," in (said("TPU_PROCESS_ADDRESSES") or said("TPU_WORKER_HOSTNAMES") or ""):
        return "TPU workers"
    return ""


def connected_pod() -> bool:
    """Whether this is a pod of an indexed Job that was set up for its pods to find one another.

    An indexed Job alone is no sign of it: a sweep of independent runs is one too. JAX needs a headless service that the
    pod names (its full name is then of that service's domain) and the `kubernetes` package.
    """
    if not os.environ.get("KUBERNETES_SERVICE_HOST") or not os.environ.get("JOB_COMPLETION_INDEX"):
        return False
    return importlib.util.find_spec("kubernetes") is not None and ".svc." in socket.getfqdn()


def refuse_several(verb: str) -> None:
    """Raises UserError where this process was started as one of several."""
    if launcher():
        raise UserError(f"`medtune {verb}` runs in one process, but {launcher()} started several: start it once.")


def placed(coordinator: str | None, num_processes: int | None, process_id: int | None) -> dict[str, Any] | None:
    """Returns the arguments of jax.distributed.initialize; None where this process is alone.

    They are empty where JAX asks the launcher for them.

    Raises:
      UserError: some of the three are missing or out of range, or JAX cannot ask the launcher.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        if launcher() == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in os.environ:
            raise UserError(
                "Open MPI started several processes, but versions from 5 on do not say where the first is: give each "
                f"{_FLAGS}, I and N as OMPI_COMM_WORLD_RANK and OMPI_COMM_WORLD_SIZE say."
            )
        return {} if launcher() or connected_pod() or on_tpu_vm() else None
    if missing or coordinator is None or num_processes is None or process_id is None:
        raise UserError(f"{' and '.join(missing)} missing: a process is placed by all three of {', '.join(given)}.")
    if not coordinator.rpartition(":")[2].isdecimal() or not coordinator.rpartition(":")[0]:
        raise UserError(f"--coordinator={coordinator}: it is HOST:PORT of the first process.")
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process_id={process_id} is not one of the {num_processes} of --num_processes: 0 = first.")
    if num_processes == 1:
        return None
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
    }


def not_found(error: Exception) -> UserError:
    """Returns the error of processes that did not find one another."""
    told = f"{launcher() or 'You'} started several processes, but they did not find one another: {error}"
    return UserError(f"{told} Give each {_FLAGS}.")


def on_tpu_vm() -> bool:
    """Whether TPU chips are attached; then JAX asks the machine's metadata for the other workers."""
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu" or "TPU_SKIP_MDS_QUERY" in os.environ:
        return False
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def owns_visible_gpus() -> bool:
    """Whether a SLURM task is to use all the GPUs that it sees; JAX's detection gives it the one of its local index.

    So it is where the task is alone on its node, or sees only GPUs of its own (--gpus-per-task, --gpu-bind): they are
    as many as SLURM gives each task, or too few for all tasks of the node.
    """
    said = os.environ.get
    if launcher() != "SLURM" or said("JAX_LOCAL_DEVICE_IDS"):
        return False
    if said("SLURM_NTASKS") == said("SLURM_STEP_NUM_NODES"):
        return True
    visible = len([name for name in said("CUDA_VISIBLE_DEVICES", "").split(",") if name])
    per_node = said("SLURM_STEP_TASKS_PER_NODE", "1").split(",")  # as "4(x2),3"
    tasks = max(int(count.partition("(")[0]) for count in per_node)
    per_task = said("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]  # as "a100:2"
    return visible > 0 and (visible < tasks or str(visible) == per_task)

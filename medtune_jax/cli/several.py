"""The flags of verbs that may run on several devices or as several processes, and the joining of these."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn

from absl import flags as absl_flags


def define_mesh_flag(flags: absl_flags.FlagValues) -> None:
    """Defines the flag that says how devices share a model and what it is asked (generate/placing.py `mesh_for`)."""
    absl_flags.DEFINE_string(
        "mesh",
        "auto",
        "How devices share the work: auto, all of them, the weights over as many as the model's dimensions divide by "
        "and rows over the rest; data=2,tensor=4 as named; none, the first device alone. Weights are read straight "
        "into their shards: neither a device nor the host holds the whole of what is split. Each device holds its "
        "share of the weights, 4 bytes a parameter or 2 with --dtype=bfloat16, while loading one kind of them twice "
        "(of a run, in its float32), and its share of the cache, which --cache_dtype and --cache_gib make smaller.",
        flag_values=flags,
    )


def define_process_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags that place a process among several, and the times in which they find and lose one another."""
    absl_flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of the first of several processes, any free port.", flag_values=flags
    )
    absl_flags.DEFINE_integer("num_processes", None, "How many processes there are.", flag_values=flags)
    absl_flags.DEFINE_integer("process_id", None, "Which of them this one is; 0 is the first.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "process_timeout",
        60,
        "Seconds from the death of a process to the end of the others.",
        lower_bound=6,
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "join_timeout", 300, "Seconds in which all processes must have started.", lower_bound=1, flag_values=flags
    )


def joined_as(name: str, flags: absl_flags.FlagValues) -> AbstractContextManager[None]:
    """Joins the processes that the flags, or a launcher, place (processes.py `joined`); alone, it does nothing.

    name: of the command, before its messages.
    """
    from medtune_jax.processes import joined

    return joined(
        name,
        flags.coordinator,
        flags.num_processes,
        flags.process_id,
        timeout=flags.process_timeout,
        join_timeout=flags.join_timeout,
    )


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM is a KeyboardInterrupt, as main.py has it; where processes were joined, JAX's service took it."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

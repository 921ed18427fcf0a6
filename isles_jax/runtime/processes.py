"""Several processes as one run: how they start, divide the work, agree on results, and stop together.

Every process runs the same command on the same workdir. Each one reads all cases, because every device holds the whole
data set, and trains on its part of every batch. Each one predicts its share of the cases. Everything else is written
and printed by process 0 alone. A run of one process needs no JAX here.
"""

import importlib.util
import itertools
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

from isles_jax.runtime import interrupt
from isles_jax.runtime.command import InputError, fitted, problem_of

# Seconds that an ending process waits for the others at most; JAX's own default is minutes.
LEAVE_SECONDS = 30

Result = TypeVar("Result")

# JAX wants a new number each time all processes check whether to leave.
_sync_points = itertools.count(1)


class SharedError(InputError):
    """An error that all processes of a run raise at the same point, so that they leave together."""


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connects to the other processes of this run, if there are any. Call it before JAX is used.

    Args:
      coordinator: HOST:PORT of process 0. None: JAX finds the processes itself, on a TPU slice of several hosts and
        where Slurm or Open MPI started them.
      processes: their number.
      process: the number of this one, from 0.

    Raises:
      InputError: only some of the three are given; one of them is invalid; process 0 cannot be reached.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) < 3:
        if missing:
            raise InputError(f"found no {missing[0]}, expected --coordinator, --processes and --process together")
        _check_flags(str(coordinator), int(processes or 0), int(process or 0))
    elif not _cluster():
        return
    if processes == 1:
        return
    import jax

    options: dict[str, Any] = {"shutdown_timeout_seconds": LEAVE_SECONDS}
    try:
        if coordinator:
            # This process uses all devices of its machine, even if it runs in a cluster that JAX detects.
            options["cluster_detection_method"] = "deactivate"
            jax.distributed.initialize(coordinator, processes, process, **options)
        else:
            jax.distributed.initialize(**options)
    except ValueError:
        return  # libtpu is installed, but there is no TPU
    except (OSError, RuntimeError) as error:
        where = f"--coordinator={coordinator}" if coordinator else "TPU or cluster"
        raise InputError(
            f"{where}: found no run to join ({str(error).splitlines()[0]}); for one process alone: "
            "--coordinator=127.0.0.1:1 --processes=1 --process=0"
        ) from error
    if count() == 1:
        jax.distributed.shutdown()  # a TPU with a single host
        return
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _pass_on)


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Turns Ctrl-C into SIGTERM, which JAX passes on to all processes; a second Ctrl-C ends this process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _check_flags(coordinator: str, processes: int, process: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise InputError(f"--coordinator={coordinator}: expected HOST:PORT, as in 10.0.0.2:8476")
    if processes < 1:
        raise InputError(f"--processes={processes}: expected at least 1")
    if not 0 <= process < processes:
        raise InputError(f"--process={process}: expected 0 to {processes - 1}")


def _cluster() -> bool:
    """Whether JAX may find other processes of this run. Asking JAX itself would take seconds."""
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in os.environ for name in slurm) and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        return True
    if "OMPI_MCA_orte_hnp_uri" in os.environ and int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    platforms = os.environ.get("JAX_PLATFORMS") or "tpu"
    return importlib.util.find_spec("libtpu") is not None and platforms.startswith("tpu")


def count() -> int:
    """The number of processes of this run."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax and jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this process, from 0."""
    return sys.modules["jax"].process_index() if count() > 1 else 0


def first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return index() == 0


def share(items: Sequence[Result]) -> list[Result]:
    """This process's share of the items: with n processes, item i belongs to process i modulo n."""
    return list(items[index() :: count()])


def leaving() -> bool:
    """Whether to save and leave now, because this or another process received a signal.

    All processes must call it the same number of times. With several processes, JAX treats SIGTERM as the notice of a
    preemption and makes all of them return True in the same call.
    """
    if count() > 1:
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(next(_sync_points)):
            interrupt.request(signal.SIGTERM)
    return interrupt.requested()


def run(work: Callable[[], None]) -> None:
    """Runs the work of a whole command. A process that fails alone ends at once, so that the others notice.

    The others then end with an error of JAX: at once if their connection to it breaks, otherwise after 100 seconds,
    when JAX considers a silent process dead.
    """
    try:
        work()
    except SharedError:
        if first():
            raise
        sys.exit(2)  # process 0 prints the error
    except Exception as error:
        if count() == 1:
            raise
        problem = problem_of(error)
        text = fitted(f"error: {problem}", sys.stderr) if problem else traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        os._exit(2 if problem else 1)  # a regular exit would first wait for the others


def on_all(work: Callable[[], Result]) -> Result:
    """Runs `work` on every process and waits until all have finished it.

    Returns:
      What `work` returned on this process.

    Raises:
      SharedError: `work` raised an InputError on some process; all processes raise the first of these errors.
    """
    if count() == 1:
        return work()
    problem = None
    try:
        result = work()
    except InputError as error:
        problem = str(error)
    problems = [message for message in _gather(problem) if message]
    if problems:
        raise SharedError(problems[0])
    return result


def on_first(work: Callable[[], Result]) -> Result:
    """Runs `work` on process 0 alone.

    Returns:
      On every process, what `work` returned; JSON must be able to hold it.

    Raises:
      SharedError: `work` raised an InputError; all processes raise it.
    """
    if count() == 1:
        return work()
    result: Result = _gather(on_all(lambda: work() if first() else None))[0]
    return result


def _gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of the processes."""
    import numpy as np
    from jax.experimental import multihost_utils

    # Arrays must have the same shape on all processes, so the lengths are gathered first. Each shape is compiled; with
    # powers of 2, there are few.
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([encoded.size], np.int32)).ravel()
    padded = np.zeros(256 << math.ceil(math.log2(max(lengths.max() / 256, 1))), np.uint8)
    padded[: encoded.size] = encoded
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]

"""Several processes as one run: the only module that knows of them. One process alone needs no JAX here.

Every process runs the same command on the same workdir. Each reads all cases, since the whole data set lies on every
device anyway; each trains on its part of every batch; process 0 alone writes and prints, except for predictions, which
are shared out.
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
from isles_jax.runtime.command import InputError

# Seconds that a process which ends waits for the others, so that one that fails alone does not hold them for long.
LEAVE_SECONDS = 30

Result = TypeVar("Result")

# Numbers the places at which all processes ask whether to leave.
_places = itertools.count(1)


class SharedError(InputError):
    """An error that every process of a run raises at the same place, so that they can leave together."""


def start(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes of this run, if there are any; before JAX is used.

    Args:
      coordinator: HOST:PORT where process 0 can be reached; None: several processes are found on a TPU slice of
        several hosts and where Slurm or Open MPI started them.
      processes: how many there are.
      process: which one this is, from 0.

    Raises:
      InputError: only some of the three are given, or they make no sense; process 0 cannot be reached.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) < 3:
        if missing:
            raise InputError(f"found no {missing[0]}, expected --coordinator, --processes and --process together")
        _check(str(coordinator), int(processes or 0), int(process or 0))
    elif not _cluster():
        return
    if processes == 1:
        return
    import jax

    options: dict[str, Any] = {"shutdown_timeout_seconds": LEAVE_SECONDS}
    try:
        if coordinator:
            # All devices of this machine are this process's, whatever cluster it runs in.
            options["cluster_detection_method"] = "deactivate"
            jax.distributed.initialize(coordinator, processes, process, **options)
        else:
            jax.distributed.initialize(**options)
    except ValueError:
        return  # libtpu is installed, and there is no TPU
    except (OSError, RuntimeError) as error:
        reason, alone = str(error).splitlines()[0], "--coordinator=127.0.0.1:1 --processes=1 --process=0"
        where = f"--coordinator={coordinator}" if coordinator else "TPU or cluster"
        raise InputError(f"{where}: found no run to join ({reason}); for one process alone: {alone}") from error
    if count() == 1:
        jax.distributed.shutdown()  # a TPU of one host
        return
    if not first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _pass_on)


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Makes Ctrl-C a SIGTERM, of which JAX tells all processes; a second one ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _check(coordinator: str, processes: int, process: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise InputError(f"--coordinator={coordinator}: expected HOST:PORT, as in 10.0.0.2:8476")
    if processes < 1:
        raise InputError(f"--processes={processes}: expected at least 1")
    if not 0 <= process < processes:
        raise InputError(f"--process={process}: expected 0 to {processes - 1}")


def _cluster() -> bool:
    """Whether JAX may find other processes of this run; asking JAX itself would take seconds."""
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in os.environ for name in slurm) and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        return True
    if "OMPI_MCA_orte_hnp_uri" in os.environ and int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    return importlib.util.find_spec("libtpu") is not None and (os.environ.get("JAX_PLATFORMS") or "tpu").startswith(
        "tpu"
    )


def count() -> int:
    """The number of processes of this run."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax and jax.distributed.is_initialized() else 1


def index() -> int:
    """Which of them this one is, from 0."""
    return sys.modules["jax"].process_index() if count() > 1 else 0


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return index() == 0


def share(items: Sequence[Result]) -> list[Result]:
    """This process's part of some work: item i is process (i modulo their number)'s."""
    return list(items[index() :: count()])


def leaving() -> bool:
    """Whether to save and leave now, because a signal asked this or another process; to be asked by all in turn.

    On several processes SIGTERM is JAX's preemption notice: it reaches all of them at the same place.
    """
    if count() > 1:
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(next(_places)):
            interrupt.ask(signal.SIGTERM)
    return interrupt.requested()


def run(work: Callable[[], None]) -> None:
    """Does the work of a whole command; a process that fails alone ends at once, so that the others learn of it.

    The others, which wait for its part of the work, then end with an error of JAX: at once where their connection to it
    breaks, else after the 100 seconds in which JAX takes a silent process for dead.
    """
    try:
        work()
    except SharedError:
        if first():
            raise
        sys.exit(2)  # process 0 has said it
    except Exception as error:
        if count() == 1:
            raise
        mistake = isinstance(error, InputError)
        print(f"error: {error}" if mistake else traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(2 if mistake else 1)  # leaving as usual would wait for the others first


def on_all(work: Callable[[], Result]) -> Result:
    """Does the same or its share of something on every process; returns when all have.

    Raises:
      SharedError: the same on all of them, if it went wrong on any.
    """
    if count() == 1:
        return work()
    result, wrong = None, None
    try:
        result = work()
    except InputError as error:
        wrong = str(error)
    found = [told for told in _exchange(wrong) if told]
    if found:
        raise SharedError(found[0])
    return result  # type: ignore[return-value]


def on_first(work: Callable[[], Result]) -> Result:
    """Does something on process 0 alone; returns what it returned, which must be JSON-able, on all.

    Raises:
      SharedError: the same on all of them.
    """
    return _exchange(on_all(lambda: work() if first() else None))[0] if count() > 1 else work()


def _exchange(value: Any) -> list[Any]:
    """What every process says, in their order."""
    import numpy as np
    from jax.experimental import multihost_utils

    # Arrays must have one shape on all processes, so the lengths come first; few shapes mean few compilations.
    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([said.size], np.int32)).ravel()
    padded = np.zeros(256 << math.ceil(math.log2(max(lengths.max() / 256, 1))), np.uint8)
    padded[: said.size] = said
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]

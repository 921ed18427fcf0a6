"""What Orbax leaves behind if the operating system refuses to write a checkpoint: threads, coroutines, and logs."""

import asyncio
import contextlib
import gc
import inspect
import io
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from types import CoroutineType

# After a failed save: the longest wait for each of Orbax's threads, and the time for TensorStore's last calls. Both
# took less than half a second.
_JOIN_SECONDS, _CALL_SECONDS = 10, 1


def free(before: set[threading.Thread]) -> None:
    """Ends everything that a failed save left behind; `before` are the threads before the save."""
    # Orbax's threads go on logging after the failure.
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:
            threading.Thread.join(thread, _JOIN_SECONDS)  # Orbax's own `join` raises the thread's error again
    # TensorStore's threads call event loops that are closed. They cannot be joined, and they need the interpreter.
    time.sleep(_CALL_SECONDS)
    # TensorStore and the error's traceback keep coroutines that never ran, and futures whose errors nobody read. Python
    # would complain about them whenever it frees them.
    for thing in gc.get_objects():
        if type(thing) is CoroutineType:
            of_save = thing.__qualname__.startswith("async_serialize_from_host")
            if of_save and inspect.getcoroutinestate(thing) == inspect.CORO_CREATED:
                thing.close()
        elif issubclass(type(thing), asyncio.Future) and _is_abandoned(thing):
            thing.exception()
    gc.collect()


def _is_abandoned(future: asyncio.Future) -> bool:
    return future.get_loop().is_closed() and future.done() and not future.cancelled()


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Inside, `silence` holds; afterwards all is as before.

    Yields:
      A buffer that collects stderr; what it holds at the end is printed.
    """
    disabled, hook = logging.root.manager.disable, sys.unraisablehook
    try:
        with contextlib.redirect_stderr(io.StringIO()) as output, warnings.catch_warnings():
            silence()
            yield output
    finally:
        sys.unraisablehook = hook
        logging.disable(disabled)
        sys.stderr.write(output.getvalue())


def silence() -> None:
    """Switches off logging, and Python's complaints about abandoned coroutines and closed event loops."""
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda args: None if str(args.exc_value) == "Event loop is closed" else hook(args)


def system_error(error: BaseException | None) -> str | None:
    """The operating system's message in an error of Orbax or TensorStore; None if another error caused it."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code:
            return os.strerror(int(code[1]))
        error = error.__cause__ or error.__context__
    return None

"""What Orbax leaves behind if the system refuses to write a checkpoint: threads, and complaints about them."""

import contextlib
import io
import logging
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator

# After a failed save: the longest wait for each of Orbax's threads, and the time for TensorStore's last calls. Both
# took less than half a second.
_JOIN_SECONDS, _CALL_SECONDS = 10, 1


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Inside, nothing is logged, and `silence` holds; afterwards all is as before.

    Yields:
      A buffer that collects stderr; what it holds at the end is printed.
    """
    disabled, hook = logging.root.manager.disable, sys.unraisablehook
    try:
        with contextlib.redirect_stderr(io.StringIO()) as output, warnings.catch_warnings():
            logging.disable(logging.CRITICAL)
            silence()
            yield output
    finally:
        logging.getLogger("asyncio").removeFilter(_is_of_use)
        sys.unraisablehook = hook
        logging.disable(disabled)
        sys.stderr.write(output.getvalue())


def silence() -> None:
    """Ends Python's complaints about coroutines, tasks and event loops that nobody finished.

    TensorStore keeps some of a failed save until the interpreter exits.
    """
    logging.getLogger("asyncio").addFilter(_is_of_use)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda args: None if str(args.exc_value) == "Event loop is closed" else hook(args)


def _is_of_use(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()


def wait(before: set[threading.Thread]) -> None:
    """Waits for the threads that a failed save left behind; `before` are the threads before the save."""
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:
            threading.Thread.join(thread, _JOIN_SECONDS)  # Orbax's own `join` raises the thread's error again
    # TensorStore's threads call event loops that are closed. They cannot be joined, and they need the interpreter.
    time.sleep(_CALL_SECONDS)


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

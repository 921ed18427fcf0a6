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

# The longest wait for each of Orbax's threads after a failed save. It took less than half a second.
_JOIN_SECONDS = 10
# The time for TensorStore's last calls after a failed save. They took less than half a second.
_CALL_SECONDS = 1


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Inside the block nothing is logged and `silence` holds. Afterwards all is as before.

    Yields:
      A buffer that collects stderr; what it holds at the end is printed.
    """
    disabled = logging.root.manager.disable
    hook = sys.unraisablehook
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
    """Silences Python about unfinished coroutines, tasks and event loops.

    TensorStore keeps some of them until the interpreter exits.
    """
    logging.getLogger("asyncio").addFilter(_is_of_use)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda args: None if str(args.exc_value) == "Event loop is closed" else hook(args)


def _is_of_use(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()


def wait(before: set[threading.Thread]) -> None:
    """Waits for the threads of a failed save: those that were not there `before`."""
    for thread in set(threading.enumerate()) - before:
        if not thread.daemon:
            threading.Thread.join(thread, _JOIN_SECONDS)  # Orbax's own `join` raises the thread's error again
    # TensorStore's threads cannot be joined. They still call event loops, for which the interpreter must run.
    time.sleep(_CALL_SECONDS)


def system_error(error: BaseException | None) -> str | None:
    """The operating system's message in an error of Orbax or TensorStore; None if another error caused it."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        # TensorStore's errors have the number of the system's error in their text.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code:
            return os.strerror(int(code[1]))
        error = error.__cause__ or error.__context__
    return None

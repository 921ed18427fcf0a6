"""Residual-SUMNet for ischaemic stroke lesions in MRI; import the modules you need."""

import os
import sys

__version__ = "0.2.0"

# A command is starting: signals are handled before its imports, which take a while.
if sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0] if sys.argv else "") == "isles-jax":
    import signal

    # Until the handler below is there, Ctrl-C ends the process without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from isles_jax.runtime import interrupt

    interrupt.listen()

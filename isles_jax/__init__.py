"""Residual-SUMNet for ischaemic stroke lesions in MRI; import the modules you need."""

import sys

__version__ = "0.1.0"

# `python -m isles_jax.COMMAND` is starting: signals are handled before the command's imports, which take a while.
if sys.argv[:1] == ["-m"]:
    from isles_jax.runtime import interrupt

    interrupt.listen()

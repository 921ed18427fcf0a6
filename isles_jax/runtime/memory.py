"""The memory of this machine."""

import os


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))

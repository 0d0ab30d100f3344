"""How much memory there is."""

import os


def free_memory() -> int:
    """Bytes; as good as without limit where the system does not tell."""
    known = "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ())
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 2**62

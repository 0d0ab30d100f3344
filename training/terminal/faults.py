"""What ends a command beside its own work: which exit status that is, and in which words it is said."""

import errno
import re
import signal

from training.errors import UserError
from training.interruption import Stopped

CLOSED = 128 + 13  # what a shell gives for SIGPIPE; so are the other signals' statuses
HUNG_UP = 128 + 1
STATUSES = f"""exit status:
  0    all is done, and all that was checked is right
  1    something checked is not right: gradients differ, or a lesson's claim does not hold
  2    a mistake in what was asked for, or a full disk, missing files or too little memory
  3    a value became infinite or NaN in training
  {HUNG_UP}  the terminal was closed (SIGHUP)
  130  interrupted by Ctrl-C (SIGINT)
  {CLOSED}  the reader of the output closed it (| head)
  143  asked to end (SIGTERM)"""
REASONS = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "asked to end", HUNG_UP: "the terminal was closed"}
OF_THE_DISK = {
    errno.ENOSPC: "there is no space left on the disk",
    getattr(errno, "EDQUOT", errno.ENOSPC): "the disk quota is used up",
    errno.EFBIG: "a file has reached the size that is allowed here",
}
NO_MEMORY = re.compile("allocate memory|out of memory|not enough memory|bad_alloc|start new thread", re.IGNORECASE)
SIZE = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)


def fault(error: BaseException) -> tuple[str, int] | None:
    """One sentence and the exit status; None for what is a mistake of the program's, which keeps its traceback."""
    sentence, status = None, 2
    if isinstance(error, Stopped):
        status = 128 + error.signal
        sentence = REASONS[status]
    elif isinstance(error, BrokenPipeError):
        sentence, status = "the reader of the output closed it", CLOSED
    elif lacks_memory(error):
        sentence = f"there is not enough memory{_asked_for(str(error))}: free some, or ask for less"
    elif isinstance(error, UnicodeEncodeError):  # not of what is printed
        sentence = f"{error.object[error.start : error.end]!a} in a file's name is not UTF-8: rename it"
    elif isinstance(error, UserError):
        sentence = str(error)
    elif isinstance(error, OSError):
        sentence = _of_a_file(error)
    return None if sentence is None else ("; ".join([sentence, *getattr(error, "__notes__", [])]), status)


def lacks_memory(error: BaseException) -> bool:
    """torch says so by a RuntimeError, an extension that is loaded by an ImportError."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, RuntimeError | ImportError) and NO_MEMORY.search(str(error))
    return isinstance(error, MemoryError) or bool(known)


def _asked_for(text: str) -> str:
    found = SIZE.search(text)
    if found is None:
        return ""
    amount = found[1] + " " + found[2]
    if found[2].lower() == "bytes":
        amount = f"{int(found[1]) / 1e9:.2g} GB"
    return f" for {amount} more"


def _of_a_file(error: OSError) -> str:
    of = f" ({error.filename})" if error.filename else ""
    if error.errno in OF_THE_DISK:
        return f"{OF_THE_DISK[error.errno]}{of}: make room, or write elsewhere"
    return f"{error.strerror}{of}" if error.strerror else str(error)

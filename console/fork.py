"""Parts by fork: what several parts need is imported once, and each part begins in a copy of that process.

The copy begins anew: it gets the settings in force as its environment, the signals of a new process and an empty
standard input, and unwinds to the top of the command line (`BecamePart`), which then runs the part's own command as if
it had been called with it. A part that is started again is a copy of the same process, which does nothing of its own
but wait: it has no connections and no threads (docs/decisions/0015).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from worker.lifeline import die_with_parent


class BecamePart(BaseException):
    """This process is the copy; `arguments` are those of the command to run in it."""

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__(*arguments)
        self.arguments = list(arguments)


class Forked:
    """A child by fork, of which may be asked what is asked of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status (negative: the signal that ended it), or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        """Wait for its end, which has to be certain."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        # Until it is waited for, its process id is nobody else's.
        if self.poll() is None:
            os.kill(self.pid, number)


def can_fork() -> bool:
    """Whether a copy of this process is safe: no thread that could hold a lock which nobody would release there.

    OpenBLAS's own thread (numpy starts it) is none: it ends before a fork and comes back when there is work for it.
    """
    return threading.active_count() == 1


def fork_part(arguments: Sequence[str], environment: Mapping[str, str], mask: set[signal.Signals]) -> Forked:
    """Return the child; in the child, raise BecamePart.

    Parameters
    ----------
    arguments
        Of the command that the child is to run.
    environment
        All of its environment.
    mask
        The signals that are blocked in it. Those that a supervisor waits for have to be blocked now, so that none that
        is meant for the child is lost before it takes them as a new process does.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # What is there now is looked at by no collector, here or there: its pages stay shared.
    gc.freeze()
    pid = os.fork()
    if pid:
        return Forked(pid)
    die_with_parent(parent)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    _show_as([sys.executable, "-m", "console", *arguments])
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    raise BecamePart(arguments)


def _show_as(command: Sequence[str]) -> None:
    """Have `ps` show this command, so that a person can tell the parts apart; where that cannot be done, do nothing.

    The kernel reads a process's command line from the memory in which it was handed over (proc_pid_cmdline(5)), the
    environment behind it. Both have been copied by now: the one by Python, the other by `os.environ`.
    """
    with suppress(OSError, ValueError, IndexError):
        # Field 2 is a name in parentheses, and may hold anything.
        fields = Path("/proc/self/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
        start, end, environment, last = (int(fields[number - 3]) for number in (48, 49, 50, 51))
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            if memory.read(end - start) != Path("/proc/self/cmdline").read_bytes()[: end - start]:
                return
            memory.seek(start)
            memory.write(_title(command, end - start, (last if environment == end else end) - start))


def _title(command: Sequence[str], length: int, longest: int) -> bytes:
    """Return what to write over the old command of `length` bytes.

    What fits is written as the kernel writes it, a zero byte behind each word. What is longer runs on into the
    environment, which the kernel shows only where the old command's last byte is not zero, and up to the first zero.
    """
    words = [os.fsencode(word) for word in command]
    fitting = b"\0".join(words) + b"\0"
    if len(fitting) <= length:
        return fitting.ljust(length, b"\0")
    return b" ".join(words)[: longest - 1] + b"\0"

"""Every Python process that has this folder in PYTHONPATH has no more calls than Python on macOS has.

`make test-macos` runs tests with it. What macOS has in place of them does on Linux what it would do there:
`fcntl` takes F_FULLFSYNC and F_PREALLOCATE. Few files can be open at first, and the files in which Linux
describes the machine are not there.
"""

import fcntl
import os
import resource
import struct
import sys

LACKING = (
    *("preadv", "pwritev", "posix_fadvise", "posix_fallocate", "fdatasync", "copy_file_range", "splice"),
    *("sched_getaffinity", "sched_setaffinity", "eventfd", "memfd_create", "getrandom", "pipe2"),
    *("getxattr", "setxattr", "listxattr", "removexattr", "O_PATH", "O_TMPFILE", "O_DIRECT"),
)
F_FULLFSYNC, F_PREALLOCATE = 51, 42
STORE = struct.Struct("Iiqqq")
MACHINE = ("/proc/cpuinfo", "/proc/meminfo", "/proc/self/mountinfo", "/proc/self/cgroup", "/sys/fs/cgroup")
FEW = 256

plain, allocate = fcntl.fcntl, os.posix_fallocate


def commanded(descriptor, command, argument=0):
    """`fcntl`, with two commands more."""
    if command == F_FULLFSYNC:
        os.fsync(descriptor)  # looked up now: tests may watch it
        return 0
    if command == F_PREALLOCATE:
        flags, mode, offset, nbytes, _ = STORE.unpack(argument)
        assert (flags, mode, offset) == (4, 3, 0)  # all of it, from the end of the file
        allocate(descriptor, os.fstat(descriptor).st_size, nbytes)
        return STORE.pack(flags, mode, offset, nbytes, nbytes)
    return plain(descriptor, command, argument)


def refuse(event, arguments):
    """Have a path not exist."""
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(MACHINE):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])


if os.environ.get("MONOSOUP_SYSTEM") == "macos":
    for name in LACKING:
        if hasattr(os, name):
            delattr(os, name)
    fcntl.F_FULLFSYNC, fcntl.fcntl = F_FULLFSYNC, commanded
    sys.addaudithook(refuse)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (FEW if soft in (-1, resource.RLIM_INFINITY) else min(soft, FEW), hard)
    )

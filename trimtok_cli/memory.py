"""The memory of this machine: what a process can still take of it, and keeps of it. Knows no
device.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# The largest piece of memory whose return teaches glibc's allocator to keep such pieces.
LARGEST_KEPT = 32 << 20


def host_bytes() -> int | None:
    """Bytes that a process can still take on this machine, swap included; None where unknown.

    What is left of a container's own limit counts. Unlike `device.free_bytes` this includes the
    files that the system keeps in memory while nobody needs it.
    """
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * sum(int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError, IndexError):  # not Linux
        return None
    return max(0, min([free, *_left_in_groups()]))


def _left_in_groups() -> Iterator[int]:
    """What is left in each control group of this process that has a limit of memory."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for group in groups:
        _, controllers, place = group.split(":", 2)
        root, limit, used = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        if controllers:  # version 1, which has a tree for each
            root, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = root / place.lstrip("/")  # a container sees its own at the root
        for each in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # no such folder, or no limit ("max")
                yield int((each / limit).read_text()) - _kept(each, int((each / used).read_text()))
            if each == root:
                break


def _kept(group: Path, used: int) -> int:
    """The bytes that a group uses, less the files that the system would drop."""
    rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    total = "total_" if "total_active_file" in rows else ""
    return used - sum(int(rows.get(f"{total}{kind}_file", 0)) for kind in ("active", "inactive"))


def keep_freed() -> None:
    """Has the process keep up to 64 MB of memory that it freed, for the next pass on a CPU.

    glibc's allocator hands freed memory back to the system early, depending on what lies where, and
    the system clears every page that is taken again: up to a quarter of a small prefill. It hands
    back later once the process has freed a large piece: here one that nobody wrote to, which costs
    nothing. Elsewhere, and where the user has set the allocator's own variables, nothing changes.
    """
    bytes(LARGEST_KEPT - (64 << 10))  # less what surrounds a piece

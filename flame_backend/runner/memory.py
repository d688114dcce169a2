"""What the kernel says of this container's memory."""

from __future__ import annotations

from typing import Final

_COUNTERS: Final = (
    "/sys/fs/cgroup/memory.events",  # cgroups of version 2
    "/sys/fs/cgroup/memory/memory.oom_control",  # of version 1
)
"""Container runtimes show a container its own cgroup as the root of all."""


def out_of_memory_kills(counters: tuple[str, ...] = _COUNTERS) -> int | None:
    """Return how many processes of this container the kernel's OOM killer has ended.

    Args:
        counters: Files to look at; the first that has the counter counts.

    Returns:
        None where it cannot be known: no cgroup is mounted, or the kernel is older
        than 4.13 (version 1).
    """
    for path in counters:
        try:
            with open(path, encoding="ascii") as file:  # noqa: PTH123 - pathlib costs a boot 5 ms
                for line in file:
                    name, _, count = line.partition(" ")
                    if name == "oom_kill":
                        return int(count)
        except (OSError, ValueError):
            continue
    return None

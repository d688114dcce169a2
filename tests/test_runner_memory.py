"""What the kernel's counters say, in both versions of cgroups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flame_backend.runner.memory import out_of_memory_kills

if TYPE_CHECKING:
    from pathlib import Path

VERSION_1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
VERSION_2 = "low 0\nhigh 0\nmax 812\noom 7\noom_kill 5\noom_group_kill 0\n"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((None, VERSION_1), 3),
        ((VERSION_2, None), 5),
        ((None, None), None),
        ((None, "oom_kill_disable 0\nunder_oom 0\n"), None),
        (("oom_kill many\n", VERSION_1), 3),
        (("", VERSION_1), 3),
    ],
)
def test_counter_is_found_in_either_version(
    tmp_path: Path, texts: tuple[str | None, ...], expected: int | None
) -> None:
    """The first file that has it counts; a kernel without it is no zero."""
    paths = []
    for number, text in enumerate(texts):
        path = tmp_path / str(number)
        paths.append(str(path))
        if text is not None:
            path.write_text(text)
    assert expected == out_of_memory_kills(tuple(paths))

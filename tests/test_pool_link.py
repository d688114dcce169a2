"""What a call owes its caller, and what every call owes its process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import flame_backend as flame
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


def work(path: str, seconds: float = 0.7) -> str:
    """Leave a mark at the beginning and one at the end."""
    Path(path + ".on").write_text(str(os.getpid()))
    time.sleep(seconds)
    Path(path).touch()
    return path


@pytest.fixture(scope="module")
def pool() -> Iterator[flame.Pool]:
    """Lend a pool of one runner with two slots."""
    backend = flame.LocalBackend()
    with flame.Pool("links", max=1, max_concurrency=2, backend=backend) as made:
        made.wait_ready(20)
        yield made


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "made")


def begun(path: str) -> bool:
    return Path(path + ".on").exists()


@pytest.mark.parametrize("link", [True, False])
def test_cancelled_task_ends_its_call_when_linked(
    pool: flame.Pool, path: str, link: bool
) -> None:
    """Otherwise it runs to its end."""

    async def main() -> None:
        task = asyncio.create_task(pool.options(link=link).acall(work, path))
        while not begun(path):  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: pool.status().running == 0)
    assert link != Path(path).exists()


@pytest.mark.parametrize("link", [True, False])
def test_cancel_ends_a_running_call_when_linked(
    pool: flame.Pool, path: str, link: bool
) -> None:
    """It says which of the two it was, as every future does."""
    future = pool.options(link=link).submit(work, path)
    until(lambda: begun(path))
    assert link == future.cancel()
    assert link == future.cancelled()
    if not link:
        assert path == future.result(10)
    until(lambda: pool.status().running == 0)
    assert link != Path(path).exists()


@pytest.mark.parametrize("link", [True, False])
def test_cancel_withdraws_a_waiting_call(
    pool: flame.Pool, path: str, link: bool
) -> None:
    """Nothing of it has happened, so there is nothing to protect."""
    busy = [pool.submit(time.sleep, 1) for _ in range(2)]
    future = pool.options(link=link).submit(work, path)
    assert "queued" == future.phase
    assert future.cancel()
    concurrent.futures.wait(busy)
    assert 1 == pool.call(abs, -1)
    assert not begun(path)


@pytest.mark.parametrize("link", [True, False])
def test_map_that_is_left_ends_its_calls_when_linked(
    pool: flame.Pool, tmp_path: Path, link: bool
) -> None:
    """Those that run; those that wait do not begin either way."""
    paths = [str(tmp_path / str(number)) for number in range(4)]
    for _ in pool.options(link=link).map(work, paths, [0.1, 2.0, 2.0, 2.0]):
        until(lambda: sum(map(begun, paths)) == 3)
        break
    until(lambda: pool.status().running == 0)
    finished = [Path(path).exists() for path in paths]
    assert [True, not link, not link, False] == finished
    assert not begun(paths[3])


def test_unlinked_call_keeps_to_its_timeout(pool: flame.Pool, path: str) -> None:
    """Of its caller it is free, not of its clocks."""
    free = pool.options(link=False, timeout=0.4)
    with pytest.raises(flame.CallTimeout):
        free.call(work, path, 60)


def test_end_of_the_pool_waits_for_an_unlinked_call_as_for_any(path: str) -> None:
    """And ends it when its time is over."""
    with flame.Pool("links", max=1, backend=flame.LocalBackend()) as pool:
        pool.options(link=False).submit(work, path)
    assert Path(path).exists()
    pool = flame.Pool("links", max=1, backend=flame.LocalBackend())
    future = pool.options(link=False).submit(work, path, 60)
    until(future.running)
    assert not pool.drain(0.2)
    with pytest.raises(flame.CallCancelled):
        future.result(5)


SCRIPT = """
    import sys, time
    import flame_backend as flame
    from tests.test_pool_link import work

    if __name__ == "__main__":
        pool = flame.Pool("link", max=1, backend=flame.LocalBackend())
        pool.options(link=sys.argv[2] == "link").call(work, sys.argv[1], 60)
"""


@pytest.mark.parametrize("link", ["link", "free"])
def test_no_call_outlives_its_process(tmp_path: Path, path: str, link: str) -> None:
    """Nobody could take its result; gone within 5 s, linked or not."""
    script = tmp_path / "app.py"
    script.write_text(textwrap.dedent(SCRIPT))
    root = str(Path(__file__).parent.parent)
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, script, path, link], env={**os.environ, "PYTHONPATH": paths}
    )
    until(lambda: begun(path) and bool(Path(path + ".on").read_text()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    pid = int(Path(path + ".on").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists(), 5.0)
    assert not Path(path).exists()

"""Calls of a no-op by others that run Python functions elsewhere, where installed."""

from __future__ import annotations

import importlib
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from work import nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Peer = Callable[[ExitStack], Callable[[], object]]


def _loky(stack: ExitStack) -> Callable[[], object]:
    import loky

    pool = loky.ProcessPoolExecutor(1)
    stack.callback(pool.shutdown, wait=True)
    return lambda: pool.submit(nothing).result()


def _dask(stack: ExitStack) -> Callable[[], object]:
    import distributed

    cluster = stack.enter_context(
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=50,
        )
    )
    client = stack.enter_context(distributed.Client(cluster))
    # Not pure: a pure call's result is kept, and the next call only finds it.
    return lambda: client.submit(nothing, pure=False).result()


def _ray(stack: ExitStack) -> Callable[[], object]:
    import ray

    ray.init(
        num_cpus=1,
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=False,
    )
    stack.callback(ray.shutdown)
    task = ray.remote(nothing)
    return lambda: ray.get(task.remote())


PEERS: dict[str, Peer] = {"loky": _loky, "distributed": _dask, "ray": _ray}


class Called(NamedTuple):
    """A peer that is here.

    Attributes:
        title: Its name and version.
        call: Has it call a no-op.
    """

    title: str
    call: Callable[[], object]


@contextmanager
def installed(name: str, begin: Peer) -> Iterator[Called | None]:
    """Lend a peer; None, and one line that says so, when it is not installed."""
    try:
        module: Any = importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: no row")
        yield None
        return
    with ExitStack() as stack:
        yield Called(f"{name} {module.__version__}", begin(stack))

"""Being of one family with the parent, as `multiprocessing` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def join_family(authkey: bytes, on_boot: Callable[[], object] | None) -> None:
    """Take over the key of the parent's managers, and go on with its own hook.

    Proxies of a `multiprocessing.Manager` that come as arguments prove themselves with
    it; processes that `multiprocessing` itself starts have it, too.
    """
    import multiprocessing.process

    multiprocessing.process.current_process().authkey = authkey
    if on_boot is not None:
        on_boot()

"""Stack for the decoder of MessagePack, which is native code and recurses.

It stops at 1022 levels, which take up to 500 KiB of the thread's stack. Main threads
and glibc's have 8 MiB; musl gives a thread 128 KiB, and `threading.stack_size` may have
said less. There a hostile body would end the process; so it is decoded in a thread of
its own.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SAFE_BYTES: Final = 64
"""A body this short cannot nest beyond what every stack has."""

NEEDED_BYTES: Final = 1024 * 1024
GIVEN_BYTES: Final = 4 * 1024 * 1024

_setting = threading.Lock()


class _Here(threading.local):
    """What is known of the current thread."""

    large: bool | None = None


_here = _Here()


def is_large() -> bool:
    """Tell whether the current thread seems to have enough."""
    large = _here.large
    if large is None:
        large = _here.large = _seems_large()
    return large


def _seems_large() -> bool:
    if threading.get_ident() == threading.main_thread().ident:
        return _default_is_large()
    # The lock: another thread may have set the size for a moment, below. Reading the
    # size also sets it to 0.
    with _setting:
        size = threading.stack_size()
        if size:
            threading.stack_size(size)
    return size >= NEEDED_BYTES if size else _default_is_large()


@cache
def _default_is_large() -> bool:
    if sys.platform == "darwin":
        return True  # CPython asks for 16 MiB there
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or ""):
            return False
    except (ValueError, OSError):
        return False
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return soft == resource.RLIM_INFINITY or soft >= NEEDED_BYTES


def on_large_stack(work: Callable[[], Any]) -> Any:
    """Run something in a thread with enough stack; return or raise what it does."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend((True, work()))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            outcome.extend((False, error))

    thread = threading.Thread(target=run, name="flame-decode", daemon=True)
    with _setting:
        before = threading.stack_size(GIVEN_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    done, found = outcome
    if not done:
        raise found
    return found


def _renew_lock() -> None:
    global _setting  # noqa: PLW0603 - a fork may have copied it while it was held
    _setting = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)

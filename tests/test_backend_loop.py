"""The hub's thread: what its steps and moments may be."""

from __future__ import annotations

import threading

from flame_backend.backends.loop import Loop


def test_moment_far_away_leaves_the_thread_alive() -> None:
    """A boot_timeout of 25 days ended it, and every call of the pool waited."""
    loop, done = Loop("far", lambda: None), threading.Event()
    loop.start()
    loop.after(3e6, lambda: None)
    loop.after(0.05, done.set)
    assert done.wait(5)
    # Nothing but the far moment is left to wait for.
    again = threading.Event()
    threading.Event().wait(0.1)
    loop.do(again.set)
    assert again.wait(5)
    loop.close()

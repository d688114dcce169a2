"""Which of the app's modules have changed on disk since this process loaded them."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_STDLIB: Final = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120 - pathlib is 10 ms of a boot
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

Stamp = tuple[str, int, int]


class Stamps:
    """Files of loaded modules, as they were when they were first looked at.

    What is installed (the standard library, site-packages) is not edited under a
    running program; a look at it would cost more than it is worth.
    """

    def __init__(self) -> None:
        self._known: dict[str, Stamp | None] = {}

    def take(self) -> None:
        """Look at all modules that are loaded now."""
        for name in list(sys.modules):
            self.changed(name)

    def changed(self, name: str | None) -> bool:
        """Tell whether a module's file is another one than at the first look."""
        if name is None:
            return False
        try:
            known = self._known[name]
        except KeyError:
            self._known[name] = self._stamp(name)
            return False
        return known is not None and _stamped(known[0]) not in {known, None}

    def any_changed(self) -> bool:
        """Tell whether the file of any module is another one."""
        return any(map(self.changed, list(self._known)))

    def _stamp(self, name: str) -> Stamp | None:
        path: Any = getattr(sys.modules.get(name), "__file__", None)
        if name == "__main__" or not isinstance(path, str):
            return None
        installed = path.startswith(_STDLIB) or any(part in path for part in _INSTALLED)
        return None if installed else _stamped(path)


def _stamped(path: str) -> Stamp | None:
    # A file that is gone for a moment is being replaced: then it counts as unchanged.
    try:
        found = os.stat(path)  # noqa: PTH116 - once for each call
    except OSError:
        return None
    return path, found.st_mtime_ns, found.st_size

"""Keep secrets out of what gets printed: reprs, pickles, and the locals of tracebacks.

Error reporters (Sentry, `traceback.TracebackException(capture_locals=True)`) print the
variables of every frame an error passed through. A secret therefore lies in an object
that hides it, and parsers that must hold its text leave no frame behind.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from kubetls.errors import KubeTLSError

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")


class HiddenBytes:
    """Content of a file or field that may be secret; shows its length alone."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __len__(self) -> int:
        return len(self.content)

    def __repr__(self) -> str:
        return f"<{len(self.content)} hidden bytes>"

    def __reduce__(self) -> NoReturn:
        """Refuse: a secret never travels in a pickle."""
        msg = "hidden bytes are never pickled"
        raise TypeError(msg)


def leaves_no_frame(parse: Callable[_P, _R]) -> Callable[_P, _R]:
    """Raise our errors anew, without the frames, arguments and causes of the parser.

    For functions whose variables hold a secret. The error's text says all there is.
    """

    @functools.wraps(parse)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return parse(*args, **kwargs)
        except KubeTLSError as error:
            fault = error.with_traceback(None)
            fault.__cause__ = fault.__context__ = None
        # Outside the except block: inside, the old error would become the context.
        del args, kwargs
        raise fault

    return call

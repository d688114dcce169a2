"""Functions and arguments reach a fresh interpreter, or the refusal names the part."""

from __future__ import annotations

import functools
import json
import pickletools
import re
import socket
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame
from flame_backend.errors import NotSerializable, PayloadTooLarge
from flame_backend.wire.frames import Kind, Limits
from flame_backend.wire.functions import dump_call, dump_object, load_object
from flame_backend.wire.link import Body, Link

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 64 * 1024 * 1024
LOAD = (
    "import sys; from flame_backend.wire.functions import load_object;"
    "f, a, k = load_object(sys.stdin.buffer.read()); print(f(*a, **k))"
)


class Session:
    """Holds what cannot be sent."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Client:
    """Holds it one step further."""

    def __init__(self) -> None:
        self.name = "client"
        self.session = Session()

    def ask(self) -> None:
        """Do nothing; bound methods take their object along."""


class Slotted:
    """Holds it in a slot."""

    __slots__ = ("inner", "unset")

    def __init__(self) -> None:
        self.inner = Session()


class Unspeakable:
    """Fails when it is shown, and cannot be sent."""

    def __repr__(self) -> str:
        raise ValueError

    def __reduce__(self) -> str:
        raise OSError


class Unlookable:
    """Fails when it is looked into, and cannot be sent."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise ValueError

    def __reduce__(self) -> str:
        raise OSError


def too_early() -> Callable[[], object]:
    """Return a function one of whose variables is not set yet."""

    def early() -> object:
        return later, _LOCK

    if _LOCK is None:
        later = 1
    return early


def dumped(function: Any, *args: Any, **kwargs: Any) -> bytes:
    """Return the body of a call."""
    return b"".join(dump_call(function, args, kwargs, limit=LIMIT))


def names(body: bytes) -> set[str]:
    """Return the modules and names that a pickle refers to."""
    texts = {arg for _, arg, _ in pickletools.genops(body) if isinstance(arg, str)}
    return texts & {"cloudpickle.cloudpickle", "_make_function", "json", "dumps"}


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (json.dumps, ({"a": 1},), '{"a": 1}'),
        (functools.partial(json.dumps, indent=None), ([1],), "[1]"),
        ("a,b".split, (",",), "['a', 'b']"),
        (str.upper, ("x",), "X"),
        (dict.fromkeys, ("ab",), "{'a': None, 'b': None}"),
    ],
    ids=["function", "partial", "bound method", "method", "class method"],
)
def test_importable_function_travels_by_reference(
    function: Any, args: tuple[Any, ...], expected: str
) -> None:
    """A fresh interpreter imports it; nothing of it is in the request."""
    body = dumped(function, *args)
    assert "_make_function" not in names(body)
    assert expected == ran(LOAD, body)


def ran(program: str, body: bytes = b"") -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], input=body, capture_output=True, check=False
    )
    assert 0 == done.returncode, done.stderr.decode()
    return done.stdout.decode().strip()


def test_lambda_and_closure_travel_by_value() -> None:
    """With the variables they refer to."""
    offset = 40
    body = dumped(lambda value: value + offset, 2)
    assert "_make_function" in names(body)
    assert "42" == ran(LOAD, body)


def test_names_of_the_main_script_travel_by_value() -> None:
    """Its functions, classes and instances, also where plain pickle takes them."""
    script = textwrap.dedent(
        """
        import sys
        from flame_backend.wire.functions import dump_call
        class Point:
            def __init__(self, x): self.x = x
        def twice(point): return 2 * point.x
        parts = dump_call(twice, (Point(21),), {}, limit=10**6)
        sys.stdout.write(b"".join(parts).hex())
        """
    )
    assert "42" == ran(LOAD, bytes.fromhex(ran(script)))


def test_large_bytes_are_passed_on_as_they_are() -> None:
    """The very object, so sending takes no second copy."""
    data = bytes(4 * 1024 * 1024)
    parts = dump_call(len, (data,), {}, limit=LIMIT)
    assert any(part is data for part in parts)
    function, args, kwargs = load_object(b"".join(parts))
    assert (len, (data,), {}) == (function, args, kwargs)


def test_request_over_its_limit_is_refused() -> None:
    """Before anything is sent, with the option's name."""
    with pytest.raises(PayloadTooLarge, match="max_payload") as caught:
        dump_call(len, (bytes(1000),), {}, limit=500)
    assert 1000 < caught.value.size_bytes


_LOCK = threading.Lock()
_CLIENT = Client()

REFUSED: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
    (len, (1, _CLIENT), {}, "args[1].session.lock (in argument 2)"),
    (len, ([{"k": (_CLIENT,)}],), {}, "args[0][0]['k'][0].session.lock"),
    (len, (), {"to": _CLIENT}, "kwargs['to'].session.lock (in argument to)"),
    (len, (Slotted(),), {}, "args[0].inner.lock"),
    (len, ({_LOCK},), {}, "args[0] member"),
    (functools.partial(len, _CLIENT), (), {}, "function.args[0].session.lock"),
    (_CLIENT.ask, (), {}, "function.__self__.session.lock"),
    (lambda lock=_LOCK: lock, (), {}, "the function"),
    (len, (iter(()), (x for x in ())), {}, "args[1] (in argument 2)"),
    (len, (Unspeakable(),), {}, "args[0] (in argument 1)"),
    (len, ([Unlookable()],), {}, "args[0][0] (in argument 1)"),
    (too_early(), (), {}, "function (in the function)"),
    (len, ({Unspeakable(): _LOCK},), {}, "args[0][Unspeakable]"),
]


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "path"), REFUSED, ids=[row[3] for row in REFUSED]
)
def test_refusal_names_the_offending_attribute(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], path: str
) -> None:
    """In the caller, with its path, its type, and what to do."""
    with pytest.raises(NotSerializable) as caught:
        dump_call(function, args, kwargs, limit=LIMIT)
    assert path in str(caught.value)
    assert "make it inside the function" in str(caught.value)


def test_refusal_names_the_variable_of_a_closure() -> None:
    """What a lambda refers to goes along with it."""
    lock = threading.Lock()
    with pytest.raises(NotSerializable, match=r"variable lock.*_thread\.lock"):
        dump_call(lambda: lock, (), {}, limit=LIMIT)
    with pytest.raises(NotSerializable, match="lock"):
        dump_object(lock)


def test_refusal_of_a_pool_says_where_calls_are_made() -> None:
    """One made inside the function would be refused as well, and has no plain data."""
    pool = flame.Pool("p", max=1, backend=flame.InlineBackend())
    future = pool.submit(abs, -1)
    for call in ((lambda: pool, ()), (len, ([future],))):
        with pytest.raises(NotSerializable, match=r"runners make no calls") as caught:
            dump_call(*call, {}, limit=LIMIT)
        assert re.match(r"(function variable pool|args\[0\]\[0\]) ", str(caught.value))
    pool.shutdown()


def test_body_is_unpickled_from_the_link() -> None:
    """As it arrives, up to its own end and no further."""
    value = {"big": bytes(300_000), "small": list(range(50_000)), "text": "x" * 10}
    body = dump_object(value)
    left, right = map(Link, socket.socketpair(), [Limits(LIMIT), Limits(LIMIT)])
    sender = threading.Thread(
        target=lambda: (
            left.send_parts(Kind.CALL, 1, [body]),
            left.send(Kind.CALL, 2, b"next"),
        )
    )
    sender.start()
    _, _, found = right.receive_call()
    assert isinstance(found, Body)
    assert value == load_object(found)
    found.finish()
    assert b"next" == right.receive_call()[2]
    sender.join()
    for link in (left, right):
        link.close()

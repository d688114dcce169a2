"""Both error trees: every class pickles, speaks in one line, and has its roots."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import copy
import inspect
import pickle
import ssl
from typing import Any

import pytest

import flame_backend.errors
import kubetls.errors
from flame_backend.errors import BootError, CallCancelled, FlameError, RemoteError
from kubetls.errors import (
    ApiError,
    ApiTimeout,
    ConnectTimeout,
    IdentityMismatch,
    KubeTLSError,
    NotFound,
    TransportError,
)

ROOTS = {kubetls.errors: KubeTLSError, flame_backend.errors: FlameError}
CLASSES = [
    found
    for module in ROOTS
    for found in vars(module).values()
    if isinstance(found, type)
    and issubclass(found, BaseException)
    and found.__module__ == module.__name__
]

SAMPLES: dict[Any, Any] = {
    "str": "text",
    "bool": True,
    "int": 7,
    "float": 1.5,
    "int | None": 9,
    "float | None": 2.5,
    "str | None": "hint",
    "tuple[str, ...]": ("a.example", "10.0.0.1"),
    "dict[str, Any] | None": {"causes": [{"field": "spec"}]},
}


def made(error: type[BaseException], *, optional: bool) -> BaseException:
    """Return an instance with a sample for each parameter, or for the needed ones."""
    values = []
    for parameter in inspect.signature(error).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            values += ["one line that says what to do"]
        elif optional or parameter.default is parameter.empty:
            values.append(SAMPLES[parameter.annotation])
    return error(*values)


def state(error: BaseException) -> tuple[Any, ...]:
    """Return what makes two errors equal."""
    return type(error), error.args, vars(error), str(error), repr(error)


@pytest.mark.parametrize("optional", [True, False], ids=["all", "required"])
@pytest.mark.parametrize("error", CLASSES)
def test_error_survives_every_copy(error: type[BaseException], optional: bool) -> None:
    """Pickle of each protocol, copy and deepcopy bring back class, data and text."""
    original = made(error, optional=optional)
    original.extra = {"attempt": 2}  # type: ignore[attr-defined]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert state(original) == state(pickle.loads(pickle.dumps(original, protocol)))
    assert state(original) == state(copy.copy(original))
    assert state(original) == state(copy.deepcopy(original))


@pytest.mark.parametrize("optional", [True, False], ids=["all", "required"])
@pytest.mark.parametrize("error", CLASSES)
def test_error_speaks_in_one_line(error: type[BaseException], optional: bool) -> None:
    """str() is one line and not empty; only a remote traceback may have more."""
    text = str(made(error, optional=optional))
    assert text
    expected = 3 if error is RemoteError and optional else 1
    assert expected == len(text.splitlines())


@pytest.mark.parametrize("error", CLASSES)
def test_error_keeps_each_argument_as_attribute(error: type[BaseException]) -> None:
    """What the constructor takes can be read under the same name."""
    found = made(error, optional=True)
    parameters = inspect.signature(error).parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    expected = {p.name: SAMPLES[p.annotation] for p in named}
    assert expected == {p.name: getattr(found, p.name) for p in named}
    assert set(expected) <= set(vars(found))


@pytest.mark.parametrize("error", CLASSES)
def test_error_has_the_root_of_its_package(error: type[BaseException]) -> None:
    """One root each; `except KubeTLSError` and `except FlameError` catch all of one."""
    root = ROOTS[inspect.getmodule(error)]  # type: ignore[index]
    assert issubclass(error, root)
    others = set(ROOTS.values()) - {root}
    assert not issubclass(error, tuple(others))


@pytest.mark.parametrize("error", CLASSES)
def test_error_is_documented(error: type[BaseException]) -> None:
    """Each class says in its own words when it is raised."""
    assert (vars(error).get("__doc__") or "").strip().endswith(".")


@pytest.mark.parametrize("error", CLASSES)
def test_error_hides_no_builtin(error: type[BaseException]) -> None:
    """No public name means two things."""
    assert not hasattr(builtins, error.__name__)
    others = [found for found in CLASSES if found.__name__ == error.__name__]
    assert [error] == others


ALSO: list[tuple[type[BaseException], set[str]]] = [
    (
        ValueError,
        {"ConfigError", "NotInCluster", "KubeconfigError", "InsecureConfigRefused"}
        | {"ContextRefused", "InvalidReference", "ConfigurationError", "ManifestError"}
        | {"PayloadTooLarge"},
    ),
    (
        TimeoutError,
        {"ConnectTimeout", "ReadTimeout", "ApiTimeout", "BootTimeout", "CallTimeout"}
        | {"WaitTimeout"},
    ),
    (TypeError, {"NotSerializable", "ResultNotSerializable"}),
    (RuntimeError, {"PoolClosed"}),
    (concurrent.futures.CancelledError, {"CallCancelled"}),
    (ssl.SSLError, set()),
    (asyncio.CancelledError, set()),
    (KeyError, set()),
]


@pytest.mark.parametrize(("also", "expected"), ALSO)
def test_errors_that_are_builtins_as_well(
    also: type[BaseException], expected: set[str]
) -> None:
    """Grammar errors are ValueErrors, timeouts TimeoutErrors, none an SSLError."""
    assert expected == {error.__name__ for error in CLASSES if issubclass(error, also)}


def test_only_timeouts_are_oserrors() -> None:
    """HTTP libraries repeat after OSError; a refused server is never asked again."""
    timeouts = {error for error in CLASSES if issubclass(error, TimeoutError)}
    assert timeouts == {error for error in CLASSES if issubclass(error, OSError)}


@pytest.mark.parametrize(
    "error", [error for error in CLASSES if issubclass(error, TimeoutError)]
)
def test_timeouts_keep_all_arguments(error: type[BaseException]) -> None:
    """OSError would take the second to fifth argument for itself."""
    found = made(error, optional=True)
    assert list(vars(found).values())[: len(found.args)] == list(found.args)
    assert getattr(found, "errno", None) is None
    assert getattr(found, "filename", None) is None


@pytest.mark.parametrize(
    "error", [error for error in CLASSES if issubclass(error, ApiError)]
)
def test_reason_of_an_api_error_is_its_name(error: type[ApiError]) -> None:
    """NotFound stands for reason NotFound, ApiTimeout for Timeout."""
    expected = {"ApiError": "Unknown", "ApiTimeout": "Timeout"}
    assert expected.get(error.__name__, error.__name__) == error.default_reason


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        (
            (
                "the server's certificate is not valid for IP 10.0.0.1: it presents no "
                "identifiers at all; issue it with a matching iPAddress entry, or set "
                "tls-server-name to a name that it presents"
            ),
            IdentityMismatch("10.0.0.1", "IP", (), 0),
        ),
        (
            (
                "the server's certificate is not valid for DNS a.b: it presents x.y "
                "and 4 more; issue it with a matching dNSName entry, or set "
                "tls-server-name to a name that it presents"
            ),
            IdentityMismatch("a.b", "DNS", ("x.y",), 5),
        ),
        ("https://h:1: refused", TransportError("https://h:1", "refused", sent=True)),
        ("https://h:1: 10 s", ConnectTimeout("https://h:1", "10 s")),
        ("GET /a: 404 NotFound: gone", NotFound(404, "NotFound", "gone", "GET", "/a")),
        ("504 Timeout: slow", ApiTimeout(504, "Timeout", "slow")),
        (
            "runner r did not boot (pull): denied; its last output: x",
            BootError("r", "pull", "denied", "x"),
        ),
        ("ValueError: no", RemoteError("ValueError", "no")),
        ("ValueError", RemoteError("ValueError", "")),
    ],
)
def test_text_is_useful(expected: str, error: BaseException) -> None:
    """What was wanted, what was found, what to do."""
    assert expected == str(error)


def test_cancelled_call_is_what_futures_raise() -> None:
    """`except concurrent.futures.CancelledError` catches it."""
    with pytest.raises(concurrent.futures.CancelledError):
        raise CallCancelled("stopped")

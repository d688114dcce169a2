"""httpx, aiohttp and requests on a session: the examples, on a real TLS server."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kubetls
from kubetls import testing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> ModuleType:
    """Import an example by its file."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


Get = "Callable[[kubetls.Session, str], Any]"


def get_by_httpx(session: kubetls.Session, url: str) -> Any:
    with example("with_httpx").client(session) as http:
        return http.get(url).raise_for_status().json()


def get_by_requests(session: kubetls.Session, url: str) -> Any:
    with example("with_requests").client(session) as http:
        answer = http.get(url, timeout=5)
        answer.raise_for_status()
        return answer.json()


def get_by_aiohttp(session: kubetls.Session, url: str) -> Any:
    module = example("with_aiohttp")

    async def get() -> Any:
        async with module.client(session) as http:
            return await module.get(session, http, url)

    return asyncio.run(get())


STACKS = [get_by_httpx, get_by_requests, get_by_aiohttp]


@pytest.fixture
def fake() -> Iterator[testing.Server]:
    with testing.server() as server:
        yield server


@pytest.fixture
def session(fake: testing.Server) -> Iterator[kubetls.Session]:
    with kubetls.session(fake.config) as opened:
        yield opened


@pytest.mark.parametrize("get", STACKS)
def test_a_stack_reaches_the_server(
    fake: testing.Server, session: kubetls.Session, get: Callable[..., Any]
) -> None:
    """With the session's token, and with the one that replaced it."""
    assert get(session, f"{session.server}/version")["gitVersion"]
    fake.rotate_token()
    session.get("/version")  # reads it again; else it is seen within 50 s
    assert get(session, f"{session.server}/version")["gitVersion"]


@pytest.mark.parametrize("get", STACKS)
def test_a_stack_sends_nothing_to_a_stranger(
    fake: testing.Server, session: kubetls.Session, get: Callable[..., Any]
) -> None:
    """A server with a certificate of another CA sees no request."""
    fake.rotate_certificate(authority=True, publish=False)
    with pytest.raises(Exception, match=r"(?i)certificate"):
        get(session, f"{session.server}/version")
    assert [] == fake.requests


@pytest.mark.parametrize("get", STACKS)
def test_a_stack_reaches_no_other_name(
    fake: testing.Server, session: kubetls.Session, get: Callable[..., Any]
) -> None:
    """The context is for the session's reference, even where the certificate fits."""
    with pytest.raises(Exception, match=r"only|adapters|refused"):
        get(session, session.server.replace("127.0.0.1", "localhost") + "/version")
    assert [] == fake.requests

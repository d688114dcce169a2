"""aiohttp on a kubetls session: the same verifier on asyncio's own TLS.

python examples/with_aiohttp.py
"""

from __future__ import annotations

import asyncio

import aiohttp

import kubetls


async def get(
    session: kubetls.Session, http: aiohttp.ClientSession, path: str
) -> object:
    """Get a path as JSON; the token is asked for anew, as it may have been rotated."""
    value = session.authorization()
    headers = {} if value is None else {"Authorization": value}
    # A redirect would carry the token to another place.
    async with http.get(path, headers=headers, allow_redirects=False) as answer:
        answer.raise_for_status()
        return await answer.json()


def client(session: kubetls.Session) -> aiohttp.ClientSession:
    """Return an aiohttp session for the session's server, without proxies."""
    return aiohttp.ClientSession(
        base_url=session.server,
        connector=aiohttp.TCPConnector(ssl=session.ssl_context()),
        trust_env=False,
    )


async def main() -> None:
    """Print the server's version."""
    # Reading credentials is a matter of microseconds; the first time is done here.
    with kubetls.session() as session:
        async with client(session) as http:
            version = await get(session, http, "/version")
            assert isinstance(version, dict)
            print(version["gitVersion"])


if __name__ == "__main__":
    asyncio.run(main())

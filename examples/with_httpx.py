"""httpx on a kubetls session: the same locked context and verifier, fresh tokens.

    python examples/with_httpx.py

`ssl_context()` verifies the API server inside the handshake and cannot be weakened;
`authorization()` is asked with each request, so that a rotated token is used at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

import kubetls

if TYPE_CHECKING:
    from collections.abc import Generator


class KubernetesAuth(httpx.Auth):
    """The session's credentials, for requests to its server and nobody else."""

    def __init__(self, session: kubetls.Session) -> None:
        self._session = session
        self._server = httpx.URL(session.server)

    def auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the header."""
        url, server = request.url, self._server
        if (url.scheme, url.host, url.port or 443) == (
            "https",
            server.host,
            server.port or 443,
        ):
            value = self._session.authorization()
            if value is not None:
                request.headers["Authorization"] = value
        yield request


def client(session: kubetls.Session) -> httpx.Client:
    """Return an httpx client for the session's server.

    trust_env would bring proxies and .netrc passwords in.
    """
    return httpx.Client(
        base_url=session.server,
        verify=session.ssl_context(),
        auth=KubernetesAuth(session),
        trust_env=False,
        follow_redirects=False,
    )


def main() -> None:
    """Print the server's version."""
    with kubetls.session() as session, client(session) as http:
        answer = http.get("/version")
        answer.raise_for_status()
        print(answer.json()["gitVersion"])


if __name__ == "__main__":
    main()

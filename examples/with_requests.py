"""requests on a kubetls session: an adapter that leaves the locked context alone.

    python examples/with_requests.py

requests loads a CA bundle into any context it is given, which a locked one refuses: the
bundle would let everybody in it be the API server. The adapter takes that step out.
"""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

import kubetls


class KubernetesAdapter(HTTPAdapter):
    """Connections with the session's context."""

    def __init__(self, session: kubetls.Session) -> None:
        self._context = session.ssl_context()
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Give the context to urllib3."""
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: Any,  # noqa: ARG002 - these three belong to the base's signature
        proxies: Any = None,  # noqa: ARG002
        cert: Any = None,  # noqa: ARG002
    ) -> Any:
        """Leave out what requests would change about TLS: the context has it all."""
        return self.poolmanager.connection_from_url(request.url)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Load no further bundle."""


class KubernetesAuth(requests.auth.AuthBase):
    """The session's credentials, for requests to its server and nobody else."""

    def __init__(self, session: kubetls.Session) -> None:
        self._session = session

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        value = self._session.authorization()
        if value is not None and f"{request.url}/".startswith(
            f"{self._session.server}/"
        ):
            request.headers["Authorization"] = value
        return request


def client(session: kubetls.Session) -> requests.Session:
    """Return a requests session that reaches the session's server and nothing else."""
    http = requests.Session()
    http.trust_env = False  # no proxies, no .netrc, no CA bundle of the environment
    http.max_redirects = 0
    http.adapters.clear()
    http.mount(session.server, KubernetesAdapter(session))
    http.auth = KubernetesAuth(session)
    return http


def main() -> None:
    """Print the server's version."""
    with kubetls.session() as session, client(session) as http:
        answer = http.get(f"{session.server}/version", timeout=(10, 60))
        answer.raise_for_status()
        print(answer.json()["gitVersion"])


if __name__ == "__main__":
    main()

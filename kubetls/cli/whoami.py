"""`kubetls whoami`: what the API server takes us for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from kubetls.cli.page import Answer, Exit, span, texts
from kubetls.client.limits import Timeout
from kubetls.client.paths import path
from kubetls.client.retry import Retries
from kubetls.client.session import session
from kubetls.client.shapes import mapping
from kubetls.credentials.kubeconfig import kubeconfig
from kubetls.errors import (
    ConfigError,
    Forbidden,
    KubeTLSError,
    NotFound,
    ProtocolError,
    Unauthorized,
)

if TYPE_CHECKING:
    from kubetls.cli.named import Named
    from kubetls.client.session import Session
    from kubetls.credentials.config import Config

REVIEW: Final = "authentication.k8s.io/v1"
ANONYMOUS: Final = "system:anonymous"


def open_session(config: Config | None, timeout: float) -> Session:
    """Open a session that answers soon rather than in the end."""
    limits = Timeout(connect=timeout, read=timeout)
    return session(config, timeout=limits, retries=Retries(attempts=1))


def reviewed_user(session: Session) -> dict[str, Any]:
    """Return what the server takes us for: username, uid, groups, extra.

    Raises:
        KubeTLSError: It does not say.
    """
    body = {"apiVersion": REVIEW, "kind": "SelfSubjectReview"}
    answered = session.post(path(REVIEW, "selfsubjectreviews"), body)
    user = mapping(mapping(answered, "status"), "userInfo")
    name = user.get("username")
    if not isinstance(name, str) or not name:
        raise ProtocolError(
            session.server, "no username in its SelfSubjectReview", True
        )
    return user


def whoami(named: Named, timeout: float) -> Answer:
    """Ask the server who we are.

    Args:
        named: A kubeconfig; without, what applies to this process.
        timeout: Seconds for connecting, and for the answer.
    """
    answer = Answer(Exit.FINE)
    try:
        config = _config(named) if named else None
        with open_session(config, timeout) as found:
            answer.data |= {
                "server": found.server,
                "origin": found.config.origin,
                "namespace": found.namespace,
            }
            user = reviewed_user(found)
            ends = found.token_expires_at
    except KubeTLSError as error:
        return _refused(answer, error)
    answer.data |= {"user": user, "token_expires_at": ends}
    anonymous = user["username"] == ANONYMOUS
    _add_user(answer, user)
    _add_place(answer)
    if ends is not None:
        answer.add(f"token      ends in {span(ends - time.time())}, by its own word")
    if anonymous:
        answer.code = Exit.NO
        answer.add("           the server takes you for nobody: no credential was sent")
    return answer


def _config(named: Named) -> Config:
    return kubeconfig(
        named.file,
        named.context,
        trust=named.trust,
        exec=named.exec or "allow",
        files=named.files or "allow",
    )


def _add_user(answer: Answer, user: dict[str, Any]) -> None:
    answer.add(f"user       {user['username']}")
    if user.get("uid"):
        answer.add(f"uid        {user['uid']}")
    answer.add(f"groups     {', '.join(texts(user.get('groups'))) or 'none'}")


def _add_place(answer: Answer) -> None:
    answer.add(f"server     {answer.data['server']}")
    answer.add(f"from       {answer.data['origin']}")
    answer.add(f"namespace  {answer.data['namespace']}")


def _refused(answer: Answer, error: KubeTLSError) -> Answer:
    said_no = isinstance(error, Unauthorized | Forbidden)
    answer.code = Exit.NO if said_no else Exit.UNCHECKED
    text = str(error)
    if isinstance(error, NotFound):
        text += "; SelfSubjectReview needs Kubernetes 1.28"
    if not isinstance(error, ConfigError | NotFound) and not said_no:
        text += "; kubetls doctor says more"
    answer.data["error"] = {"type": type(error).__name__, "text": text}
    answer.add(text)
    return answer

"""Get, create, replace, change, delete: one request each, plain dicts both ways.

The half of a session that needs an exchange and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from kubetls.client.status import error_of_status, is_failure
from kubetls.errors import ConfigError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kubetls.client.exchange import Exchange
    from kubetls.client.limits import Timeout
    from kubetls.client.outgoing import Query
    from kubetls.client.response import Response
    from kubetls.client.retry import Retries

PATCH_TYPES: Final = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


FieldValidation = Literal["Ignore", "Warn", "Strict"]


class Verbs:
    """The verbs of the API over one exchange; a `Session` is that and more."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def get(
        self, path: str, query: Query = None, *, timeout: Timeout | None = None
    ) -> dict[str, Any]:
        """Get one object (or one page of a list) as a dict."""
        return self._verb("GET", path, query=query, timeout=timeout)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        query: Query = None,
        *,
        dry_run: bool = False,
        field_manager: str | None = None,
        field_validation: FieldValidation | None = None,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Create an object and return it as the server stored it.

        Args:
            path: The collection's path.
            body: The object.
            query: Further query parameters.
            dry_run: Validate without doing it.
            field_manager: Name of the writer.
            field_validation: What unknown and duplicate fields are; None is the
                server's default, Warn, and what it warns of is logged.
            timeout: Replaces the session's timeouts.
        """
        query = write_query(query, field_manager, field_validation, dry_run=dry_run)
        return self._verb("POST", path, body=body, query=query, timeout=timeout)

    def put(
        self,
        path: str,
        body: Mapping[str, Any],
        query: Query = None,
        *,
        dry_run: bool = False,
        field_manager: str | None = None,
        field_validation: FieldValidation | None = None,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Replace an object; its resourceVersion, if any, is the precondition."""
        query = write_query(query, field_manager, field_validation, dry_run=dry_run)
        metadata = body.get("metadata")
        safe = bool(metadata.get("resourceVersion")) if metadata else False
        return self._verb(
            "PUT", path, body=body, query=query, timeout=timeout, safe_to_double=safe
        )

    def patch(  # noqa: PLR0913 - the API's own parameters
        self,
        path: str,
        body: Any,
        type: Literal["merge", "json", "strategic", "apply"] = "merge",  # noqa: A002 - the API's own word
        field_manager: str | None = None,
        force: bool = False,  # noqa: FBT001, FBT002 - the contract's order
        *,
        query: Query = None,
        dry_run: bool = False,
        field_validation: FieldValidation | None = None,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Change parts of an object.

        Raises:
            ConfigError: An unknown type, or "apply" without a field manager.
        """
        if type not in PATCH_TYPES:
            raise ConfigError("type", f"must be one of {', '.join(PATCH_TYPES)}")
        if type == "apply" and not field_manager:
            raise ConfigError("field_manager", "server-side apply needs one")
        query = write_query(query, field_manager, field_validation, dry_run=dry_run)
        if force:
            query = {**query, "force": "true"}
        headers = {"Content-Type": PATCH_TYPES[type]}
        return self._verb(
            "PATCH", path, body=body, query=query, headers=headers, timeout=timeout
        )

    def delete(
        self,
        path: str,
        propagation: Literal["Foreground", "Background", "Orphan"] | None = None,
        grace: int | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
        *,
        query: Query = None,
        dry_run: bool = False,
        timeout: Timeout | None = None,
    ) -> dict[str, Any]:
        """Delete an object.

        Args:
            path: The object's path.
            propagation: What happens to its dependents; None is the kind's default.
            grace: Seconds; 0 is at once, None is the object's own period.
            uid: Delete only this incarnation (Conflict otherwise).
            resource_version: Delete only this version (Conflict otherwise).
            query: Further query parameters.
            dry_run: Validate without doing it.
            timeout: Replaces the session's timeouts.
        """
        guards = {"uid": uid, "resourceVersion": resource_version}
        wanted = {key: text for key, text in guards.items() if text is not None}
        options = _delete_options(propagation, grace, wanted, dry_run=dry_run)
        return self._verb(
            "DELETE",
            path,
            body=options,
            query=query,
            timeout=timeout,
            safe_to_double=bool(wanted),
        )

    # ------------------------------------------------------------------ any request

    def request(  # noqa: PLR0913 - the escape hatch has a way for everything
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Query = None,
        stream: bool = False,  # noqa: FBT001, FBT002 - the contract's order
        *,
        timeout: Timeout | None = None,
        retries: Retries | None = None,
        safe_to_double: bool = False,
    ) -> Response:
        """Send any request with the same guards; the escape hatch.

        Args:
            method: HTTP method.
            path: Absolute path, without the server's path prefix.
            body: bytes as they are, anything else as JSON.
            headers: Further headers. Authorization is refused: it is the session's.
            query: Query parameters; None values are left out.
            stream: Leave the body unread, for `Response.stream`.
            timeout: Replaces the session's timeouts.
            retries: Replaces the session's policy.
            safe_to_double: A precondition in the request makes a repetition harmless.

        Raises:
            ApiError: The server answered with a status of 400 or more.
            TransportError: No usable answer came.
            IdentityMismatch, CertificateError, ChainRefused: The server was refused.
        """
        return self._exchange.request(
            method,
            path,
            body,
            headers,
            query,
            stream=stream,
            timeout=timeout,
            retries=retries,
            safe_to_double=safe_to_double,
        )

    def _verb(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        response = self._exchange.request(method, path, **kwargs)
        parsed = response.json()
        if is_failure(parsed):
            # As client-go: a proxy or an aggregated server may have lost the code.
            raise error_of_status(parsed, path.partition("?")[0], method)
        if isinstance(parsed, dict):
            return parsed
        reason = f"the body of a {response.status} response is no JSON object"
        raise ProtocolError(path, reason, True)


def write_query(
    query: Query,
    field_manager: str | None,
    field_validation: FieldValidation | None,
    *,
    dry_run: bool,
) -> dict[str, object]:
    """Return the query parameters of a request that changes something."""
    chosen = dict(query or {})
    if field_validation:
        chosen["fieldValidation"] = field_validation
    if dry_run:
        chosen["dryRun"] = "All"
    if field_manager:
        chosen["fieldManager"] = field_manager
    return chosen


def _delete_options(
    propagation: str | None,
    grace: int | None,
    preconditions: dict[str, str],
    *,
    dry_run: bool,
) -> dict[str, Any]:
    if "" in preconditions.values():
        # Left out, it would delete whatever has the name by now.
        raise ConfigError("delete", "an empty uid or resource_version is no guard")
    options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
    if propagation is not None:
        options["propagationPolicy"] = propagation
    if grace is not None:
        options["gracePeriodSeconds"] = grace
    if preconditions:
        options["preconditions"] = preconditions
    if dry_run:
        options["dryRun"] = ["All"]
    return options

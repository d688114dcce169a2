"""Leases of parents that are no more, beside what others call a Lease of theirs."""

from __future__ import annotations

import datetime as dt
from typing import Any

import kubetls
from flame_backend.backends.kubernetes.lease import API, LEASE_SECONDS, Lease
from kubetls import testing

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def lease(name: str, spec: dict[str, Any] | None) -> dict[str, Any]:
    """Return a Lease with the label of a pool."""
    metadata = {"name": name, "labels": {"flame-backend/instance": name}}
    found = {"apiVersion": API, "kind": "Lease", "metadata": metadata}
    return found if spec is None else {**found, "spec": spec}


def held(seconds: float) -> dict[str, Any]:
    """Return a Lease's spec: its holder cannot be looked up, and spoke last then."""
    last = NOW - dt.timedelta(seconds=seconds)
    renewed = last.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"holderIdentity": "elsewhere/web/uid", "renewTime": renewed}


def test_lease_that_says_nothing_is_left_and_stops_nobody() -> None:
    """Anybody may label a Lease; those of dead parents go all the same."""
    with testing.server() as server:
        server.define(API, "Lease", "leases")
        server.put(lease("a-nothing", None))
        server.put(lease("b-empty", {}))
        server.put(lease("c-dead", held(LEASE_SECONDS + 1)))
        server.put(lease("d-alive", held(LEASE_SECONDS - 1)))
        parent = {"name": "web", "namespace": "home", "uid": "u"}
        with kubetls.session(server.config) as session:
            Lease(session, "default", parent, "mine").sweep(NOW)
        left = [found["metadata"]["name"] for found in server.objects(API, "Lease")]
        assert ["a-nothing", "b-empty", "d-alive"] == left

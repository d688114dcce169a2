"""Which resources a test server knows, and what a path names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from kubetls.testing.store import Place, Refused

_PATH: Final = re.compile(
    r"(?:/api/(?P<core>v[0-9][a-z0-9]*)|/apis/(?P<group>[^/]+/v[0-9][a-z0-9]*))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/[^/]+))?"
    r"(?:/(?P<plural>[^/]+))?(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[^/]+))?\Z"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource of the API."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True


COMMON: Final = (
    Kind("v1", "ConfigMap", "configmaps"),
    Kind("v1", "Endpoints", "endpoints"),
    Kind("v1", "Event", "events"),
    Kind("v1", "Namespace", "namespaces", namespaced=False),
    Kind("v1", "Node", "nodes", namespaced=False),
    Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    Kind("v1", "Pod", "pods"),
    Kind("v1", "Secret", "secrets"),
    Kind("v1", "Service", "services"),
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("apps/v1", "DaemonSet", "daemonsets"),
    Kind("apps/v1", "Deployment", "deployments"),
    Kind("apps/v1", "ReplicaSet", "replicasets"),
    Kind("apps/v1", "StatefulSet", "statefulsets"),
    Kind("batch/v1", "CronJob", "cronjobs"),
    Kind("batch/v1", "Job", "jobs"),
    Kind("coordination.k8s.io/v1", "Lease", "leases"),
)


class Resources:
    """The kinds that are served; `define` adds custom ones."""

    def __init__(self) -> None:
        self._kinds = list(COMMON)

    def define(self, kind: Kind) -> None:
        """Serve a kind, in place of one of the same name."""
        self._kinds = [
            known
            for known in self._kinds
            if (known.api_version, known.kind) != (kind.api_version, kind.kind)
        ] + [kind]

    def of_object(self, item: dict[str, Any]) -> Kind:
        """Return the kind of an object.

        Raises:
            ValueError: It is not served.
        """
        wanted = item.get("apiVersion"), item.get("kind")
        for known in self._kinds:
            if (known.api_version, known.kind) == wanted:
                return known
        msg = f"unknown kind {wanted}; define() it first"
        raise ValueError(msg)

    def discovery(self, api_version: str) -> dict[str, Any]:
        """Return the APIResourceList of a version."""
        found = [kind for kind in self._kinds if kind.api_version == api_version]
        if not found:
            raise not_found()
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": api_version,
            "resources": [
                {"name": k.plural, "kind": k.kind, "namespaced": k.namespaced}
                for k in found
            ],
        }

    def place(self, path: str) -> tuple[Place | None, Kind | None, str]:
        """Read a path.

        Returns:
            The place and its kind, or (None, None) for a version itself; and the
            apiVersion.
        """
        found = _PATH.match(path)
        if found is None:
            raise not_found()
        api_version = found["core"] or found["group"]
        if found["plural"] is None:
            return None, None, api_version
        for kind in self._kinds:
            if (kind.api_version, kind.plural) == (api_version, found["plural"]):
                place = Place(
                    api_version,
                    kind.plural,
                    found["namespace"],
                    found["name"],
                    found["subresource"],
                )
                return place, kind, api_version
        raise not_found()


def not_found() -> Refused:
    """Return the answer to paths that are not served."""
    message = "the server could not find the requested resource"
    return Refused(404, "NotFound", message)

"""The parts of a pod that matter here: what the watch decodes, and keeps, of each.

A pod as the API gives it is several times as large, most of it records of who wrote
which field; of a thousand runners only these parts are kept.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Metadata(TypedDict, total=False):
    """Of `metadata`."""

    name: str
    namespace: str
    uid: str
    resourceVersion: str
    labels: dict[str, str]
    annotations: dict[str, str]
    creationTimestamp: str
    deletionTimestamp: str
    deletionGracePeriodSeconds: int


class Spec(TypedDict, total=False):
    """Of `spec`."""

    nodeName: str
    volumes: list[dict[str, Any]]


class Status(TypedDict, total=False):
    """Of `status`."""

    phase: str
    reason: str
    message: str
    nominatedNodeName: str
    podIPs: list[dict[str, Any]]
    conditions: list[dict[str, Any]]
    initContainerStatuses: list[dict[str, Any]]
    containerStatuses: list[dict[str, Any]]


class SeenPod(TypedDict, total=False):
    """A pod, as far as it is looked at."""

    metadata: Metadata
    spec: Spec
    status: Status

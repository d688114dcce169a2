"""Names of images: which repository one means, and the digest that pins it."""

from __future__ import annotations

import re
from typing import Final

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")

# What the name of an image without a registry means.
_REGISTRY: Final = "docker.io"
_NAMESPACE: Final = "library"

# dockershim and cri-dockerd write it in front of the identity.
_PULLABLE: Final = "docker-pullable://"


def pinned(image: str, identity: str) -> str:
    """Return the image by the digest that its container really runs.

    Args:
        image: As the pod's spec names it.
        identity: `imageID` of the container's status.

    Returns:
        `repository@sha256:...`, or the image as it is named: when it has a digest
        already, and when the identity is none that a node could pull (a bare
        sha256 of an image that was loaded, or another repository's name).
    """
    repository, _, digest = identity.removeprefix(_PULLABLE).partition("@")
    if "@" in image or not repository or not _DIGEST.match(digest):
        return image
    if full_repository(repository) != full_repository(image):
        return image
    return f"{repository}@{digest}"


def full_repository(image: str) -> str:
    """Return registry and repository of an image, without tag and digest.

    `python:3.12` is `docker.io/library/python`; a colon before the last slash is
    the registry's port.
    """
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    name = folder + slash + last.partition(":")[0]
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name if first != _REGISTRY else _docker(rest)
    return _docker(name)


def _docker(repository: str) -> str:
    path = repository if "/" in repository else f"{_NAMESPACE}/{repository}"
    return f"{_REGISTRY}/{path}"

"""Where kubeconfig files are: $KUBECONFIG, else the one in the home folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from kubetls.errors import KubeconfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

LIST_VARIABLE: Final = "KUBECONFIG"


def listed_files(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the files that $KUBECONFIG lists, () when it is unset or empty."""
    listed = environ.get(LIST_VARIABLE, "")
    found = tuple(path for path in listed.split(os.pathsep) if path)
    if listed and not found:
        raise KubeconfigError(f"${LIST_VARIABLE}", "names no file")
    return found


def home_file(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return ~/.kube/config, () without $HOME, which is all that kubectl looks at."""
    home = environ.get("HOME")
    return (f"{home}/.kube/config",) if home else ()

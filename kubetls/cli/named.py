"""Which kubeconfig a command line names, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Named:
    """The options of `kubetls.kubeconfig`, None where nothing was said.

    Attributes:
        file: The kubeconfig.
        context: One of its contexts.
        trust: "system" for the operating system's CAs if it names none.
        exec: Whether credential plugins may run.
        files: Whether it may name other files.
    """

    file: str | None = None
    context: str | None = None
    trust: Literal["system"] | None = None
    exec: Literal["allow", "refuse"] | None = None
    files: Literal["allow", "inline-only"] | None = None

    def __bool__(self) -> bool:
        """Tell whether a kubeconfig is meant, whatever else applies here."""
        said = (self.file, self.context, self.trust, self.exec, self.files)
        return any(option is not None for option in said)

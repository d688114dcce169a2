"""The command line: `kubetls explain`, `kubetls doctor`, `kubetls whoami`."""

from kubetls.cli.command import main

__all__ = ["main"]

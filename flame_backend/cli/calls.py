"""flame-backend run: one call of one function, on a local runner."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flame_backend.cli import output
from flame_backend.cli.runners import imported
from flame_backend.errors import CallError, ConfigurationError, FlameError

if TYPE_CHECKING:
    import argparse

HELP = "run one function on a local runner"
DESCRIPTION = """\
Run MODULE:FUNCTION once on a local runner, as a pool would, and print its result. The
quickest way to see whether a function and its result can travel. An argument is JSON
where it can be read as such, else text; a result that JSON cannot say is printed as
Python shows it.
"""
EPILOG = """\
examples:
  flame-backend run math:hypot 3 4
  flame-backend run myapp.tasks:thumbnail cat.jpg '{"width": 80}' --timeout 10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("function", metavar="MODULE:FUNCTION")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="how long it may run (default: no limit)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the call; the function's own exception is the answer no."""
    from flame_backend.backends.local import LocalBackend
    from flame_backend.pool.executor import Pool

    function = imported(args.function, "MODULE:FUNCTION")
    if not callable(function):
        raise ConfigurationError("MODULE:FUNCTION", f"{args.function} is no function")
    words = [_argument(text) for text in args.arguments]
    with Pool("run", max=1, timeout=args.timeout, backend=LocalBackend()) as pool:
        try:
            result = pool.call(function, *words)
        except CallError as error:
            # What follows is a traceback, which makes no line.
            output.fail(str(error).partition("\nTraceback ")[0])
            return 1
        except FlameError:
            raise
        except Exception as error:  # noqa: BLE001 - the function's own, whatever it is
            output.fail(f"{args.function} raised {type(error).__name__}: {error}")
            return 1
    _print(result, as_json=args.json)
    return 0


def _argument(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _print(result: Any, *, as_json: bool) -> None:
    if as_json:
        output.as_json(result)
        return
    try:
        output.say(result if isinstance(result, str) else json.dumps(result))
    except (TypeError, ValueError):
        output.say(repr(result))

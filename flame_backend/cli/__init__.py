"""flame-backend: render, init, run, ps, sweep, doctor.

Answers go to standard output, what went wrong goes to standard error as one line with
its remedy. The exit codes below are part of the interface.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import TYPE_CHECKING, Final

import kubetls
from flame_backend.cli import calls, doctor, listing, output, render, setup
from flame_backend.errors import ConfigurationError, FlameError
from flame_backend.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONFIGURATION: Final = 3
CLUSTER: Final = 4
RUNNER: Final = 5
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

DESCRIPTION: Final = (
    "FLAME for Python: look at, prepare and clean up what runners need."
)
EXIT_CODES: Final = """\
exit codes:
  0    done
  1    the answer is no: doctor found a fault, the function of run raised
  2    the command line is wrong
  3    an option, a file, a manifest or the credentials break a rule, or the answer
       could not be written
  4    the API server was not reached, or it refused
  5    a runner could not be had, or was lost
  130  interrupted
  141  nobody reads the output any more
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line's words; None for this process' own.

    Returns:
        The exit code.
    """
    try:
        return _answered(arguments)
    except (ConfigurationError, kubetls.ConfigError, kubetls.CredentialError) as error:
        output.fail(str(error))
        return CONFIGURATION
    except kubetls.KubeTLSError as error:
        output.fail(_with_remedy(error))
        return CLUSTER
    except FlameError as error:
        output.fail(str(error))
        return RUNNER
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _unwritten(error)


def _answered(arguments: Sequence[str] | None) -> int:
    if sys.stdout is None:
        raise ConfigurationError("standard output", "is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names and messages from elsewhere, in a locale that has not their letters.
        sys.stdout.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(arguments)
    code: int = args.run(args)
    sys.stdout.flush()
    return code


def _unwritten(error: OSError) -> int:
    """Say that the answer did not get out; not to a reader who left before its end."""
    # The interpreter flushes once more at its end, and would meet the same again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    output.fail(f"the answer could not be written: {error}")
    return CONFIGURATION


def _with_remedy(error: kubetls.KubeTLSError) -> str:
    if isinstance(error, kubetls.Forbidden):
        return (
            f"{error}; ask for the right, or see what is missing: flame-backend doctor"
        )
    if isinstance(error, kubetls.Unauthorized):
        return f"{error}; renew the credentials, or choose others with --context"
    if isinstance(error, kubetls.NotFound):
        return f"{error}; is it the right namespace? Choose it with -n"
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "flame-backend",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(
        name: str,
        texts: tuple[str, str, str],
        options: Callable[[argparse.ArgumentParser], None],
        run: Callable[[argparse.Namespace], int],
    ) -> None:
        short, description, epilog = texts
        command = commands.add_parser(
            name,
            help=short,
            description=description,
            epilog=f"{epilog}\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--json", action="store_true", help="answer in JSON")
        options(command)
        command.set_defaults(run=run)

    for name, module in (
        ("init", setup), ("render", render), ("doctor", doctor), ("run", calls),
    ):  # fmt: skip
        texts = (module.HELP, module.DESCRIPTION, module.EPILOG)
        add(name, texts, module.add_arguments, module.run)
    texts = (listing.PS_HELP, listing.PS_DESCRIPTION, listing.PS_EPILOG)
    add("ps", texts, listing.add_ps_arguments, listing.ps)
    texts = (listing.SWEEP_HELP, listing.SWEEP_DESCRIPTION, listing.SWEEP_EPILOG)
    add("sweep", texts, listing.add_sweep_arguments, listing.sweep)
    return parser

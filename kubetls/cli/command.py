"""Arguments in, one answer out, and an exit code that stays."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from kubetls.cli.named import Named
from kubetls.cli.page import Answer, Exit, shown_text
from kubetls.errors import ConfigError, InvalidReference

if TYPE_CHECKING:
    from collections.abc import Sequence

CODES: Final = """\
exit codes:
  0  fine
  1  the check says no: another name, an expired certificate, something to fix,
     a refused credential
  2  usage
  3  could not be checked: no server there, an unreadable file, no answer
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Those of the command line by default.

    Returns:
        The exit code.
    """
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        answer = _answer(chosen)
    except (ConfigError, InvalidReference) as error:
        _complain(f"kubetls {chosen.verb}: {shown_text(str(error))}")
        return Exit.USAGE
    except KeyboardInterrupt:
        return 130
    return _written(answer, as_json=chosen.json)


def _answer(chosen: argparse.Namespace) -> Answer:
    # Each command loads what it needs: --help is there at once.
    if chosen.verb == "explain":
        from kubetls.cli.explain import explain

        return explain(chosen.target, chosen.reference, chosen.timeout)
    if chosen.verb == "doctor":
        from kubetls.cli.doctor import Doctor

        named = _named(chosen)
        if named and chosen.volume is not None:
            raise ConfigError("--volume", "is for a pod, and a kubeconfig is named")
        return Doctor(os.environ, chosen.timeout).examine(named, chosen.volume)
    from kubetls.cli.whoami import whoami

    return whoami(_named(chosen), chosen.timeout)


def _named(chosen: argparse.Namespace) -> Named:
    if chosen.kubeconfig == "":
        # An unset variable of a script; the user's own file was not meant.
        raise ConfigError("--kubeconfig", "names no file")
    if getattr(chosen, "volume", None) == "":
        raise ConfigError("--volume", "names no folder")
    return Named(
        chosen.kubeconfig, chosen.context, chosen.trust, chosen.exec, chosen.files
    )


def _written(answer: Answer, *, as_json: bool) -> int:
    out = sys.stdout
    if out is None:  # closed before we began
        _complain("kubetls: the answer could not be written: no standard output")
        return Exit.UNCHECKED
    try:
        out.write(answer.json() if as_json else answer.page(colour=_coloured()))
        out.flush()
    except OSError as error:
        # Python's own flush at exit would meet the same again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        if not isinstance(error, BrokenPipeError):
            _complain(f"kubetls: the answer could not be written: {error.strerror}")
            return Exit.UNCHECKED
        # The reader has seen enough.
    return answer.code


def _complain(text: str) -> None:
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(f"{text}\n")


def _coloured() -> bool:
    environ = os.environ
    plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


# ------------------------------------------------------------------ arguments


def _parser() -> argparse.ArgumentParser:
    from kubetls import __version__

    parser = _Parser(
        "kubetls", description="See who a server is, who you are, and what is wrong."
    )
    parser.add_argument("--version", action="version", version=f"kubetls {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    explain = _verb(verbs, "explain", "what a certificate presents, and why it matches")
    explain.add_argument(
        "target",
        metavar="HOST[:PORT]|FILE",
        help="a server (443 by default), or a file with a certificate (PEM or DER)",
    )
    explain.add_argument(
        "--reference",
        metavar="NAME",
        help="the name or address to insist on (that of the server by default)",
    )
    doctor = _verb(verbs, "doctor", "check a pod's or kubeconfig's whole chain")
    doctor.add_argument(
        "--volume", metavar="DIR", help="a service-account volume mounted elsewhere"
    )
    whoami = _verb(verbs, "whoami", "what the API server takes you for")
    for verb in (doctor, whoami):
        verb.add_argument(
            "--kubeconfig", metavar="FILE", help="by default, what sessions would take"
        )
        verb.add_argument("--context", metavar="NAME", help="one of its contexts")
        verb.add_argument(
            "--trust",
            choices=["system"],
            help="take the operating system's CAs if it names none",
        )
        verb.add_argument(
            "--exec", choices=["allow", "refuse"], help="whether its plugin may run"
        )
        verb.add_argument(
            "--files",
            choices=["allow", "inline-only"],
            help="whether it may name other files",
        )
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends with the exit codes, line by line."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )


def _verb(
    verbs: argparse._SubParsersAction[_Parser], name: str, text: str
) -> argparse.ArgumentParser:
    sentence = f"{text[0].upper()}{text[1:]}."
    verb = verbs.add_parser(name, help=text, description=sentence)
    verb.add_argument("--json", action="store_true", help="one JSON document")
    verb.add_argument(
        "--timeout",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="for each step on the network (5)",
    )
    return verb


def _seconds(text: str) -> float:
    with suppress(ValueError):
        seconds = float(text)
        if 0 < seconds <= 3600:
            return seconds
    msg = f"{text!r} is no number of seconds, more than 0 and at most 3600"
    raise argparse.ArgumentTypeError(msg)

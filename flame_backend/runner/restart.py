"""What a fresh interpreter of `fresh` starts with: be a zygote again, or a slot."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from flame_backend.errors import LinkError
from flame_backend.runner.fresh import read_state, replace_process
from flame_backend.runner.loading import load_app
from flame_backend.runner.output import running
from flame_backend.runner.parent import remember
from flame_backend.runner.processes import die_with
from flame_backend.runner.slot import (
    EXIT_BROKEN,
    EXIT_LINK,
    Slot,
    connected,
    flush_output,
    keep_from_forks,
    prepare,
    renewal,
    run_slot,
)
from flame_backend.runner.stamps import Stamps
from flame_backend.runner.zygote import resume_zygote
from flame_backend.wire.exceptions import encode_exception
from flame_backend.wire.frames import Kind, Limits
from flame_backend.wire.link import Link

if TYPE_CHECKING:
    from flame_backend.runner.fresh import Origin
    from flame_backend.wire.small import Encoded


def main() -> NoReturn:
    """Be what the process before has left word of; never returns."""
    state = int(sys.argv[2])
    del sys.argv[1:]
    origin, role, facts = read_state(state)
    remember(origin.parent)
    if role == "zygote":
        resume_zygote(origin, facts)
    code = EXIT_BROKEN
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = (_start if role == "slot" else _resume)(origin, facts)
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        flush_output()
        os._exit(code)


def _start(origin: Origin, facts: dict[str, Any]) -> int:
    """Be a new slot, a child of the zygote."""
    die_with(facts["zygote"])
    _print_into(facts["output"])
    descriptor = facts["descriptor"]
    if descriptor >= 0:
        os.set_inheritable(descriptor, False)
    setup = load_app(origin.welcome)
    return run_slot(origin, setup, facts["facts"], descriptor, _stamps())


def _resume(origin: Origin, facts: dict[str, Any]) -> int:
    """Be the slot that this process was, and go on with its call."""
    _print_into(facts["output"])
    running.begin(facts["call_id"])
    prepare()
    sock = connected(origin.parent, facts["descriptor"])
    sock.set_inheritable(False)
    link = Link(sock, Limits(facts["max_payload"]))
    keep_from_forks(link)
    try:
        setup = load_app(origin.welcome)
    except BaseException as error:  # noqa: BLE001 - what has changed may raise anything
        encoded = encode_exception(error)
        return _try_again(origin, facts, link, encoded)
    slot = Slot(link, setup, renewal(origin, _stamps(), link))
    return slot.resume(facts["initializer"], facts["call_id"], facts["body"])


def _try_again(
    origin: Origin, facts: dict[str, Any], link: Link, failure: Encoded
) -> int:
    """Fail a call, and start afresh with the next one: it may be mended by then."""
    with suppress(LinkError):
        link.send(Kind.ERROR, facts["call_id"], failure.body, failure.segments)
        kind, call_id, body = link.receive_call()
        if kind is Kind.CALL:
            given = body if isinstance(body, bytes) else body.read()
            told = facts | {"call_id": call_id, "body": given}
            replace_process(origin, "call", told, [link.fileno(), *running.given])
    return EXIT_LINK


def _print_into(given: list[int]) -> None:
    for descriptor in given:
        os.set_inheritable(descriptor, False)
    if given:
        running.attach(given)


def _stamps() -> Stamps:
    stamps = Stamps()
    stamps.take()
    return stamps

"""A runner in the hands of an attacker: admitted with its own token, and then lies.

Its pod has everything a runner has; in place of the interpreter it starts this double,
which becomes an honest runner or tells the lie that its environment names.
"""

from __future__ import annotations

from typing import Any

DOUBLE = r"""#!/usr/local/bin/python3
import json, os, pickle, secrets, socket, sys, threading, time
import ormsgpack

LIE = os.environ['LIE']
if LIE == 'honest':
    os.execv('/usr/local/bin/python3', ['python3', *sys.argv[1:]])

from flame_backend.runner.control import _hello
from flame_backend.runner.dial import dial
from flame_backend.runner.parent import parse_parent
from flame_backend.wire.frames import HEADER, Kind, Limits, pack_frame
from flame_backend.wire.link import Link
from flame_backend.wire.tags import CHUNKED, COUNT, LINK, Tag
from flame_backend.wire.values import encode

ROOM = 16 * 1024 * 1024 - 64
parent = parse_parent(os.environ['FLAME_PARENT'])
control = Link(dial(parent), Limits(64 << 20))

def say(kind, facts=None):
    control.send(kind, 0, b'' if facts is None else json.dumps(facts).encode())

control.send(Kind.HELLO, 0, _hello(parent))
assert control.receive().kind is Kind.WELCOME
say(Kind.READY, {'phases': [['import', 1e308]]})

def order(kind):
    while (frame := control.receive()).kind is not kind:
        pass
    return json.loads(bytes(frame.body))

def dialled(ticket):
    link = Link(dial(parent), Limits(256 << 20))
    link.send(Kind.TICKET, 0, ticket)
    return link

def opened():
    return dialled(bytes.fromhex(order(Kind.OPEN_SLOT)['ticket']))

class Touch:
    def __reduce__(self):
        return os.system, ('touch /tmp/canary',)

PICKLE = pickle.dumps(Touch())

def good(call, value):
    return Kind.RESULT, call.call_id, encode(value).body

def ended(link):
    'Wait until the parent closes a connection; what it says meanwhile is dropped.'
    try:
        while True:
            link.receive()
    except Exception:
        pass

def pickles():
    slot = opened()
    call = slot.receive()
    slot.send(Kind.RESULT, call.call_id, PICKLE)

def pickled_error():
    slot = opened()
    call = slot.receive()
    slot.send(Kind.ERROR, call.call_id, encode({'type': 'x'}).body, [PICKLE])
    ended(slot)

def pickled_progress():
    slot = opened()
    call = slot.receive()
    slot.send(Kind.PROGRESS, call.call_id, PICKLE)
    ended(slot)

def empty_lists():
    slot = opened()
    call = slot.receive()
    body = b'\xdd' + ROOM.to_bytes(4, 'big') + b'\x90' * ROOM
    slot.send(Kind.RESULT, call.call_id, body)
    ended(slot)

def equal_hashes():
    slot = opened()
    call = slot.receive()
    modulus = 2**61 - 1
    members = [
        ormsgpack.Ext(Tag.BIG_INT, (modulus * n).to_bytes(16, 'big'))
        for n in range(2**40, 2**40 + 60_000)
    ]
    document = ormsgpack.packb(members)
    last = ormsgpack.packb(ormsgpack.Ext(Tag.SET, LINK.pack(0)))
    head = COUNT.pack(CHUNKED, 1) + LINK.pack(len(document))
    slot.send(Kind.RESULT, call.call_id, head + document + last)
    ended(slot)

def others_result():
    slot = opened()
    call = slot.receive()
    for number in (call.call_id - 1, 1, 0):
        slot.send(Kind.RESULT, number, encode('stolen').body)
    ended(slot)

def twice():
    slot = opened()
    call = slot.receive()
    slot.send(*good(call, 'twice'))
    slot.send(*good(call, 'twice'))
    ended(slot)

def oversized():
    slot = opened()
    call = slot.receive()
    slot.sock.sendall(HEADER.pack(Kind.RESULT, 0, 0, 2**32 - 1, call.call_id))
    while True:
        slot.sock.sendall(bytes(1 << 20))

def segments():
    slot = opened()
    call = slot.receive()
    slot.sock.sendall(HEADER.pack(Kind.RESULT, 0, 4096, 10, call.call_id))
    slot.sock.sendall((2**63).to_bytes(8, 'big') * 4096)
    while True:
        slot.sock.sendall(bytes(1 << 20))

def endless_frame():
    slot = opened()
    call = slot.receive()
    slot.sock.sendall(HEADER.pack(Kind.RESULT, 0, 0, ROOM, call.call_id))
    while True:
        slot.sock.sendall(b'\x90')
        time.sleep(0.01)

def endless_progress():
    slot = opened()
    call = slot.receive()
    body = encode(['x' * 60_000, 'y' * 1000]).body
    while True:
        slot.send(Kind.PROGRESS, call.call_id, body)

def wrong_tickets():
    ticket = bytes.fromhex(order(Kind.OPEN_SLOT)['ticket'])
    for wrong in (bytes(32), ticket[:-1], ticket + b'x', *(
        secrets.token_bytes(32) for _ in range(20)
    )):
        ended(dialled(wrong))
    slot = dialled(ticket)
    ended(dialled(ticket))
    call = slot.receive()
    slot.send(*good(call, 'its own'))

def others_slot():
    slot = opened()
    slot.receive()
    victim = os.environ['VICTIM']
    say(Kind.LOG, {'runner': victim, 'slot': 0, 'call': 1, 'text': 'forged\n'})
    say(Kind.SLOT_ENDED,
        {'runner': victim, 'slot': 0, 'exit_code': None, 'signal': 9})
    ended(control)

def readiness():
    slot = opened()
    call = slot.receive()
    for _ in range(2000):
        say(Kind.READY, {'phases': []})
    slot.send(*good(call, 'ready'))

def flood():
    slot = opened()
    slot.receive()
    line = {'runner': parent.runner, 'slot': 0, 'call': 3, 'text': 'x' * 16000 + '\n'}
    frames = pack_frame(Kind.PING) * 2000 + pack_frame(
        Kind.LOG, json.dumps(line).encode()
    ) * 40
    while True:
        control.sock.sendall(frames)

globals()[LIE]()
"""

REFUSED_LIES = (
    "pickled_error",
    "pickled_progress",
    "empty_lists",
    "equal_hashes",
    "others_result",
    "oversized",
    "segments",
    "others_slot",
)
"""What costs a runner its link at once."""

ENDLESS_LIES = ("endless_frame", "endless_progress")
"""What looks like a call that takes long."""


def config_map() -> dict[str, Any]:
    """Return the double, to be mounted."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "double"},
        "data": {"run": DOUBLE},
    }

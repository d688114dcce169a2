"""Tokens, tickets and keys after a run with every kind of failure: nowhere to be seen.

The parent notes all of its secrets in a file of its own pod; then everything that
operators, logs and error reports get is searched for them.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from tests.integration import faults
from tests.integration.programs import HEAD, await_told, go

if TYPE_CHECKING:
    from tests.integration.space import Space

pytestmark = pytest.mark.cluster

PROGRAM = (
    HEAD
    + """
import logging, pickle, ssl, traceback
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec
from flame_backend.backends import tickets
from flame_backend.backends.kubernetes import admission
from flame_backend.wire.frames import Kind, pack_frame

logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
secrets = {'parent': [], 'runner': [], 'ticket': [], 'key': []}

def noted(kind, owner, name, text):
    'Note what a function was given or returned, and change nothing.'
    real = getattr(owner, name)
    def spy(*args, **kwargs):
        found = real(*args, **kwargs)
        secrets[kind].append(text(found, *args))
        return found
    setattr(owner, name, spy)

noted('ticket', tickets.Tickets, 'issue', lambda found, *_: found.hex())
noted('runner', admission, 'verified_claims', lambda _, token, *rest: token)
noted('key', ec, 'generate_private_key', lambda key, *_: key.private_bytes(
    form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode())
with open('/var/run/secrets/kubernetes.io/serviceaccount/token') as file:
    secrets['parent'].append(file.read().strip())

def fail(kind):
    print('printed by a call', flush=True)
    if kind == 'raise':
        raise ValueError('of a call')
    if kind == 'exit':
        os._exit(3)
    if kind == 'agent':
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)

def show(what, *args, **options):
    'Make a call and print everything that its exception has to say.'
    try:
        print(repr(what(*args)))
    except Exception as error:
        print(''.join(traceback.format_exception(error)))
        print(repr(error), vars(error), pickle.dumps(error))

def stranger(pool, backend):
    'Knock with a token that is somebody else\\'s.'
    listener = backend._listener
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=listener.certificate)
    context.set_alpn_protocols(['flame/1'])
    hello = {'v': 1, 'runner': pool.status().runners[0].name, 'python': 'p',
             'pid': 1, 'token': secrets['parent'][0]}
    for frame in (pack_frame(Kind.HELLO, json.dumps(hello).encode()),
                  pack_frame(Kind.TICKET, bytes.fromhex(secrets['ticket'][0]))):
        with socket.create_connection((os.environ['POD_IP'], listener.port)) as raw:
            with context.wrap_socket(raw, server_hostname=os.environ['POD_IP']) as tls:
                tls.sendall(frame)
                print(tls.recv(1))

backend = KubernetesBackend(keep_failed=600)
with Pool('secret', max=2, boot_timeout=60, backend=backend) as pool:
    show(pool.call, abs, -1)
    stranger(pool, backend)
    for kind in ('raise', 'exit', 'agent'):
        show(pool.call, fail, kind)
    show(pool.options(timeout=2).call, fail, 'sleep')
    bad = KubernetesBackend(manifest=change(image='localhost/none:1',
                                            imagePullPolicy='Never'))
    with Pool('bad', max=1, boot_timeout=10, backend=bad) as failing:
        show(failing.call, abs, -1)
    wrong = KubernetesBackend(manifest=change(imagePullPolizy='Never'))
    with Pool('wrong', max=1, boot_timeout=10, backend=wrong) as failing:
        show(failing.call, abs, -1)
    show(pool.call, abs, -2)
    print(pool.status(), pool.explain() if hasattr(pool, 'explain') else '')
    print(repr(pool), repr(backend), vars(backend))
    with open('/tmp/secrets', 'w') as file:
        json.dump(secrets, file)
    say('done')
    await_go()
say('closed')
time.sleep(600)
"""
)


def spellings(secret: str) -> set[str]:
    """Return the parts of a secret by which it would be recognized, in any spelling."""
    found = {secret}
    if "PRIVATE KEY" in secret:
        found |= {line for line in secret.splitlines() if len(line) > 40}
    elif secret.count(".") == 2:
        # The signature is what makes a token worth anything.
        found |= {secret.rpartition(".")[2]}
    else:
        raw = bytes.fromhex(secret)
        found |= {base64.b64encode(raw).decode(), repr(raw)[2:-1]}
    return found | {base64.b64encode(text.encode()).decode() for text in found}


def test_no_secret_is_to_be_seen_anywhere(space: Space) -> None:
    """Not in pods, events, logs, exceptions, status or the audit log; and no Secret."""
    space.start(PROGRAM)
    await_told(space, "done", 150)
    seen = {
        f"logs {pod['metadata']['name']}": space.kubectl(
            "logs", pod["metadata"]["name"], "--ignore-errors"
        )
        for pod in space.pods()
    }
    everything = "pods,events,secrets,configmaps,serviceaccounts,leases"
    for format_ in ("yaml", "json"):
        seen[format_] = space.kubectl("get", everything, "-o", format_)
    seen["describe"] = space.kubectl("describe", "pods")
    read = "print(open('/tmp/secrets').read())"
    secrets = json.loads(space.kubectl("exec", "app", "--", "python", "-c", read))
    go(space)
    await_told(space, "closed", 60)
    seen["logs app"] = space.kubectl("logs", "app")
    seen["events"] = space.kubectl("get", "events", "-o", "yaml")
    seen["audit"] = json.dumps(faults.built(space).audit_entries())

    kinds = {kind: {text for text in found if text} for kind, found in secrets.items()}
    assert all(kinds.values()), kinds.keys()
    assert len(kinds["runner"]) >= 2
    for kind, found in kinds.items():
        for secret in found:
            for text in spellings(secret):
                where = [name for name, page in seen.items() if text in page]
                assert not where, f"a {kind} is in {where}"
    # What was searched is what it is taken for.
    assert "printed by a call" in seen["logs app"]
    assert "RunnerLost" in seen["logs app"]
    assert "peer refused" in seen["logs app"]
    assert "flame-runner" in seen["yaml"]
    assert [] == json.loads(space.kubectl("get", "secrets", "-o", "json"))["items"]
    touched = [
        entry
        for entry in faults.built(space).audit_entries()
        if entry.get("objectRef", {}).get("resource") == "secrets"  # type: ignore[attr-defined]
        and f":{space.name}:" in entry["user"]["username"]  # type: ignore[index]
    ]
    assert [] == touched

"""What a verdict on a server's identity costs beside the handshake it belongs to.

    python benchmarks/identity.py [--seconds 4]

The handshake is TLS 1.3 over memory, both sides, with the standard library's own
context and check: no network, no process, so it is the least a connection can cost.
The certificate is an API server's as kubeadm makes it. Blocks alternate and the
quietest tenth of them counts, on both sides.
"""

from __future__ import annotations

import argparse
import ssl
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import kubetls
from kubetls.identity import verify

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.cluster.pki import Authority

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE = "10.96.0.1"
BLOCK_SECONDS = 0.02


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's context with kubeadm's certificate, and a client's."""
    authority = Authority()
    pair = authority.serving()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pair.certificate + pair.key)
        file.flush()
        server.load_cert_chain(file.name)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=authority.certificate.decode())
    return server, client


def shaken(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Return the client's end of a finished handshake."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname=REFERENCE)
    far = server.wrap_bio(up, down, server_side=True)
    for end in (near, far, near, far):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return near


def block(run: Callable[[], object]) -> float:
    """Return the median microseconds of one run, for a little while."""
    found, ends = [], time.perf_counter() + BLOCK_SECONDS
    while (began := time.perf_counter()) < ends:
        run()
        found.append(1e6 * (time.perf_counter() - began))
    return statistics.median(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    server, client = contexts()
    der = shaken(server, client).getpeercert(binary_form=True)

    def first_sight() -> None:
        verify._verdict.cache_clear()  # noqa: SLF001 - the cache is what differs
        kubetls.verify_identity(der, REFERENCE)

    runs: dict[str, Callable[[], object]] = {
        "handshake": lambda: shaken(server, client),
        "first sight": first_sight,
        "seen before": lambda: kubetls.verify_identity(der, REFERENCE),
    }
    first_sight()  # loads both decoders
    found: dict[str, list[float]] = {name: [] for name in runs}
    ends = time.perf_counter() + args.seconds
    while time.perf_counter() < ends:
        for name, run in runs.items():
            found[name].append(block(run))
    quiet = {name: sorted(blocks)[len(blocks) // 10] for name, blocks in found.items()}
    unit = quiet["handshake"]
    print(f"handshake, both sides              {unit:7.0f} us")
    for name, goal in (("first sight", 45), ("seen before", 2)):
        share = 100 * quiet[name] / unit
        print(f"verdict, {name}: {quiet[name]:19.1f} us, {share:.1f} % (goal {goal})")


if __name__ == "__main__":
    main()

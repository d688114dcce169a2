"""A list of 10 000 pods, in pages of 500, over TLS on loopback: CPU and memory.

    python benchmarks/client_list.py [--pods 10000] [--rounds 5]

Contenders decode the same bytes from the same server, each round one after the other in
processes of their own, so that a noisy machine is noisy for all. The unit is bare
urllib3 with the same msgspec type; what is not installed is left out and said.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

PAGE = 500
PATH = "/api/v1/pods"


class Metadata(msgspec.Struct, rename="camel"):
    """What a monitor of pods needs of metadata."""

    name: str
    namespace: str
    uid: str
    resource_version: str


class Status(msgspec.Struct, rename="camel"):
    """And of status."""

    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")


class Pod(msgspec.Struct):
    """One item."""

    metadata: Metadata
    status: Status


class ListMetadata(msgspec.Struct):
    """Of a page."""

    continue_: str = msgspec.field(name="continue", default="")


class PodList(msgspec.Struct):
    """What the bare contender decodes."""

    items: list[Pod]
    metadata: ListMetadata


def pod(number: int) -> dict[str, Any]:
    """Return a pod as the API server sends it: about three kilobytes."""
    name = f"worker-{number:05d}"
    container = {
        "name": "app",
        "image": "registry.example/team/app:1.2.3",
        "env": [{"name": f"VARIABLE_{n}", "value": "x" * 20} for n in range(12)],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "token", "mountPath": "/var/run/token", "readOnly": True},
        ],
    }
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    managed = {f"f:field{n}": {"f:inner": {}} for n in range(30)}
    return {
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"00000000-0000-0000-0000-{number:012d}",
            "resourceVersion": str(100_000 + number),
            "labels": {"app": "worker", "pod-template-hash": "5d4f8c7b9"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": managed}],
        },
        "spec": {"containers": [container], "nodeName": "node-1"},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": conditions,
            "containerStatuses": [
                {
                    "name": "app",
                    "ready": True,
                    "restartCount": 0,
                    "image": "app:1.2.3",
                    "imageID": "registry.example/team/app@sha256:" + "0" * 64,
                }
            ],
        },
    }


def pages(count: int) -> list[bytes]:
    """Return the bodies of all pages."""
    bodies = []
    for start in range(0, count, PAGE):
        metadata: dict[str, Any] = {"resourceVersion": "200000"}
        if start + PAGE < count:
            metadata["continue"] = str(start // PAGE + 1)
        items = [pod(number) for number in range(start, min(start + PAGE, count))]
        page = {"kind": "PodList", "apiVersion": "v1", "metadata": metadata}
        bodies.append(json.dumps(page | {"items": items}).encode())
    return bodies


# ---------------------------------------------------------------------- contenders


def by_urllib3(config: dict[str, Any]) -> int:
    """The least there is: urllib3 and a msgspec decoder."""
    import urllib3

    http = urllib3.PoolManager(ca_certs=config["ca"])
    decoder = msgspec.json.Decoder(PodList)
    count, token = 0, ""
    while True:
        url = f"{config['server']}{PATH}?limit={PAGE}&continue={token}"
        answer = http.request("GET", url, headers={"Authorization": "Bearer a.b.c"})
        page = decoder.decode(answer.data)
        count += len(page.items)
        token = page.metadata.continue_
        if not token:
            return count


def by_kubetls(config: dict[str, Any]) -> int:
    """Ours, with the same type."""
    import kubetls

    with kubetls.session(kubetls.kubeconfig(config["kubeconfig"])) as session:
        return sum(1 for _ in session.list(PATH, decoder=Pod))


def by_kubetls_dicts(config: dict[str, Any]) -> int:
    """Ours, plain dicts."""
    import kubetls

    with kubetls.session(kubetls.kubeconfig(config["kubeconfig"])) as session:
        return sum(1 for _ in session.list(PATH))


def by_lightkube(config: dict[str, Any]) -> int:
    """With its pod models."""
    from lightkube import Client, KubeConfig
    from lightkube.resources.core_v1 import Pod as LightkubePod

    client = Client(config=KubeConfig.from_file(config["kubeconfig"]))
    return sum(1 for _ in client.list(LightkubePod, namespace="*", chunk_size=PAGE))


def by_kr8s(config: dict[str, Any]) -> int:
    """With its objects."""
    import kr8s

    api = kr8s.api(kubeconfig=config["kubeconfig"])
    return sum(1 for _ in api.get("pods", namespace=kr8s.ALL))


def by_official(config: dict[str, Any]) -> int:
    """The official client with its pod models."""
    from kubernetes import client
    from kubernetes import config as configuration

    configuration.load_kube_config(config["kubeconfig"])
    api = client.CoreV1Api()
    count, token = 0, None
    while True:
        page = api.list_pod_for_all_namespaces(limit=PAGE, _continue=token)
        count += len(page.items)
        token = page.metadata._continue  # noqa: SLF001 - their name for it
        if not token:
            return count


CONTENDERS = {
    "urllib3 + msgspec": by_urllib3,
    "kubetls, decoder=": by_kubetls,
    "kubetls, dicts": by_kubetls_dicts,
    "lightkube": by_lightkube,
    "kr8s": by_kr8s,
    "official client": by_official,
}


def measure(name: str, config: dict[str, Any]) -> None:
    """In a process of its own: print CPU seconds and peak memory above the start."""
    try:
        CONTENDERS[name](config)  # imports, the first handshake
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    started = time.process_time()
    count = CONTENDERS[name](config)
    seconds = time.process_time() - started
    print(json.dumps({"cpu": seconds, "count": count, "peak": peak_of(name, config)}))


def peak_of(name: str, config: dict[str, Any]) -> int:
    """Return how far memory rises above what is there, in bytes, in a child."""
    child = os.fork()
    if child == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        CONTENDERS[name](config)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(config["pipe"][1], str((after - before) * 1024).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(config["pipe"][0], 100))


# ---------------------------------------------------------------------- server


def serve(bodies: list[bytes], folder: Path) -> dict[str, Any]:
    """Serve the pages over TLS; return how to reach them."""
    from kubetls.testing.authority import Authority

    authority = Authority()
    (folder / "server.pem").write_bytes(authority.issue(("localhost",), ("127.0.0.1",)))
    (folder / "ca.pem").write_bytes(authority.certificate_pem)

    class Pages(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            if url.path == PATH:
                body = bodies[int(query.get("continue", ["0"])[0] or 0)]
            else:
                body = discovery(url.path)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_port}"
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "b",
        "clusters": [
            {
                "name": "b",
                "cluster": {
                    "server": url,
                    "certificate-authority": str(folder / "ca.pem"),
                },
            }
        ],
        "users": [{"name": "b", "user": {"token": "a.b.c"}}],
        "contexts": [{"name": "b", "context": {"cluster": "b", "user": "b"}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(kubeconfig))
    return {
        "server": url,
        "ca": str(folder / "ca.pem"),
        "kubeconfig": str(folder / "kubeconfig"),
    }


def discovery(path: str) -> bytes:
    """Answer what clients ask before they list."""
    pods = {"name": "pods", "kind": "Pod", "namespaced": True, "singularName": "pod"}
    answers: dict[str, Any] = {
        "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "groups": []},
        "/api/v1": {
            "kind": "APIResourceList",
            "groupVersion": "v1",
            "resources": [pods | {"verbs": ["get", "list"], "shortNames": ["po"]}],
        },
    }
    return json.dumps(answers.get(path.rstrip("/"), {})).encode()


def decoding(bodies: list[bytes]) -> float:
    """Return the CPU of our page decoder over bare msgspec, on the same bytes."""
    from kubetls.client.decoding import Decoding

    ours, bare = Decoding(Pod).page, msgspec.json.Decoder(PodList).decode
    ratios = []
    for _ in range(7):
        spent = []
        for decode in (bare, ours):
            started = time.process_time()
            for body in bodies:
                decode(body)
            spent.append(time.process_time() - started)
        ratios.append(spent[1] / spent[0])
    return statistics.median(ratios)


def main() -> None:
    """Measure all contenders and print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--config", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        config = json.loads(options.config) | {"pipe": os.pipe()}
        measure(options.measure, config)
        return
    bodies = pages(options.pods)
    size = sum(map(len, bodies))
    print(
        f"{options.pods} pods, {size / 1e6:.1f} MB in {len(bodies)} pages", flush=True
    )
    print(
        f"decoding alone: {decoding(bodies):.2f}x bare msgspec (goal 1.5x)", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        config = serve(bodies, Path(folder))
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        for number in range(options.rounds):
            for name in CONTENDERS:
                if number and "missing" in found[name][0]:
                    continue
                print(f"\rround {number + 1}, {name:<20}", end="", file=sys.stderr)
                found[name].append(run(name, config))
        print("\r", end="", file=sys.stderr)
    report(found, size)


def run(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Measure one contender in a new process."""
    command = [sys.executable, __file__, "--measure", name, "--config"]
    with subprocess.Popen(
        [*command, json.dumps(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            told, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            # With the process that it forks to measure memory.
            os.killpg(process.pid, signal.SIGKILL)
            return {"missing": "not done within 60 s"}
    if process.returncode:
        return {"missing": errors.strip()[-300:].replace("\n", " ")}
    result: dict[str, Any] = json.loads(told)
    return result


def report(found: dict[str, list[dict[str, Any]]], size: int) -> None:
    """Print the table."""
    bare = [result["cpu"] for result in found["urllib3 + msgspec"]]
    print(f"{'':<20}{'CPU, x urllib3':>16}{'peak, x body':>14}")
    for name, results in found.items():
        if "missing" in results[0]:
            print(f"{name:<20}  left out: {results[0]['missing']}")
            continue
        ratios = [r["cpu"] / unit for r, unit in zip(results, bare, strict=True)]
        peak = statistics.median(r["peak"] for r in results) / size
        print(f"{name:<20}{statistics.median(ratios):>16.2f}{peak:>14.2f}")
    print("goals: kubetls, decoder= at most 1.2x and 0.5x")


if __name__ == "__main__":
    main()

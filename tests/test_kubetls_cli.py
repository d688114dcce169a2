"""The command line: real processes against real servers, healthy and broken."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import os
import pty
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.cluster.pki import ADDRESSES, NAMES, Authority, Pair
from tests.credential_files import jwt, write_kubeconfig, write_plain
from tests.servers import Answer, Server, answer, refusal, response

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

AUTHORITY = Authority()
GOOD = AUTHORITY.serving()


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*arguments: object, **environ: str) -> Ran:
    """Run `kubetls` in an environment of its own."""
    path = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "kubetls.cli", *map(str, arguments)],
        env=path | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    return Ran(ended.returncode, ended.stdout, ended.stderr)


def review(name: str = "system:serviceaccount:team-a:app", **more: Any) -> bytes:
    """Return a SelfSubjectReview as the server answers it."""
    user = {"username": name, "groups": ["system:authenticated"], **more}
    return answer({"kind": "SelfSubjectReview", "status": {"userInfo": user}})


RULES = answer(
    {
        "kind": "SelfSubjectRulesReview",
        "status": {
            "incomplete": False,
            "resourceRules": [
                {
                    "verbs": ["create"],
                    "apiGroups": ["authorization.k8s.io"],
                    "resources": ["selfsubjectrulesreviews"],
                },
                {
                    "verbs": ["get", "list"],
                    "apiGroups": [""],
                    "resources": ["pods", "pods/log"],
                },
                {
                    "verbs": ["patch"],
                    "apiGroups": ["apps"],
                    "resources": ["deployments"],
                    "resourceNames": ["app"],
                },
            ],
            "nonResourceRules": [],
        },
    }
)


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# ------------------------------------------------------------------ usage


def test_help_documents_the_exit_codes() -> None:
    """Of the program and of each command."""
    for arguments in ((), ("explain",), ("doctor",), ("whoami",)):
        ran = run(*arguments, "--help")
        assert 0 == ran.code
        for line in ("0  fine", "1  the check says no", "2  usage", "3  could not be"):
            assert line in ran.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("explode",),
        ("explain",),
        ("explain", "host", "--refer", "x"),
        ("explain", "host", "--timeout", "0"),
        ("explain", "host", "--timeout", "nan"),
        ("explain", "host:99999"),
        ("explain", "host:"),
        ("explain", "http://host"),
        ("explain", "010.0.0.1"),
        ("explain", ""),
        ("explain", "127.0.0.1:1", "--reference", "*.example.org"),
        ("doctor", "--volume", "x", "--context", "y"),
        ("whoami", "extra"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    """What cannot be meant is said on standard error, in words."""
    ran = run(*arguments)
    assert (2, "") == (ran.code, ran.out)
    assert ran.err


def test_help_loads_no_decoder() -> None:
    """Asking for help costs no import of TLS or certificates."""
    code = (
        "import sys, contextlib\nfrom kubetls.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])\n"
        "loaded = {'cryptography', 'pyasn1', 'urllib3', 'yaml'} & set(sys.modules)\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (0, "") == (ended.returncode, ended.stderr)


# ------------------------------------------------------------------ explain


def test_explain_says_why_each_entry_matches_or_not(tmp_path: Path) -> None:
    """A healthy server: every entry with its reason, exit 0, not one byte sent."""
    with Server(GOOD, tmp_path) as server:
        ran = run("explain", f"127.0.0.1:{server.port}")
    assert (0, "") == (ran.code, ran.err)
    assert f"target     127.0.0.1:{server.port}\n" in ran.out
    assert "reference  IP 127.0.0.1\nverdict    match" in ran.out
    assert "+ iPAddress  127.0.0.1" in ran.out
    assert "- dNSName    kubernetes " in ran.out
    assert "a dNSName never matches an address" in ran.out
    assert "dates      valid for another 365 days" in ran.out
    assert (b"", [None]) == (bytes(server.received), server.names)


def test_explain_with_a_reference_asks_for_that_name(tmp_path: Path) -> None:
    """--reference replaces the name that is indicated and compared."""
    with Server(GOOD, tmp_path) as server:
        target = f"127.0.0.1:{server.port}"
        ran = run("explain", target, "--reference", "Kubernetes.Default", "--json")
        other = run("explain", target, "--reference", "kubernetes.example.org")
    assert (0, "match") == (ran.code, ran.json["verdict"])
    assert ["kubernetes.default", "kubernetes.example.org"] == server.names
    assert {"kind": "DNS", "text": "kubernetes.default"} == ran.json["reference"]
    assert [*NAMES, *ADDRESSES] == [entry["text"] for entry in ran.json["entries"]]
    assert [1] == [
        entry["text"] == "kubernetes.default"
        for entry in ran.json["entries"]
        if entry["matches"]
    ]
    assert 1 == other.code
    assert "verdict    mismatch: no entry matches" in other.out
    assert "remedy     issue it with dNSName kubernetes.example.org" in other.out
    assert "or set tls-server-name to kubernetes\n" in other.out


MAPPED = ipaddress.ip_address("::ffff:127.0.0.1")

BROKEN = [
    ("the address stands in a dNSName", {"names": ("127.0.0.1",)}),
    ("it presents no iPAddress at all", {"names": ("kubernetes",)}),
    ("no entry matches 127.0.0.1", {"addresses": ("10.96.0.1",)}),
    ("it has no subjectAltName; the common name is not read", {}),
    # CPython 3.13 writes it with its last four octets as in IPv4.
    (f"{MAPPED}  IPv4-mapped", {"addresses": ("::ffff:127.0.0.1",)}),
    ("expired 3 days ago", {"addresses": ("127.0.0.1",), "days": -3}),
]


@pytest.mark.parametrize(("expected", "issued"), BROKEN)
def test_explain_of_a_broken_certificate_is_1(
    expected: str, issued: dict[str, Any], tmp_path: Path
) -> None:
    """The page says what is wrong and what to do."""
    pair = AUTHORITY.issue("127.0.0.1", **issued)
    with Server(pair, tmp_path) as server:
        ran = run("explain", f"https://127.0.0.1:{server.port}")
    assert 1 == ran.code
    assert expected in ran.out
    assert "remedy     issue" in ran.out
    assert b"" == server.received


@pytest.mark.parametrize(
    ("names", "advised"),
    [(("localhost", "kubernetes"), "kubernetes"), (("localhost",), "localhost")],
)
def test_explain_advises_a_name_other_than_localhost(
    names: tuple[str, ...], advised: str, tmp_path: Path
) -> None:
    """tls-server-name is to be what the server is for, if it has such a name."""
    file = tmp_path / "a.pem"
    file.write_bytes(AUTHORITY.issue("x", names=names).certificate)
    ran = run("explain", file, "--reference", "10.0.0.9")
    assert f"or set tls-server-name to {advised}\n" in ran.out


def test_explain_of_ipv6_takes_brackets_and_none(tmp_path: Path) -> None:
    """[::1]:port, and ::1 for the default port."""
    with Server(GOOD, tmp_path, host="::1") as server:
        ran = run("explain", f"[::1]:{server.port}")
    assert 0 == ran.code
    assert "reference  IP ::1\nverdict    match" in ran.out
    unreached = run("explain", "::1", "--timeout", "1")
    assert 3 == unreached.code
    assert "[::1]:443: " in unreached.out


def test_explain_of_a_file(tmp_path: Path) -> None:
    """PEM or DER, a key beside it or not; without --reference it lists."""
    pem, der = tmp_path / "a.pem", tmp_path / "a.der"
    pem.write_bytes(GOOD.key + GOOD.certificate)
    der.write_bytes(ssl.PEM_cert_to_DER_cert(GOOD.certificate.decode()))
    for file in (pem, der):
        ran = run("explain", file, "--reference", "10.96.0.1")
        assert 0 == ran.code
        assert "verdict    match" in ran.out
        listed = run("explain", file)
        assert 0 == listed.code
        assert "verdict    none: name what to compare with" in listed.out
        assert "  dNSName kubernetes.default.svc\n" in listed.out
        assert 1 == run("explain", file, "--reference", "10.0.0.9").code
        assert "PRIVATE" not in ran.out + listed.out


def test_explain_of_a_malformed_certificate_is_refused(tmp_path: Path) -> None:
    """Bytes that are no certificate: refused as a whole, exit 1, with and without."""
    file = tmp_path / "broken.der"
    file.write_bytes(b"\x30\x03\x02\x01\x00 no certificate")
    for more in ((), ("--reference", "a.example")):
        ran = run("explain", file, *more)
        assert 1 == ran.code
        assert "verdict    refused: not strict DER" in ran.out


def talk_plain(raw: socket.socket) -> bool:
    """Answer plain HTTP, as a port that is not the API server's."""
    raw.recv(1024)
    raw.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    return True


def hang_up(raw: socket.socket) -> bool:
    """Take the connection and end it."""
    raw.recv(1024)
    return True


def say_nothing(raw: socket.socket) -> bool:
    """Take the connection and wait."""
    raw.recv(1024)
    time.sleep(1.5)
    return True


@pytest.mark.parametrize(
    ("expected", "talk"),
    [
        ("the server does not speak TLS there", talk_plain),
        ("the server ended the handshake", hang_up),
        ("the handshake took longer than 1 s", say_nothing),
    ],
)
def test_explain_without_a_certificate_is_3(
    expected: str, talk: Any, tmp_path: Path
) -> None:
    """Something listens and shows no certificate: says what happened."""
    with Server(GOOD, tmp_path, raw=talk) as server:
        ran = run("explain", f"127.0.0.1:{server.port}", "--timeout", "1", "--json")
    assert 3 == ran.code
    assert f"it presents no certificate: {expected}" == ran.json["error"]


def test_explain_of_what_is_not_there_is_3(tmp_path: Path) -> None:
    """No listener, no such name, no such file, one of something else, a directory."""
    (tmp_path / "empty.pem").write_bytes(b"-----BEGIN X-----\n-----END X-----\n")
    (tmp_path / "notes.txt").write_bytes(b"# Notes\n")
    for target, expected in (
        (f"127.0.0.1:{free_port()}", "it cannot be reached: Connection refused"),
        ("no-such-host.invalid", "its name is unknown: "),
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "empty.pem", "holds no certificate"),
        (tmp_path / "notes.txt", "holds no certificate"),
        (tmp_path, "not a regular file"),
    ):
        ran = run("explain", target)
        assert 3 == ran.code
        assert expected in ran.out
        assert 1 == ran.out.count(str(target))


def test_help_of_a_command_keeps_the_names_of_things() -> None:
    """A sentence begins with a capital letter; API is written as ever."""
    assert "\nWhat the API server takes you for.\n" in run("whoami", "--help").out


def test_names_in_a_certificate_give_no_orders_to_a_terminal(tmp_path: Path) -> None:
    """Escape sequences in the subject and in entries are shown as text."""
    pair = AUTHORITY.issue("\x1b[2Jevil", names=("\x1b]0;x\x07.example",))
    with Server(pair, tmp_path) as server:
        ran = run("explain", f"127.0.0.1:{server.port}")
    assert 1 == ran.code
    assert ran.out.isascii()
    assert "\x1b" not in ran.out
    assert "CN=\\x1b[2Jevil" in ran.out
    assert "dNSName    \\x1b]0;x\\x07.example" in ran.out


@pytest.mark.parametrize(
    ("coloured", "environ"),
    [
        (True, {"TERM": "xterm"}),
        (False, {"TERM": "xterm", "NO_COLOR": "1"}),
        (False, {"TERM": "dumb"}),
    ],
)
def test_colour_is_for_terminals(
    coloured: bool, environ: dict[str, str], tmp_path: Path
) -> None:
    """And not for those who say NO_COLOR; without colour it is the page of a pipe."""
    file = tmp_path / "a.pem"
    file.write_bytes(GOOD.certificate)
    command = [sys.executable, "-m", "kubetls.cli", "explain", file]
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [*command, "--reference", "kubernetes"],
            env={"PYTHONPATH": os.pathsep.join(sys.path)} | environ,
            stdout=theirs,
            timeout=60,
            check=True,
        )
        shown = os.read(ours, 65536).decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)
    plain = run("explain", file, "--reference", "kubernetes").out
    assert coloured is ("\x1b[32m  +\x1b[0m dNSName" in shown)
    stripped = shown
    for code in ("\x1b[32m", "\x1b[31m", "\x1b[0m"):
        stripped = stripped.replace(code, "")
    assert plain == stripped


# ------------------------------------------------------------------ doctor, in a pod


@dataclass
class Pod:
    """A pod's environment: a volume and the variables."""

    folder: Path
    server: Server

    def doctor(self, *arguments: object, **changes: str | None) -> Ran:
        """Run the doctor there; None drops a variable."""
        environ: dict[str, str | None] = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.server.port),
        }
        environ |= changes
        kept = {name: value for name, value in environ.items() if value is not None}
        return run("doctor", "--volume", self.folder / "volume", *arguments, **kept)

    def mount(self, **files: bytes | None) -> None:
        """Write the volume."""
        in_an_hour = jwt(exp=time.time() + 3600).encode()
        content = {"ca_crt": AUTHORITY.certificate, "token": in_an_hour} | files
        write_plain(self.folder / "volume", **content)

    def serve(self, pair: Pair) -> None:
        """Let the server present another certificate."""
        path = self.folder / "other.pem"
        path.write_bytes(pair.certificate + pair.key)
        self.server.context.load_cert_chain(path)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    """Yield a healthy pod; its server answers both reviews in turn."""
    with Server(GOOD, tmp_path, [review(), RULES]) as server:
        found = Pod(tmp_path, server)
        found.mount()
        yield found


def statuses(ran: Ran) -> dict[str, str]:
    """Return what was found, by check."""
    return {found["check"]: found["status"] for found in ran.json["findings"]}


HEALTHY = {
    "environment": "ok",
    "mount": "ok",
    "token": "ok",
    "CA": "ok",
    "reachability": "ok",
    "handshake": "ok",
    "identity": "ok",
    "trust": "ok",
    "authentication": "ok",
    "authorization": "ok",
}


def test_doctor_finds_nothing_in_a_healthy_pod(pod: Pod) -> None:
    """Every check is ok; the page lists what is allowed."""
    ran = pod.doctor()
    assert (0, "") == (ran.code, ran.err)
    assert ran.out.endswith("nothing to fix\n")
    assert "the server takes us for system:serviceaccount:team-a:app" in ran.out
    assert "2 rules in namespace team-a" in ran.out
    assert "   get,list pods, pods/log\n" in ran.out
    assert "   patch deployments.apps named app\n" in ran.out
    assert "token               there; ends in 60 minutes" in ran.out
    sent = [request.json for request in pod.server.requests]
    assert ["SelfSubjectReview", "SelfSubjectRulesReview"] == [s["kind"] for s in sent]
    assert {"namespace": "team-a"} == sent[1]["spec"]


def test_doctor_says_the_same_as_json(pod: Pod) -> None:
    """One document with every finding, the user and the rules."""
    ran = pod.doctor("--json")
    assert (0, HEALTHY) == (ran.code, statuses(ran))
    assert (0, None) == (ran.json["exit"], ran.json["fix_first"])
    assert "in-cluster" == ran.json["origin"]
    assert 3 == len(ran.json["rules"])
    assert "system:serviceaccount:team-a:app" == ran.json["user"]["username"]


@pytest.mark.parametrize(
    ("first", "expected", "files"),
    [
        ("token", "automountServiceAccountToken is false", {"token": None}),
        ("token", "not a bound token", {"token": b"a b"}),
        ("token", "holds no token", {"token": b""}),
        ("token", "expired 5 minutes ago", {"token": jwt(exp=1).encode()}),
        ("CA", "no CA bundle", {"ca_crt": None}),
        ("CA", "holds no certificate", {"ca_crt": b"nothing"}),
        ("CA", "a private key in a CA bundle", {"ca_crt": GOOD.key}),
        ("trust", "another cluster's, or was", {"ca_crt": Authority().certificate}),
        ("namespace", "is no namespace", {"namespace": b"No"}),
    ],
)
def test_doctor_names_what_is_wrong_with_the_mount(
    first: str, expected: str, files: dict[str, bytes | None], pod: Pod
) -> None:
    """One file is broken: it is the first thing to fix, the rest is looked at."""
    if expected.startswith("expired"):
        files = {"token": jwt(exp=time.time() - 300).encode()}
    for name in ("token", "ca.crt", "namespace"):
        (pod.folder / "volume" / name).unlink()
    pod.mount(**files)
    ran = pod.doctor("--json")
    assert 1 == ran.code
    found = ran.json["fix_first"]
    assert first == found["check"]
    assert expected in found["text"] + found["remedy"]
    assert {"reachability", "handshake", "identity"} <= statuses(ran).keys()
    assert "ok" == statuses(ran)["identity"]
    assert f"fix first: {first}: " in pod.doctor().out


def test_doctor_warns_of_a_token_that_is_not_renewed(pod: Pod) -> None:
    """Past `warnafter` it still works, on most clusters."""
    now = time.time()
    late = {"warnafter": now - 600}
    pod.mount(token=jwt(exp=now + 9e6, **{"kubernetes.io": late}).encode())
    ran = pod.doctor("--json")
    assert (0, "warn") == (ran.code, statuses(ran)["token"])


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("KUBERNETES_SERVICE_HOST: not set", {"KUBERNETES_SERVICE_HOST": None}),
        ("brackets belong to URLs", {"KUBERNETES_SERVICE_HOST": "[::1]"}),
        ("no port", {"KUBERNETES_SERVICE_PORT": "tcp://10.0.0.1:443"}),
        ("neither it nor", {"KUBERNETES_SERVICE_PORT": None}),
    ],
)
def test_doctor_names_the_variable(
    expected: str, changes: dict[str, str | None], pod: Pod
) -> None:
    """A malformed environment: the mount is looked at all the same."""
    ran = pod.doctor("--json", **changes)
    assert (1, "environment") == (ran.code, ran.json["fix_first"]["check"])
    assert expected in ran.json["fix_first"]["text"]
    assert "ok" == statuses(ran)["mount"] == statuses(ran)["token"]
    assert 0 == pod.server.connections


def test_doctor_without_a_mount(pod: Pod) -> None:
    """The server is looked at all the same; nothing is sent to it."""
    for file in (pod.folder / "volume").iterdir():
        file.unlink()
    (pod.folder / "volume").rmdir()
    ran = pod.doctor("--json")
    assert (1, "mount") == (ran.code, ran.json["fix_first"]["check"])
    assert "ok" == statuses(ran)["identity"]
    assert {"skipped"} == {statuses(ran)[name] for name in ("trust", "authentication")}
    assert [] == pod.server.requests


@pytest.mark.parametrize(
    ("first", "expected", "issued"),
    [
        ("identity", "issue it with iPAddress 127.0.0.1", {"names": NAMES}),
        ("identity", "the common name is not read", {}),
        ("trust", "renew the server", {"addresses": ADDRESSES, "days": -3}),
        ("trust", "serverAuth", {"addresses": ADDRESSES, "server": False}),
    ],
)
def test_doctor_names_what_is_wrong_with_the_server(
    first: str, expected: str, issued: dict[str, Any], pod: Pod
) -> None:
    """A certificate that is refused: what to issue instead; no token is sent."""
    pod.serve(AUTHORITY.issue("127.0.0.1", **issued))
    ran = pod.doctor("--json")
    assert (1, first) == (ran.code, ran.json["fix_first"]["check"])
    found = ran.json["fix_first"]
    assert expected in found["text"] + found["remedy"]
    assert "skipped" == statuses(ran)["authentication"]
    assert ([], b"") == (pod.server.requests, bytes(pod.server.received))


def test_doctor_without_a_listener(pod: Pod) -> None:
    """Nothing listens: that is the finding; an ignored proxy is named without value."""
    proxy = {"HTTPS_PROXY": "http://ann:SECRET@proxy:3128"}
    ran = pod.doctor(KUBERNETES_SERVICE_PORT=str(free_port()), **proxy)
    assert 1 == ran.code
    assert "fix first: reachability: see that the server runs there" in ran.out
    assert "warn proxy               HTTPS_PROXY is set, and not used here" in ran.out
    assert "SECRET" not in ran.out + ran.err


def test_doctor_of_an_unknown_name(pod: Pod) -> None:
    """A name that does not resolve is not "nothing listens"."""
    ran = pod.doctor("--json", KUBERNETES_SERVICE_HOST="no-such-host.invalid")
    assert 1 == ran.code
    assert "no-such-host.invalid is unknown" in ran.json["fix_first"]["text"]


def test_doctor_of_a_port_without_tls(pod: Pod) -> None:
    """It is reached and is no API server."""
    pod.server.raw = talk_plain
    ran = pod.doctor("--json")
    assert (1, "handshake") == (ran.code, ran.json["fix_first"]["check"])
    assert "ok" == statuses(ran)["reachability"]


@pytest.mark.parametrize(
    ("code", "check", "status", "answers"),
    [
        (1, "authentication", "fail", [refusal(401, "Unauthorized")]),
        (1, "authentication", "fail", [refusal(403, "Forbidden")]),
        (1, "authentication", "fail", [review("system:anonymous")]),
        (3, "authentication", "unknown", [refusal(404, "NotFound")]),
        (3, "authentication", "unknown", [refusal(500, "InternalError")]),
        (3, "authentication", "unknown", [answer({"status": {}})]),
        (3, "authentication", "unknown", [answer([])]),
        (3, "authorization", "unknown", [review(), refusal(500, "InternalError")]),
        (1, "authorization", "fail", [review(), refusal(403, "Forbidden")]),
        (0, "authorization", "warn", [review(), answer({"status": {}})]),
    ],
)
def test_doctor_tells_no_from_unknown(
    code: int, check: str, status: str, answers: list[Answer], pod: Pod
) -> None:
    """A refusal is 1, a server that could not say is 3, and neither is 0."""
    pod.server.answers = answers
    ran = pod.doctor("--json")
    assert (code, status) == (ran.code, statuses(ran)[check])
    last = ran.json["findings"][-1]
    assert (check, True) == (last["check"], bool(last["remedy"]) or status == "unknown")


# ------------------------------------------------------------------ doctor, kubeconfig


def kubeconfig_of(folder: Path, server: Server, **changes: Any) -> Path:
    """Write a kubeconfig that leads to the server."""
    cluster = {
        "server": f"https://127.0.0.1:{server.port}",
        "certificate-authority-data": base64.b64encode(AUTHORITY.certificate).decode(),
    } | changes.pop("cluster", {})
    return write_kubeconfig(folder / "config", cluster=cluster, **changes)


def plugin_user(folder: Path, body: str) -> dict[str, Any]:
    """Return a user whose plugin is a script."""
    (folder / "plugin").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "plugin").chmod(0o755)
    version = "client.authentication.k8s.io/v1beta1"
    return {"token": None, "exec": {"apiVersion": version, "command": "./plugin"}}


CREDENTIAL = json.dumps(
    {
        "apiVersion": "client.authentication.k8s.io/v1beta1",
        "kind": "ExecCredential",
        "status": {"token": "from-the-plugin"},
    }
)


def test_doctor_of_a_healthy_kubeconfig(tmp_path: Path) -> None:
    """By --kubeconfig, by $KUBECONFIG, at home; a plugin runs once."""
    with Server(GOOD, tmp_path, [review("ann"), RULES] * 3) as server:
        count = f"echo run >> '{tmp_path}/runs'"
        user = plugin_user(tmp_path, f"{count}\necho '{CREDENTIAL}'")
        file = kubeconfig_of(tmp_path, server, user=user)
        (tmp_path / "home").mkdir()
        home = tmp_path / "home" / ".kube"
        home.symlink_to(tmp_path)
        for arguments, environ in (
            (("--kubeconfig", str(file), "--context", "dev"), {}),
            ((), {"KUBECONFIG": str(file)}),
            ((), {"HOME": str(home.parent)}),
        ):
            ran = run("doctor", *arguments, **environ)
            assert 0 == ran.code
            assert "the server takes us for ann" in ran.out
    assert 3 == len((tmp_path / "runs").read_text().splitlines())
    assert {"Bearer from-the-plugin"} == {
        request.headers["Authorization"] for request in server.requests
    }


@pytest.mark.parametrize(
    ("first", "expected", "changes"),
    [
        (
            "kubeconfig",
            "whoever answers would get your credentials",
            {"cluster": {"insecure-skip-tls-verify": True}},
        ),
        ("kubeconfig", "has no entry named", {"context": {"cluster": "absent"}}),
        ("credentials", "users", {"context": {"user": "absent"}}),
        ("credentials", "holds no token", {"user": {"token": " "}}),
        ("credentials", "auth-provider", {"user": {"auth-provider": {"name": "x"}}}),
        (
            "CA",
            'pass trust="system"',
            {"cluster": {"certificate-authority-data": None}},
        ),
        (
            "credentials",
            "failed with exit code 4: log in first (brew install it)",
            {"user": "plugin"},
        ),
    ],
)
def test_doctor_names_what_is_wrong_with_a_kubeconfig(
    first: str, expected: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """The entry, the file or the plugin is the first thing to fix."""
    if changes.get("user") == "plugin":
        user = plugin_user(tmp_path, "echo 'log in first' >&2\nexit 4")
        user["exec"]["installHint"] = "brew install it"
        changes = {"user": user}
        expected = expected.partition(" (")[0]
    with Server(GOOD, tmp_path, [review(), RULES]) as server:
        file = kubeconfig_of(tmp_path, server, **changes)
        ran = run("doctor", "--kubeconfig", file, "--json")
    assert (1, first) == (ran.code, ran.json["fix_first"]["check"])
    assert expected in ran.json["fix_first"]["text"]
    if first != "kubeconfig":
        assert "ok" == statuses(ran)["identity"]
    assert [] == server.requests


@pytest.mark.parametrize(
    ("expected", "option"),
    [
        ('exec="refuse"', ("--exec", "refuse")),
        ('files="inline-only"', ("--files", "inline-only")),
    ],
)
@pytest.mark.parametrize("verb", ["doctor", "whoami"])
def test_foreign_kubeconfig_runs_nothing_when_told_so(
    verb: str, expected: str, option: tuple[str, str], tmp_path: Path
) -> None:
    """--exec refuse and --files inline-only: no plugin runs, nothing is sent."""
    with Server(GOOD, tmp_path) as server:
        user = plugin_user(tmp_path, f"touch '{tmp_path}/ran'\necho '{CREDENTIAL}'")
        file = kubeconfig_of(tmp_path, server, user=user)
        ran = run(verb, "--kubeconfig", file, *option)
    assert ran.code == (1 if verb == "doctor" else 3)
    assert f"names a {'credential plugin' if 'exec' in expected else 'program'}" in (
        ran.out
    )
    assert expected in ran.out
    assert not (tmp_path / "ran").exists()
    assert [] == server.requests


def test_trust_of_the_system_is_an_option(tmp_path: Path) -> None:
    """As in code: for a kubeconfig that names no CA, and a private one is refused."""
    without = {"certificate-authority-data": None}
    with Server(GOOD, tmp_path) as server:
        file = kubeconfig_of(tmp_path, server, cluster=without)
        ran = run("doctor", "--kubeconfig", file, "--trust", "system", "--json")
    assert (1, "ok") == (ran.code, statuses(ran)["CA"])
    assert "trust" == ran.json["fix_first"]["check"]
    assert [] == server.requests


def authority(days: int) -> bytes:
    """Return a CA certificate that ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old-ca")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=90))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("code", "status", "bundle"),
    [
        (0, "warn", AUTHORITY.certificate + authority(-5)),
        (0, "ok", AUTHORITY.certificate + authority(5)),
        (1, "fail", authority(-5)),
    ],
)
def test_doctor_judges_the_dates_of_the_ca(
    code: int, status: str, bundle: bytes, pod: Pod
) -> None:
    """Some old certificates are passed over; a bundle of old ones trusts nobody."""
    pod.mount(ca_crt=bundle)
    ran = pod.doctor("--json")
    assert (code, status) == (ran.code, statuses(ran)["CA"])
    if status != "ok":
        assert "CN=old-ca, expired 5 days ago" in pod.doctor().out


@pytest.mark.parametrize(("code", "days"), [(0, 30), (1, -3)])
def test_doctor_judges_the_dates_of_a_client_certificate(
    code: int, days: int, tmp_path: Path
) -> None:
    """An admin.conf of last year is the most common one."""
    pair = AUTHORITY.issue("kubernetes-admin", days=days, server=False)
    user = {
        "token": None,
        "client-certificate-data": base64.b64encode(pair.certificate).decode(),
        "client-key-data": base64.b64encode(pair.key).decode(),
    }
    with Server(GOOD, tmp_path, [review(), RULES]) as server:
        file = kubeconfig_of(tmp_path, server, user=user)
        ran = run("doctor", "--kubeconfig", file, "--json")
    assert code == ran.code
    found = {item["check"]: item for item in ran.json["findings"]}
    assert "CN=kubernetes-admin, " in found["client certificate"]["text"]
    assert ("fail" if code else "ok") == found["client certificate"]["status"]


def test_doctor_of_a_context_without_user_warns(tmp_path: Path) -> None:
    """Nothing to prove who we are with: said before the server says it."""
    with Server(GOOD, tmp_path, [review("system:anonymous")]) as server:
        file = kubeconfig_of(tmp_path, server, context={"user": None})
        ran = run("doctor", "--kubeconfig", file, "--json")
    assert (1, "warn") == (ran.code, statuses(ran)["credentials"])
    assert "authentication" == ran.json["fix_first"]["check"]


def test_doctor_where_nothing_applies() -> None:
    """No pod, no kubeconfig: names every place that was looked at."""
    ran = run("doctor", HOME="/absent")
    assert 1 == ran.code
    assert "fix first: environment: KUBERNETES_SERVICE_HOST: not set" in ran.out
    assert "/absent/.kube/config does not exist" in ran.out


# ------------------------------------------------------------------ whoami


def test_whoami_says_name_groups_and_place(tmp_path: Path) -> None:
    """What the server takes us for, and where that was asked."""
    with Server(GOOD, tmp_path, [review("ann", uid="u-1")] * 2) as server:
        ends = time.time() + 7260
        file = kubeconfig_of(tmp_path, server, user={"token": jwt(exp=ends)})
        ran = run("whoami", "--kubeconfig", file)
        data = run("whoami", "--json", KUBECONFIG=str(file)).json
    assert (0, "") == (ran.code, ran.err)
    assert "user       ann\nuid        u-1\n" in ran.out
    assert "groups     system:authenticated\n" in ran.out
    assert f"server     https://127.0.0.1:{server.port}\n" in ran.out
    assert "namespace  team-a\ntoken      ends in 2 hours" in ran.out
    assert "ann" == data["user"]["username"]
    assert ends == pytest.approx(data["token_expires_at"])


@pytest.mark.parametrize(
    ("code", "expected", "answers"),
    [
        (1, "401 Unauthorized", [refusal(401, "Unauthorized")]),
        (1, "403 Forbidden", [refusal(403, "Forbidden")]),
        (1, "takes you for nobody", [review("system:anonymous")]),
        (3, "needs Kubernetes 1.28", [refusal(404, "NotFound")]),
        (3, "no username", [answer({"status": None})]),
    ],
)
def test_whoami_tells_no_from_unknown(
    code: int, expected: str, answers: list[Answer], tmp_path: Path
) -> None:
    """A refusal is 1; an answer that says nothing is 3."""
    with Server(GOOD, tmp_path, answers) as server:
        ran = run("whoami", "--kubeconfig", kubeconfig_of(tmp_path, server))
    assert code == ran.code
    assert expected in ran.out


def test_whoami_that_cannot_ask_is_3(tmp_path: Path) -> None:
    """No configuration, no server, a wrong one: the error, and where to go on."""
    nothing = run("whoami", "--json")
    assert (3, "NotInCluster") == (nothing.code, nothing.json["error"]["type"])
    with Server(AUTHORITY.issue("x"), tmp_path) as server:
        file = kubeconfig_of(tmp_path, server)
        stranger = run("whoami", "--kubeconfig", file)
    assert 3 == stranger.code
    assert "not valid for IP 127.0.0.1" in stranger.out
    assert "kubetls doctor says more" in stranger.out
    assert b"" == server.received
    assert 3 == run("whoami", "--kubeconfig", file, "--timeout", "1").code


def test_names_from_a_server_give_no_orders_to_a_terminal(tmp_path: Path) -> None:
    """User names and messages are escaped."""
    evil = "\x1b[2J\u202eann"
    with Server(GOOD, tmp_path, [review(evil, groups=[evil])]) as server:
        ran = run("whoami", "--kubeconfig", kubeconfig_of(tmp_path, server))
    assert 0 == ran.code
    assert ran.out.isascii()
    assert "user       \\x1b[2J\\u202eann\n" in ran.out


def test_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    """`kubetls ... | head -1` ends without a word on standard error."""
    file = tmp_path / "a.pem"
    file.write_bytes(GOOD.certificate)
    process = subprocess.Popen(
        [sys.executable, "-m", "kubetls.cli", "explain", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate(timeout=60)
    assert (0, b"") == (process.returncode, said)


@pytest.mark.parametrize(
    ("redirected", "why"),
    [(">/dev/full", "No space left on device"), (">&-", "no standard output")],
)
def test_answer_that_is_not_written_is_3(
    redirected: str, why: str, tmp_path: Path
) -> None:
    """One line, and not the code of a check that says no."""
    file = tmp_path / "a.pem"
    file.write_bytes(GOOD.certificate)
    command = f'"$0" -m kubetls.cli explain "$1" {redirected}'
    ended = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = f"kubetls: the answer could not be written: {why}\n"
    assert (3, said) == (ended.returncode, ended.stderr)


def test_closed_standard_error_changes_no_code() -> None:
    """A complaint that nobody hears is one all the same."""
    command = '"$0" -m kubetls.cli explain "*" 2>&-'
    arguments = ["/bin/sh", "-c", command, sys.executable]
    assert 2 == subprocess.run(arguments, timeout=60, check=False).returncode


@pytest.mark.parametrize(
    ("verb", "option", "why"),
    [
        ("doctor", "--kubeconfig", "names no file"),
        ("whoami", "--kubeconfig", "names no file"),
        ("doctor", "--volume", "names no folder"),
    ],
)
def test_option_without_a_name_is_no_default(
    verb: str, option: str, why: str, tmp_path: Path
) -> None:
    """`--kubeconfig "$UNSET"` does not mean the one in the home folder."""
    write_kubeconfig(tmp_path / ".kube" / "config")
    ran = run(verb, option, "", HOME=str(tmp_path))
    assert (2, f"kubetls {verb}: {option}: {why}\n") == (ran.code, ran.err)


@pytest.mark.parametrize("text", ["nan", "inf", "0", "-1", "3601", "a"])
def test_timeout_that_is_none_is_explained(text: str) -> None:
    """In the words of the user, not of the program."""
    ran = run("whoami", f"--timeout={text}")
    assert 2 == ran.code
    assert f"'{text}' is no number of seconds" in ran.err


@pytest.mark.parametrize("groups", [5, "abc", {"a": 1}, None])
def test_groups_of_another_shape_are_none(groups: object, tmp_path: Path) -> None:
    """What answers need not be an API server; its shapes are no traceback."""
    with Server(GOOD, tmp_path, [review(groups=groups)]) as server:
        ran = run("whoami", "--kubeconfig", kubeconfig_of(tmp_path, server))
    assert (0, "") == (ran.code, ran.err)
    assert "groups     none\n" in ran.out


@pytest.mark.parametrize(
    "status",
    [
        "fine",
        {"resourceRules": 5},
        {"resourceRules": {"a": 1}},
        {"resourceRules": [1, "a", None]},
        {"resourceRules": [{"verbs": 5, "apiGroups": 6, "resources": 7}]},
    ],
)
def test_rules_of_another_shape_are_none(status: object, tmp_path: Path) -> None:
    """In the doctor's answer as well."""
    answers: list[Answer] = [review(), answer({"status": status})]
    with Server(GOOD, tmp_path, answers) as server:
        ran = run("doctor", "--kubeconfig", kubeconfig_of(tmp_path, server))
    assert (0, "") == (ran.code, ran.err)
    assert "authorization" in ran.out


@pytest.mark.parametrize(
    "given",
    [
        response(b"<html>sign in</html>"),
        response(b"", "Location: /login", status="302 Found"),
        review(""),
    ],
)
def test_what_is_no_api_server_is_named_so(given: bytes, tmp_path: Path) -> None:
    """A portal between answers well enough; no connection is blamed."""
    with Server(GOOD, tmp_path, [given]) as server:
        ran = run("doctor", "--kubeconfig", kubeconfig_of(tmp_path, server))
    assert 3 == ran.code
    assert "-> what answers is no API server" in ran.out

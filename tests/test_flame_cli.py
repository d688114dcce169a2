"""flame-backend: what it prints, refuses and returns; and what deploy/ holds."""

from __future__ import annotations

import ast
import datetime as dt
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from flame_backend import cli
from flame_backend.backends.kubernetes.access import DIAGNOSIS_RULES, POD_VERBS, RULES
from flame_backend.cli import output
from flame_backend.cli.doctor import selects
from flame_backend.cli.listing import cause_of, described, is_left_over
from tests.cluster import manifests
from tests.cluster.control_plane import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMMANDS = ("init", "render", "doctor", "run", "ps", "sweep")

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1"},
    "spec": {
        "nodeName": "node-1",
        "serviceAccountName": "web",
        "containers": [
            {"name": "app", "image": "app:1", "env": [{"name": "A", "value": "1"}]}
        ],
    },
}
TEMPLATE = {"metadata": {"labels": {"app": "web"}}, "spec": POD["spec"]}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {"template": TEMPLATE},
}
CRON = {
    "apiVersion": "batch/v1",
    "kind": "CronJob",
    "metadata": {"name": "nightly"},
    "spec": {"jobTemplate": {"spec": {"template": TEMPLATE}}},
}
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no cluster of the machine be found."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "POD_NAME", "POD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def parent(tmp_path: Path) -> str:
    """Lend the file of a parent's pod."""
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump(POD))
    return str(file)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that succeeds and return what it printed."""
    code = cli.main(words)
    found = capsys.readouterr()
    assert (0, "") == (code, found.err)
    return found.out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command that fails and return code and error, which is one line."""
    code = cli.main(words)
    found = capsys.readouterr()
    assert found.err.startswith("flame-backend: ")
    assert 1 == found.err.count("\n")
    assert "" == found.out
    return code, found.err


# ------------------------------------------------------------------ help and codes


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_codes(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Each command's own help is enough to use it."""
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"flame-backend {command}" in text
    assert "examples:" in text
    assert "--json" in text
    for code in (0, 1, 2, 3, 4, 5, 130, 141):
        assert re.search(rf"^  {code} +\S", text, flags=re.MULTILINE)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, one line each."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^    {command} +\w", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "words", [[], ["unknown"], ["init"], ["render", "--inherit", "all"]]
)
def test_wrong_command_line_is_2(words: list[str]) -> None:
    """As argparse has it."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert 2 == ended.value.code


REFUSED: dict[str, tuple[list[str], str]] = {
    "no cluster": (["ps"], "kubeconfig"),
    "no such file": (["render", "--parent", "/nowhere"], "/nowhere"),
    "no pod": (["render", "--parent", "EMPTY"], "no pod in it"),
    "broken YAML": (["render", "--parent", "BROKEN"], "not YAML"),
    "manifest": (
        ["render", "--parent", "POD", "--manifest", "NAMED"],
        "manifest.metadata.name",
    ),
    "module": (["render", "--parent", "POD", "--manifest", "no_such:x"], "no_such"),
    "half a module": (
        ["render", "--parent", "POD", "--manifest", "json:"],
        "MODULE:NAME",
    ),
    "variable": (["render", "--parent", "POD", "--env", "A"], "NAME=VALUE or NAME-"),
    "reserved variable": (["render", "--parent", "POD", "--env", "POD_IP=1"], "POD_IP"),
    "resources": (["render", "--parent", "POD", "--resources", "2"], "--resources"),
    "container": (["render", "--parent", "POD", "--container", "x"], "only app"),
    "policy": (["init", "--service-account", "a", "--policy"], "--namespace"),
    "allow": (["init", "--service-account", "a", "--allow", "secret=b"], "--policy"),
    "allowed kind": (
        ["init", "--service-account", "a", "-n", "b", "--policy", "--allow", "x=y"],
        "secret, claim",
    ),
    "allowed name": (
        ["init", "--service-account", "a", "-n", "b", "--policy", "--allow", "secret"],
        "= in the middle",
    ),
    "egress": (["init", "--service-account", "a", "--lock-egress"], "--parent-label"),
    "function": (["run", "math:nothing"], "nothing"),
    "no function": (["run", "math:pi"], "no function"),
}


@pytest.mark.parametrize(("words", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_option_is_3_with_its_name(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    parent: str,
    words: list[str],
    text: str,
) -> None:
    """One line that names the option or field."""
    files = {
        "POD": Path(parent).read_text(),
        "EMPTY": yaml.safe_dump(SERVICE),
        "BROKEN": "a: [",
        "NAMED": "metadata: {name: mine}",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    words = [str(tmp_path / word) if word in files else word for word in words]
    code, error = refused(capsys, *words)
    assert 3 == code
    assert text in error


def test_unreachable_server_is_4(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the server's name in the line."""
    server = f"https://127.0.0.1:{free_port()}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    config["clusters"][0]["cluster"]["certificate-authority-data"] = _authority()
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    code, error = refused(capsys, "ps", "--kubeconfig", str(file))
    assert 4 == code
    assert server in error


def _authority() -> str:
    import base64

    import trustme

    return base64.b64encode(trustme.CA().cert_pem.bytes()).decode()


def test_closed_output_is_141_without_a_traceback() -> None:
    """`flame-backend init | head -1` ends quietly."""
    program = "import sys; from flame_backend.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "init", "--service-account", "a"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
        assert (141, b"") == (process.wait(), error)


# ------------------------------------------------------------------ render


def test_render_prints_the_pod_as_yaml(
    capsys: pytest.CaptureFixture[str], parent: str
) -> None:
    """With kind first, and what JSON says is the same."""
    text = printed(capsys, "render", "--parent", parent, "--pool", "thumbs")
    assert text.startswith("apiVersion: v1\nkind: Pod\nmetadata:\n  name: thumbs-")
    pod = yaml.safe_load(text)
    (container,) = pod["spec"]["containers"]
    assert ("flame-runner", "app:1", "web") == (
        container["name"],
        container["image"],
        pod["spec"]["serviceAccountName"],
    )
    found = json.loads(printed(capsys, "render", "--parent", parent, "--json"))
    assert pod.keys() == found.keys()
    assert pod["spec"].keys() == found["spec"].keys()


@pytest.mark.parametrize(
    ("document", "name"),
    [
        (POD, "web-1"),
        (DEPLOYMENT, "web"),
        (CRON, "nightly"),
        ({"kind": "List", "items": [SERVICE, DEPLOYMENT]}, "web"),
    ],
    ids=["Pod", "Deployment", "CronJob", "List"],
)
def test_render_finds_the_pod_in_a_workload(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    document: dict[str, Any],
    name: str,
) -> None:
    """From standard input, behind other documents."""
    text = f"{yaml.safe_dump(SERVICE)}---\n{yaml.safe_dump(document)}"
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    pod = yaml.safe_load(printed(capsys, "render", "--parent", "-"))
    assert name == pod["metadata"]["annotations"]["flame-backend/parent"]
    assert "nodeName" not in pod["spec"]


def test_render_takes_every_option_of_the_backend(
    capsys: pytest.CaptureFixture[str], parent: str, tmp_path: Path
) -> None:
    """Each shows in the pod."""
    change = tmp_path / "gpu.yaml"
    change.write_text("spec: {runtimeClassName: nvidia}")
    words = ["--manifest", str(change), "--env", "B=2", "--env", "A-", "--resources"]
    words += ["limits: {nvidia.com/gpu: 1}", "--service-account", "lesser"]
    words += ["--hardening", "restricted", "--no-owner-reference", "--python", "/p"]
    pod = yaml.safe_load(printed(capsys, "render", "--parent", parent, *words))
    spec, (container,) = pod["spec"], pod["spec"]["containers"]
    names = {entry["name"] for entry in container["env"]}
    assert ("nvidia", "lesser", True) == (
        spec["runtimeClassName"],
        spec["serviceAccountName"],
        spec["securityContext"]["runAsNonRoot"],
    )
    assert {"limits": {"nvidia.com/gpu": 1}} == container["resources"]
    assert ("/p", True, False) == (container["command"][0], "B" in names, "A" in names)
    assert "ownerReferences" not in pod["metadata"]


def test_render_takes_a_callback_of_a_module(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    parent: str,
    tmp_path: Path,
) -> None:
    """From the working folder, as `python -m` would find it."""
    source = (
        "def change(pod, app):\n    return {'spec': {'nodeSelector': {'a': 'b'}}}\n"
    )
    (tmp_path / "my_runners.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ("--manifest", "my_runners:change")
    pod = yaml.safe_load(printed(capsys, "render", "--parent", parent, *words))
    assert {"a": "b"} == pod["spec"]["nodeSelector"]


def test_explain_says_where_a_field_came_from(
    capsys: pytest.CaptureFixture[str], parent: str
) -> None:
    """As a table, and in JSON."""
    words = ("render", "--parent", parent, "--explain", "--env", "B=2")
    rows = [re.split(r"\s{2,}", line) for line in printed(capsys, *words).splitlines()]
    assert ["FROM", "FIELD", "VALUE"] == rows[0]
    container = "spec.containers[flame-runner]"
    for row in (
        ["inherited from app", f"{container}.image", "app:1"],
        ["option", f"{container}.env[B].value", "2"],
        ["flame-backend", "spec.restartPolicy", "Never"],
        ["left behind", "spec.nodeName", "-"],
    ):
        assert row in rows
    found = json.loads(printed(capsys, *words, "--json"))
    assert "option" == found["origins"][f"{container}.env[B].value"]
    assert ["spec.nodeName"] == found["left_behind"]
    assert "Pod" == found["pod"]["kind"]


# ------------------------------------------------------------------ run


def test_run_prints_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments are JSON where they can be, results too."""
    assert "5.0\n" == printed(capsys, "run", "math:hypot", "3", "4")
    assert "a-b\n" == printed(capsys, "run", "posixpath:basename", "x/a-b")
    assert "[\n  1\n]\n" == printed(capsys, "run", "builtins:list", "[1]", "--json")


def test_run_answers_no_when_the_function_raises(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the exception in the line, and exit code 1."""
    code, error = refused(capsys, "run", "math:sqrt", "--", "-1")
    assert 1 == code
    assert "math:sqrt raised ValueError" in error
    code, error = refused(capsys, "run", "time:sleep", "60", "--timeout", "0.2")
    assert 1 == code
    assert "timeout of 0.2 s" in error


# ------------------------------------------------------------------ ps and sweep

NOW = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


def runner_pod(phase: str = "Running", **changes: Any) -> dict[str, Any]:
    """Return a runner's pod as the API gives it."""
    metadata = {
        "name": "thumbs-1",
        "namespace": "shop",
        "uid": "u",
        "creationTimestamp": "2026-01-02T11:00:00Z",
        "labels": {"flame-backend/pool": "thumbs"},
        "ownerReferences": [{"kind": "Pod", "name": "web-1", "uid": "u-1"}],
    }
    metadata |= changes.pop("metadata", {})
    return {
        "metadata": metadata,
        "spec": {"nodeName": "node-1"},
        "status": {"phase": phase, **changes},
    }


def test_runner_is_described_by_what_its_pod_says() -> None:
    """Pool, phase, age, node, parent; the parent also without an owner reference."""
    found = described(runner_pod(), NOW)
    assert ("thumbs", "Running", 3600, "node-1", "web-1", "u-1", "") == found[3:]
    noted = {"flame-backend/parent": "web-2", "flame-backend/parent-uid": "u-2"}
    orphan = runner_pod(metadata={"ownerReferences": None, "annotations": noted})
    assert ("web-2", "u-2") == described(orphan, NOW)[7:9]
    leaving = {"deletionTimestamp": "2026-01-02T11:59:00Z"}
    assert "Terminating" == described(runner_pod(metadata=leaving), NOW).phase
    ended = described(runner_pod("Failed", metadata=leaving), NOW)
    assert "Failed" == ended.phase


def waiting(field: str, **state: Any) -> dict[str, Any]:
    """Return a status with one container's state."""
    return {field: [{"name": "c", "state": state}]}


CAUSES: dict[str, tuple[dict[str, Any], str]] = {
    "fine": (waiting("containerStatuses", running={}), ""),
    "evicted": ({"reason": "Evicted", "message": "low"}, "Evicted: low"),
    "unschedulable": (
        {
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            ]
        },
        "Unschedulable",
    ),
    "preempted": (
        {
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "DisruptionTarget", "status": "True", "reason": "Preemption"},
            ]
        },
        "Preemption",
    ),
    "pull": (
        waiting(
            "containerStatuses", waiting={"reason": "ErrImagePull", "message": "m"}
        ),
        "ErrImagePull: m",
    ),
    "init": (
        waiting("initContainerStatuses", terminated={"reason": "Error", "exitCode": 3}),
        "Error (exit code 3)",
    ),
    "done": (
        waiting("containerStatuses", terminated={"reason": "Completed", "exitCode": 0}),
        "",
    ),
    "memory": (
        waiting(
            "containerStatuses", terminated={"reason": "OOMKilled", "exitCode": 137}
        ),
        "OOMKilled (exit code 137)",
    ),
}


@pytest.mark.parametrize(("status", "expected"), CAUSES.values(), ids=CAUSES.keys())
def test_cause_is_in_the_clusters_words(status: dict[str, Any], expected: str) -> None:
    """What somebody would search for."""
    assert expected == cause_of(status)


@pytest.mark.parametrize(
    ("phase", "alive", "expected"),
    [
        ("Failed", set(), True),
        ("Succeeded", {"other"}, True),
        ("Failed", {"u-1"}, False),
        ("Running", set(), False),
        ("Pending", set(), False),
    ],
)
def test_only_ended_runners_of_dead_parents_are_left_over(
    phase: str, alive: set[str], expected: bool
) -> None:
    """A pod that runs ends by itself; a parent may still want an ended one."""
    assert expected == is_left_over(described(runner_pod(phase), NOW), alive)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (86400 * 3, "3d")],
)
def test_age_is_short(seconds: float, expected: str) -> None:
    """As kubectl writes it."""
    assert expected == output.age(seconds)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (None, False),
        ({}, False),
        ({"app": "web"}, True),
        ({"app": "web", "tier": "x"}, False),
        ({"app": "other"}, False),
    ],
)
def test_selector_takes_pods_with_all_its_labels(
    selector: dict[str, str] | None, expected: bool
) -> None:
    """A Service without a selector takes none."""
    assert expected == selects(selector, {"app": "web", "more": "x"})


# ------------------------------------------------------------------ output


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in a pipe, and not where NO_COLOR is set."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "ok" == output.coloured("ok", "green")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert "\x1b[32mok\x1b[0m" == output.coloured("ok", "green")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "ok" == output.coloured("ok", "green")


def test_remote_text_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Control characters of a pod's message are escaped, in cells and in errors."""
    output.table(("A",), [("x\x1b[2Jy\nz",)])
    output.fail("bad\x1b]0;title\x07")
    found = capsys.readouterr()
    assert "x\\x1b[2Jy z" in found.out
    assert "\x1b" not in found.out + found.err


# ------------------------------------------------------------------ deploy/


def documents(name: str) -> list[dict[str, Any]]:
    """Read one file of deploy/."""
    return list(yaml.safe_load_all((DEPLOY / name).read_text("utf-8")))


GENERATED = ("role", "serviceaccounts", "networkpolicies", "admissionpolicy")


def test_init_and_deploy_agree(capsys: pytest.CaptureFixture[str]) -> None:
    """The command in each file's head prints what stands in the files, and no more."""
    heads = {
        re.sub(
            r"\n#\s+",
            " ",
            re.search(
                r"# Made by: flame-backend ((?:.|\n#)*)",
                (DEPLOY / f"{name}.yaml").read_text("utf-8"),
            )[1],  # type: ignore[index]
        )
        for name in GENERATED
    }
    (command,) = heads
    made = list(yaml.safe_load_all(printed(capsys, *shlex.split(command))))
    held = [item for name in GENERATED for item in documents(f"{name}.yaml")]
    app = {"kind": "ServiceAccount", "apiVersion": "v1"}
    app["metadata"] = {"name": "words", "namespace": "words"}  # type: ignore[assignment]
    assert app in held
    held.remove(app)
    order = repr
    assert sorted(made, key=order) == sorted(held, key=order)


@pytest.mark.parametrize("file", sorted(p.name for p in DEPLOY.glob("*.yaml")))
def test_file_of_deploy_stays_in_its_namespace(file: str) -> None:
    """Every object says where it belongs; a comment says what it is for."""
    assert (DEPLOY / file).read_text("utf-8").startswith("# ")
    for item in documents(file):
        cluster_wide = item["kind"] == "Namespace" or item["kind"].startswith("Valid")
        assert cluster_wide or item["metadata"]["namespace"] == "words"


def test_no_secret_is_deployed() -> None:
    """Nor a right to read one."""
    for file in DEPLOY.glob("*.yaml"):
        for item in documents(file.name):
            assert item["kind"] != "Secret"
            for rule in item.get("rules") or ():
                assert not {"secrets", "*"} & {*rule["resources"], *rule["verbs"]}


def used_verbs() -> set[str]:
    """Return what the backend's code asks sessions for, as verbs of RBAC."""
    verbs = {
        "get": {"get"},
        "post": {"create"},
        "list": {"list"},
        "list_watch": {"list", "watch"},
        "watch": {"watch"},
        "delete": {"delete"},
        "logs": {"get pods/log"},
        "put": {"update"},
        "update": {"update"},
        "patch": {"patch"},
        "apply": {"patch"},
    }
    found: set[str] = set()
    for file in (ROOT / "flame_backend" / "backends" / "kubernetes").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=holder, attr=name)) if (
                    ast.unparse(holder).endswith("session")
                ):
                    found |= verbs.get(name, set())
    return found


def test_role_is_exactly_what_the_backend_uses() -> None:
    """No verb more on pods, and none that the code would miss."""
    granted = {*POD_VERBS, "get pods/log"}
    used = used_verbs()
    assert used <= granted
    assert set(POD_VERBS) <= used


def test_cluster_tests_run_with_the_shipped_role() -> None:
    """So that a right which is missing fails there."""
    assert manifests.RULES == [*RULES, *DIAGNOSIS_RULES]


def test_image_is_made_of_what_is_here() -> None:
    """Every source of the Dockerfile's COPY exists, and it runs as no root."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    for line in re.findall(r"^COPY (.*) \S+$", text, flags=re.MULTILINE):
        for source in line.split():
            assert (ROOT / source).exists(), source
    assert "\nUSER 1000\n" in text


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Lend the example app with local runners, and its address."""
    port = free_port()
    source = f"import app; app.main({port})"
    environment = os.environ | {"PYTHONPATH": f"{DEPLOY}:{ROOT}"}
    environment |= {"FLAME_BACKEND": "local"}
    with subprocess.Popen([sys.executable, "-c", source], env=environment) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"{url}/healthz") as answer:
                    assert 200 == answer.status
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield process, url
        process.kill()


def test_example_app_counts_on_a_runner_and_ends_on_sigterm(
    server: tuple[subprocess.Popen[bytes], str],
) -> None:
    """An answer, a refusal, and exit code 0."""
    process, url = server
    expected = Path(json.__file__).read_bytes().count(b"\n")
    with urllib.request.urlopen(f"{url}/lines?module=json") as answer:
        assert f"{expected}\n".encode() == answer.read()
    with pytest.raises(urllib.error.HTTPError) as refused_request:
        urllib.request.urlopen(f"{url}/lines?module=none")
    with refused_request.value as error:
        assert 400 == error.code
        assert b"no source" in error.read()
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(30)

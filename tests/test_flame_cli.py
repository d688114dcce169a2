"""flame-backend: what it prints, refuses and returns; and what deploy/ holds."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from flame_backend import Pool, cli
from flame_backend.backends.kubernetes.identity import identity_of
from flame_backend.cli import output
from flame_backend.cli.trial import Boot
from flame_backend.events import BootPhase, Event, GrowEnd, GrowStart
from tests.cluster.control_plane import free_port

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


def test_version_is_that_of_the_distribution(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Both commands come with one distribution, and say so alike."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert 0 == ended.value.code
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"flame-backend {project['version']}\n" == capsys.readouterr().out
    # And where the scripts are not on the path.
    for module in ("kubetls.cli", "flame_backend.cli"):
        command = [sys.executable, "-m", module, "--version"]
        assert f" {project['version']}\n".encode() in subprocess.check_output(command)


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


ALLOW = ["init", "--service-account", "a", "-n", "b", "--policy", "--allow"]
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
    "account elsewhere": (
        ["render", "--parent", "POD", "--runner-namespace", "away"],
        "service_account",
    ),
    "policy": (["init", "--service-account", "a", "--policy"], "--namespace"),
    "allow": (["init", "--service-account", "a", "--allow", "secret=b"], "--policy"),
    "allowed kind": (
        [*ALLOW, "x=y"],
        "secret, claim",
    ),
    "allowed name": (
        [*ALLOW, "secret"],
        "= in the middle",
    ),
    "allowed name with an end of line": (
        [*ALLOW, "claim=b\n"],
        "no name of an object",
    ),
    "allowed name beyond ASCII": (
        [*ALLOW, "claim=\xe9"],
        "no name of an object",
    ),
    "unset account": (["init", "--service-account", ""], "--service-account: ''"),
    "account that is none": (["init", "--service-account", "a b"], "'a b'"),
    "unset namespace": (["init", "--service-account", "a", "-n", ""], "--namespace"),
    "unset account of runners": (
        ["render", "--parent", "POD", "--service-account", ""],
        "service_account: a name",
    ),
    "name of a pool": (["render", "--parent", "POD", "--pool", "a b"], "--pool"),
    "metadata that are none": (["render", "--parent", "METADATA"], "METADATA.metadata"),
    "container without image": (
        ["render", "--parent", "IMAGELESS"],
        "IMAGELESS.spec.containers[0].image: must be text",
    ),
    "container that is none": (
        ["render", "--parent", "NULL"],
        "NULL.spec.containers[0]: must not be null",
    ),
    "list that is none": (["render", "--parent", "LIST"], "LIST: there is no pod"),
    "workload that is none": (["render", "--parent", "CRON"], "CRON: there is no pod"),
    "key that stands twice": (["render", "--parent", "TWICE"], "kind stands twice"),
    "date that is none": (
        ["render", "--parent", "POD", "--resources", "2026-13-01"],
        "--resources: not YAML",
    ),
    "egress": (["init", "--service-account", "a", "--lock-egress"], "--parent-label"),
    "function": (["run", "math:nothing"], "nothing"),
    "no function": (["run", "math:pi"], "no function"),
    "module that raises": (["run", "a_raising_module:f"], "ZeroDivisionError"),
    "module that exits": (["run", "an_exiting_module:f"], "SystemExit: bye"),
    "module that is no Python": (["run", "a_broken_module:f"], "SyntaxError"),
    "module that makes calls": (
        ["run", "a_calling_module:f"],
        'below `if __name__ == "__main__":`\n',
    ),
    "relative module": (["run", ".math:sqrt"], ".math:sqrt"),
    "manifest that raises": (
        ["render", "--parent", "POD", "--manifest", "a_raising_module:f"],
        "--manifest",
    ),
    "unset pool": (["ps", "--pool", ""], "--pool"),
    "another selector": (["sweep", "--pool", "a,!b"], "--pool"),
}


CALLING = """
import flame_backend as flame

def f(): ...

with flame.Pool("p", max=1, backend=flame.LocalBackend()) as pool:
    pool.call(f)
"""


@pytest.mark.parametrize(("words", "text"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_option_is_3_with_its_name(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
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
        "METADATA": "{kind: Pod, metadata: x, spec: {containers: [{name: a}]}}",
        "IMAGELESS": "{kind: Pod, spec: {containers: [{name: a}]}}",
        "NULL": "{kind: Pod, spec: {containers: [null]}}",
        "LIST": "{kind: List, items: [5, null]}",
        "CRON": "{kind: CronJob, spec: {jobTemplate: [1]}}",
        "TWICE": "kind: Pod\nkind: Pod",
        "a_raising_module.py": "1 / 0",
        "an_exiting_module.py": "raise SystemExit('bye')",
        "a_broken_module.py": "def f(:",
        "a_calling_module.py": CALLING,
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
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
    file = _kubeconfig(tmp_path, server)
    code, error = refused(capsys, "ps", "--kubeconfig", str(file))
    assert 4 == code
    assert server in error


def _kubeconfig(folder: Path, server: str) -> Path:
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    config["clusters"][0]["cluster"]["certificate-authority-data"] = _authority()
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


def _authority() -> str:
    import base64

    import trustme

    return base64.b64encode(trustme.CA().cert_pem.bytes()).decode()


def test_closed_output_is_141_without_a_traceback() -> None:
    """`flame-backend init | head -1` ends quietly."""
    command = program("init", "--service-account", "a")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
        assert (141, b"") == (process.wait(), error)


def program(*words: str) -> list[str]:
    """Return the command line of a process of its own."""
    return [sys.executable, "-c", PROGRAM, *words]


# A shell has its background processes ignore interrupts; a terminal's do not.
PROGRAM = """\
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from flame_backend.cli import main
sys.exit(main())
"""


def test_full_disk_is_3_without_a_traceback() -> None:
    """`flame-backend init > file` does not say that all is well."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            program("init", "--service-account", "a"),
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
            text=True,
        )
    assert 3 == done.returncode
    assert re.fullmatch(r"flame-backend: the answer .*No space left.*\n", done.stderr)


@pytest.mark.parametrize(
    ("closed", "words"),
    [(">&-", "flame-backend: standard output: is closed\n"), ("2>&-", "")],
)
def test_closed_stream_changes_no_code(closed: str, words: str) -> None:
    """Nor is there a traceback; the terminal may be gone, the exit code is read."""
    command = program("render", "--parent", "/nowhere")
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *command],
        capture_output=True,
        cwd=ROOT,
        text=True,
        check=False,
    )
    assert (3, words) == (done.returncode, done.stderr)


def test_letters_that_the_locale_lacks_are_escaped() -> None:
    """A name in an ASCII terminal is no reason for a traceback."""
    done = subprocess.run(
        program("run", "builtins:chr", "233"),
        capture_output=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (0, b"\\xe9\n", b"") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["run", "ps"])
def test_interrupt_is_130_without_a_traceback(tmp_path: Path, name: str) -> None:
    """Ctrl-C in the middle of a call, and of a request that nobody answers."""
    begun = tmp_path / "begun"
    (tmp_path / "slow_calls.py").write_text(SLOW)
    with ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = f"https://127.0.0.1:{silent.getsockname()[1]}"
        words = {
            "run": ["run", "slow_calls:wait", str(begun)],
            "ps": ["ps", "--kubeconfig", str(_kubeconfig(tmp_path, server))],
        }
        with subprocess.Popen(
            program(*words[name]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            # As a terminal has it: all processes of the command are interrupted.
            start_new_session=True,
        ) as process:
            if name == "ps":
                silent.settimeout(60)
                taken, _ = silent.accept()
                stack.enter_context(taken).recv(1)
            else:
                give_up = time.monotonic() + 60
                while not begun.exists() and time.monotonic() < give_up:
                    time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)
            assert (b"", b"") == process.communicate(timeout=60)
    assert 130 == process.returncode


SLOW = """\
import pathlib, time

def wait(name):
    pathlib.Path(name).touch()
    time.sleep(60)
"""


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


def test_rendered_pod_has_the_times_of_a_pool_with_default_options(
    capsys: pytest.CaptureFixture[str], parent: str
) -> None:
    """What sweeps and the kubelet go by: none of them is written a second time."""
    pod = json.loads(printed(capsys, "render", "--parent", parent, "--json"))
    spec = Pool("thumbs", max=1)._home.spec
    identity = identity_of(spec, "process", "runner")
    expected = (f"{identity.boot_timeout:g}", identity.grace)
    annotations = pod["metadata"]["annotations"]
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert expected == (annotations["flame-backend/boot-timeout"], grace)


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


def test_render_shows_runners_of_another_namespace(
    capsys: pytest.CaptureFixture[str], parent: str
) -> None:
    """They are there, and a Lease owns them; at home it is the app's pod."""
    words = ["render", "--parent", parent, "--service-account", "runner"]
    metadata = yaml.safe_load(
        printed(capsys, *words, "--runner-namespace", "shop-runners")
    )["metadata"]
    (owner,) = metadata["ownerReferences"]
    assert ("shop-runners", "Lease") == (metadata["namespace"], owner["kind"])
    metadata = yaml.safe_load(printed(capsys, *words, "--runner-namespace", "shop"))[
        "metadata"
    ]
    (owner,) = metadata["ownerReferences"]
    assert "Pod" == owner["kind"]


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


def test_json_is_json_whatever_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN is none, and is said as text."""
    text = printed(capsys, "run", "builtins:float", "nan", "--json")
    assert "nan" == json.loads(text, parse_constant=pytest.fail)
    output.as_json({(1, 2): 3})
    assert "{(1, 2): 3}" == json.loads(capsys.readouterr().out)


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
    code, error = refused(capsys, "run", "sys:exit", "3")
    assert (1, "flame-backend: builtins.SystemExit: 3\n") == (code, error)


# ------------------------------------------------------------------ output


class Terminal(io.StringIO):
    """Takes text as a terminal does."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


def test_progress_of_a_boot_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each phase with the cluster's words; answers and pipes have none of it."""
    facts: dict[str, Any] = {"pool": "doctor", "runner": "doctor-1"}
    words = "0/3 nodes\nare available"
    told: list[Event] = [
        GrowStart(**facts),
        BootPhase(**facts, phase="schedule", detail=words),
        GrowEnd(**facts, node="n", seconds=1.0, error=None),
        BootPhase(**facts, phase="pull", detail="of another boot"),
    ]
    terminal = Terminal()
    for boot in (Boot(), Boot()):
        for event in told:
            boot(event)
        assert ("", "") == capsys.readouterr()
        monkeypatch.setattr(sys, "stderr", terminal)
    assert "      doctor-1: schedule: 0/3 nodes are available\n" == terminal.getvalue()


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in a pipe, and not where NO_COLOR is set."""
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

"""What deploy/ holds: what init prints, what the code uses, an app that runs."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from flame_backend import cli
from flame_backend.backends.kubernetes.access import (
    DIAGNOSIS_RULES,
    LEASE_RULES,
    POD_VERBS,
    RULES,
    Access,
    access_objects,
)
from tests.cluster import manifests
from tests.cluster.control_plane import free_port

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
BACKEND = ROOT / "flame_backend" / "backends" / "kubernetes"


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
    assert 0 == cli.main(shlex.split(command))
    made = list(yaml.safe_load_all(capsys.readouterr().out))
    held = [item for name in GENERATED for item in documents(f"{name}.yaml")]
    app = {"kind": "ServiceAccount", "apiVersion": "v1"}
    app["metadata"] = {"name": "words", "namespace": "words"}  # type: ignore[assignment]
    assert app in held
    held.remove(app)
    order = repr
    assert sorted(made, key=order) == sorted(held, key=order)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_rights_of_a_second_app_replace_none_of_the_first(*, elsewhere: bool) -> None:
    """Applied to one namespace, what two accounts have in common is the same object."""
    full = Access(
        account="web",
        namespace="shop",
        runner_namespace="runners" if elsewhere else None,
        runner_account="runner",
        parent_labels={"app": "web"},
        port=7433,
        lock_egress=True,
        policy=True,
    )
    labels = {"app": "api"}
    others = [replace(full, account="api", parent_labels=labels, diagnosis=False)]
    if elsewhere:
        others.append(replace(full, namespace="office", port=7434))
    for other in others:
        first, second = (
            {
                (item["kind"], *sorted(item["metadata"].items())): item
                for item in access_objects(access)
            }
            for access in (full, other)
        )
        for key in first.keys() & second.keys():
            assert first[key] == second[key], key


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


def used_verbs(files: Iterable[Path]) -> set[str]:
    """Return what code asks sessions for, as verbs of RBAC."""
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
    for file in files:
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
    used = used_verbs(set(BACKEND.glob("*.py")) - {BACKEND / "lease.py"})
    assert used <= granted
    assert set(POD_VERBS) <= used
    # Of leases it needs what their module uses, and that looks at a pod at home.
    (rule,) = LEASE_RULES
    assert {*rule["verbs"], "get"} == used_verbs([BACKEND / "lease.py"])


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

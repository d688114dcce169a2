"""Runners of another version or time than their parent: the boot says what differs.

The runner's process is real, the API server is, and so is its admission.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import flame_backend as flame
from flame_backend.backends.kubernetes.admission import Admission
from tests.integration.stage import Play, Stage, staged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.control_plane import ControlPlane

pytestmark = pytest.mark.control_plane

OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"

PRELUDE = """
import json, os, sys
import flame_backend.runner.__main__ as runner
import flame_backend.runner.control as control
"""
OTHER_PACKAGE = PRELUDE + "control.VERSION = '0.2.0'\nsys.exit(runner.main())"
OTHER_PROTOCOL = PRELUDE + (
    "dumps = control.json.dumps\n"
    "class Later:\n"
    "    loads = control.json.loads\n"
    "    def dumps(facts):\n"
    "        later = {'v': 2, 'abilities': ['x']} if 'v' in facts else {}\n"
    "        return dumps(facts | later)\n"
    "control.json = Later\n"
    "sys.exit(runner.main())"
)
OTHER_VARIABLE = PRELUDE + (
    "facts = json.loads(os.environ['FLAME_PARENT']) | {'v': 2, 'more': 1}\n"
    "os.environ['FLAME_PARENT'] = json.dumps(facts)\n"
    "sys.exit(runner.main())"
)


@pytest.fixture
def stage(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    yield from staged(control_plane, tmp_path, monkeypatch)


def other_pythons() -> list[str]:
    """Return interpreters of other versions that are present, as commands."""
    versions = [f"3.{minor}" for minor in range(11, 16)]
    homes = Path(sys.base_prefix).parent
    names = [f"python{version}" for version in versions]
    names += [str(path) for path in sorted(homes.glob("3.1[1-5]*/bin/python"))]
    found = []
    for name in names:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        try:
            asked = subprocess.run(
                [name, "-c", code], capture_output=True, text=True, check=False
            )
        except OSError:
            continue
        if asked.returncode == 0 and asked.stdout.strip() in {*versions} - {OURS}:
            found.append(name)
    return found


def skew(stage: Stage, *command: str) -> flame.VersionSkew:
    """Boot a runner with a command; return what became of the call."""
    with Play(stage) as play:
        stage.agent(play.runner()["metadata"]["name"], command)
        # The next boot would meet it again: callers hear at once.
        error = play.call.exception(20)
        assert isinstance(error, flame.VersionSkew), error
        assert "connect" == error.phase
    assert [] == stage.runners()
    return error


def test_runner_with_another_python_is_named(stage: Stage) -> None:
    """A second interpreter of this machine is the runner's."""
    pythons = other_pythons()
    if not pythons:
        pytest.skip(f"no other Python than {OURS} is present")
    for python in pythons:
        error = skew(stage, python, "-P", "-m", "flame_backend.runner")
        assert "the runner is cpython-3." in error.reason
        assert f"this process is cpython-{OURS}; use the same image" in error.reason


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (OTHER_PACKAGE, "flame_backend 0.2.0, this process has flame_backend"),
        (OTHER_PROTOCOL, "the runner speaks version 2, this process speaks version 1"),
    ],
    ids=["package", "protocol"],
)
def test_runner_of_another_version_is_named(
    stage: Stage, program: str, words: str
) -> None:
    """After it has proved who it is, whatever else it says of itself."""
    assert words in skew(stage, sys.executable, "-P", "-c", program).reason


def test_runner_that_does_not_know_its_parents_variable_is_named(stage: Stage) -> None:
    """It exits with a code of its own, which the kubelet reports."""
    with Play(stage) as play:
        name = play.runner()["metadata"]["name"]
        agent = stage.agent(name, [sys.executable, "-P", "-c", OTHER_VARIABLE])
        code = agent.wait(20)
        stage.container(name, terminated={"exitCode": code, "reason": "Error"})
        error = play.call.exception(20)
    assert isinstance(error, flame.VersionSkew), error
    assert "VersionSkew: exit code 12" in error.reason


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_clocks_that_differ_are_named(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """The token is right in all but its times: refused, and the caller learns why."""
    defaults: Any = Admission.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "clock", lambda: time.time() + seconds)
    # Of which a busy machine needs some seconds until the runner has dialled.
    with Play(stage, boot_timeout=8) as play:
        stage.agent(play.runner()["metadata"]["name"])
        error = play.error()
    assert isinstance(error, flame.BootTimeout), error
    assert "compare the clocks of the nodes" in error.reason
    assert "the token was refused: " in error.reason

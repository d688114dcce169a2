"""The README's code is run as it stands there, on servers of the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kubetls
from flame_backend import cli
from tests.cluster.pki import Authority
from tests.servers import Server

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def block_with(text: str) -> str:
    """Return the one python block of the README that holds this text."""
    (block,) = [block for block in BLOCKS if text in block]
    return block


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_block_compiles(block: str) -> None:
    """Every python block of the README is valid Python."""
    compile(block, "README.md", "exec")


def test_session_block_fits_in_six_lines() -> None:
    """The first block is the session in six lines that the heading promises."""
    block = block_with("s.list(")
    assert 6 >= len([line for line in block.splitlines() if line.strip()])


def test_session_block_lists_pods(capsys: pytest.CaptureFixture[str]) -> None:
    """The session in six lines prints the server's version and each pod's name."""
    metadata = {"name": "web-1", "namespace": "default"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    block = block_with("s.list(").replace("session()", "session(config)")
    with kubetls.testing.server(objects=[pod]) as server:
        exec(block, {"config": server.config})
        version, name = capsys.readouterr().out.splitlines()
        assert server.config.origin in version
    assert "web-1" == name


def test_explanation_block_explains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes a server's own certificate and says why that does not fit."""
    pair = Authority().issue("api", names=("api.example",))
    block = block_with("explain_identity(")
    with Server(pair, tmp_path) as server:
        exec(block.replace('"10.96.0.1", 443', f'"{server.host}", {server.port}'), {})
    told = capsys.readouterr().out
    assert "IP 10.96.0.1" in told
    assert "api.example" in told


def test_command_of_the_readme_is_one() -> None:
    """The words behind flame-backend are what its command line takes."""
    lines = re.findall(r"^    .*(flame-backend [^|\n]*)", README, flags=re.MULTILINE)
    assert lines
    for line in lines:
        args = cli._parser().parse_args(line.split()[1:])
        assert callable(args.run)


def test_pool_block_counts_words(tmp_path: Path) -> None:
    """The pool in eight lines runs as a program and prints what it should."""
    block = block_with("flame.Pool(")
    assert 8 >= len([line for line in block.splitlines() if line.strip()])
    program = tmp_path / "words.py"
    program.write_text(block, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, program],
        cwd=ROOT,
        env=os.environ | {"FLAME_BACKEND": "local"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = [
        len((ROOT / name).read_text(encoding="utf-8").split())
        for name in ("README.md", "SECURITY.md")
    ]
    assert f"{expected}\n" == done.stdout, done.stderr

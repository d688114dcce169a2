"""The README's code is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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

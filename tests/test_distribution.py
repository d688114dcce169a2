"""What is handed out: a wheel of two packages, and sources without half the tests."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest

import kubetls
from flame_backend.version import VERSION

ROOT = Path(__file__).resolve().parent.parent


def test_sources_are_handed_out_without_half_of_the_tests() -> None:
    """By itself setuptools takes tests/test_*.py and leaves what they import."""
    lines = (ROOT / "MANIFEST.in").read_text("utf-8").splitlines()
    assert "prune tests" in lines
    for line in lines:
        if line.startswith("include "):
            assert all((ROOT / name).is_file() for name in line.split()[1:])


def test_extra_for_users_is_used() -> None:
    """What it installs is imported by one of the packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    sources = [
        path.read_text("utf-8")
        for package in ("kubetls", "flame_backend")
        for path in (ROOT / package).rglob("*.py")
    ]
    extras = project["optional-dependencies"]
    for extra in extras.keys() - {"test", "bench", "dev"}:
        for requirement in extras[extra]:
            module = requirement.partition(">")[0].replace("-", "_")
            assert any(f"from {module} import" in text for text in sources), extra


def test_everything_that_the_tests_install_has_a_version() -> None:
    """A release of somebody else's decides on no change of ours."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {same_name(line.partition("==")[0]) for line in lines if "==" in line}
    for requirement in (*project["dependencies"], *extras["test"], *extras["dev"]):
        assert same_name(requirement.partition(">")[0]) in pinned, requirement


def same_name(text: str) -> str:
    """Return a project's name as indexes compare it."""
    return text.strip().lower().replace("_", "-")


def test_both_packages_are_typed() -> None:
    """The marker is there, and is packaged."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    for name, files in project["tool"]["setuptools"]["package-data"].items():
        assert ["py.typed"] == files
        assert (ROOT / name / "py.typed").is_file()


@pytest.mark.parametrize(
    "name", ["kubetls.testing.server", "flame_backend.events.RunnerEnded"]
)
def test_public_module_is_there_with_its_package(name: str) -> None:
    """Whether or not something else has imported it before."""
    program = f"import {name.partition('.')[0]}; print({name}.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert f"{name.rpartition('.')[2]}\n" == done.stdout, done.stderr


def test_version_is_one() -> None:
    """Of the distribution and of both packages."""
    assert distribution("kubetls").version == kubetls.__version__ == VERSION

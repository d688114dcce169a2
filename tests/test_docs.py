"""The pages in docs/: their code compiles, their commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from flame_backend import cli
from tests.cluster.manifests import spread

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """Return the page's code of one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the lines that call flame-backend, without what they are piped into."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^    .*?(flame-backend [^|#\n]*)", text, flags=re.MULTILINE)
    return [line.strip() for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_and_yaml_of_a_page_are_valid(page: Path) -> None:
    """Every block."""
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


@pytest.mark.parametrize(
    "line", sorted({line for page in PAGES for line in commands(page)})
)
def test_command_of_a_page_is_one(line: str) -> None:
    """Its words are what the command line takes."""
    args = cli._parser().parse_args(line.split()[1:])
    assert callable(args.run)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_of_a_page_exist(page: Path) -> None:
    """Relative links, and paths of deploy/."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`(deploy/[^`]*)`", text):
        assert (ROOT / path).exists(), path


KIND = ROOT / "docs" / "kind.md"


def test_manifest_of_the_kind_page_is_the_tested_one() -> None:
    """What spreads the tests' runners over nodes is what users are told to write."""
    (block,) = blocks(KIND, "python")
    found: dict[str, object] = {}
    exec(block, found)
    assert spread() == found["manifest"]


def test_kind_page_names_what_there_is() -> None:
    """Manifests that are applied, the image they name, variables, the make target."""
    text = KIND.read_text(encoding="utf-8")
    for path in re.findall(r"-f (deploy/\S*)", text):
        assert (ROOT / path).exists(), path
    (image,) = set(re.findall(r"registry\.example/\S+", text))
    deployment = (ROOT / "deploy" / "deployment.yaml").read_text(encoding="utf-8")
    assert f"image: {image}\n" in deployment
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "tests/cluster").glob("*.py")
    )
    for variable in re.findall(r"`(KUBETLS_\w+)`", text):
        assert f'"{variable}"' in sources, variable
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\S+)", text, flags=re.MULTILINE):
        assert f"\n{target}: " in makefile

"""The pages in docs/: their code compiles, their commands and files exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

import flame_backend as flame
from flame_backend import cli
from flame_backend.backends.kubernetes import causes, waiting
from flame_backend.backends.kubernetes.access import DIAGNOSIS_RULES, RULES
from flame_backend.backends.kubernetes.keys import DISCOVERY_PATH, JWKS_PATH
from flame_backend.runner import __main__ as runner_main
from flame_backend.runner import agent
from tests.cluster.manifests import spread

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("create", "schedule", "pull", "init", "start", "connect", "import")
PAGES = sorted((ROOT / "docs").glob("*.md"))
# The front doors too, and the reasons.
TEXTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the page's code of one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the lines that call flame-backend, without what they are piped into."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(
        r"^    (?:.*[ |])?(flame-backend [^|#\n]*)", text, flags=re.MULTILINE
    )
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


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_and_files_of_a_page_exist(page: Path) -> None:
    """Relative links, and paths of this repository."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    # deploy/web is a Deployment, too, where it stands in a command.
    found = re.findall(r"`(deploy/[^`]*)`", text)
    found += re.findall(r"\b(?:docs|examples|benchmarks|tests)/[\w./-]*\w", text)
    for path in found:
        assert (ROOT / path).exists(), path


def names_in(module: str) -> set[str]:
    """Return the names of the tests in a module, wherever below tests/ it stands."""
    (path,) = (ROOT / "tests").rglob(f"{module}.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_each_test_that_a_page_names_exists(page: Path) -> None:
    """Written as module::test; a renamed test does not leave its claim behind."""
    text = page.read_text(encoding="utf-8")
    for module, name in re.findall(r"(test_\w+)(?:\.py)?::(\w+)", text):
        assert name in names_in(module), f"{module}::{name}"


def test_every_threat_has_a_row_and_a_proof() -> None:
    """Sixty of them, each once; what has no test says so."""
    text = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(r"\| \d", line)
    ]
    assert list(range(1, 61)) == sorted(int(number) for number, *_ in found)
    for number, _, _, proof in found:
        assert "::" in proof or proof.startswith("no test"), number


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


OPERATIONS = ROOT / "docs" / "operations.md"


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading of the operators' page."""
    text = OPERATIONS.read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    lines = [line for line in text.partition("\n## ")[0].split("\n") if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(source: str, call: str, argument: str | int) -> set[str]:
    """Return the texts that calls of something are given as an argument."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != call:
            continue
        if isinstance(argument, int):
            given = node.args[argument : argument + 1]
        else:
            given = [word.value for word in node.keywords if word.arg == argument]
        # Of a condition, its two outcomes and not what it compares.
        outcomes = [
            part
            for value in given
            for part in (
                (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
            )
        ]
        found |= {
            part.value
            for part in outcomes
            if isinstance(part, ast.Constant) and isinstance(part.value, str)
        }
    return found


def test_operators_page_has_every_cause_and_no_other() -> None:
    """Of boots and of losses, as the code can name them."""
    sources = [
        path.read_text(encoding="utf-8")
        for path in (ROOT / "flame_backend").rglob("*.py")
    ]
    wanted = {name for text in sources for name in named(text, "Cause", "name")}
    wanted |= {name for text in sources for name in named(text, "RunnerLost", 1)}
    wanted |= {causes.UNREACHABLE}
    wanted |= {name for name, *_ in causes._OWN_CODES.values()}
    wanted |= {name for _, name, _ in causes._REFUSALS}
    wanted |= {*causes._POD_REASONS.values(), *causes._DISRUPTIONS.values()}
    wanted |= {*waiting._TOLD_BY_EVENTS.values(), *waiting._NEVER_PULLED}
    found = {
        name.strip()
        for heading in ("Why a boot failed", "Why a runner was lost")
        for cells in rows(heading)
        for name in cells[0].split(",")
    }
    assert found == wanted


def test_operators_page_has_every_logger_and_no_other() -> None:
    """Whoever sets levels or routes by name finds all of them."""
    wanted = {
        re.sub(r"\{.*\}", "NAME", name)
        for package in ("kubetls", "flame_backend")
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(
            r'getLogger\(f?"([^"]*)"\)', path.read_text(encoding="utf-8")
        )
    }
    cells = [cells[0] for cells in rows("What to look at")]
    assert wanted == {name for cell in cells for name in re.findall("`(.*?)`", cell)}


def test_operators_page_has_the_rights_of_a_parent() -> None:
    """As init prints them, and the paths of the keys, which no Role can give."""
    rights = " ".join(cells[1] for cells in rows("What to allow"))
    for rule in (*RULES, *DIAGNOSIS_RULES):
        for word in (*rule["verbs"], *rule["resources"]):
            assert re.search(rf"\b{word}\b", rights), word
    assert DISCOVERY_PATH in rights
    assert JWKS_PATH in rights


def test_operators_page_names_real_phases_and_errors() -> None:
    """Each error of a boot is a class of ours."""
    for _, phase, text, _ in rows("Why a boot failed"):
        assert phase in PHASES
        names = re.findall(r"`(\w+)`", text)
        assert names
        for name in names:
            assert issubclass(getattr(flame, name), flame.BootError)


def test_operators_page_has_the_exit_codes() -> None:
    """Of the runner's first process."""
    found = {int(code) for code, _ in rows("Exit codes of a runner")}
    codes = {
        value
        for module in (agent, runner_main)
        for name, value in vars(module).items()
        if name.startswith("EXIT_")
    }
    assert found == codes

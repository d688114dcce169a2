"""The house's layers, read from the syntax tree of every module.

errors -> values -> rules -> edges -> faces -> door: imports point left, or sideways
without a cycle (a folder's own __init__ holds a docstring and does not count). The
first three layers see no clock, file, socket, thread, randomness or log. A new module
gets its layer in the table below, or the test fails.
"""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import kubetls

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kubetls", "flame_backend")

LAYERS = ("errors", "values", "rules", "edges", "faces", "door")
PURE = {"errors", "values", "rules"}

TABLE = {
    "kubetls": "door",
    "kubetls.errors": "errors",
    "kubetls.cli": "door",
    "kubetls.cli.__main__": "door",
    "kubetls.cli.checks": "faces",
    # Says which version it is.
    "kubetls.cli.command": "door",
    "kubetls.cli.doctor": "faces",
    "kubetls.cli.explain": "faces",
    "kubetls.cli.facts": "values",
    "kubetls.cli.named": "values",
    "kubetls.cli.page": "values",
    "kubetls.cli.remedies": "rules",
    "kubetls.cli.whoami": "faces",
    "kubetls.client.decoding": "values",
    "kubetls.client.discovery": "edges",
    "kubetls.client.exchange": "edges",
    "kubetls.client.limits": "values",
    "kubetls.client.shapes": "values",
    "kubetls.client.lines": "edges",
    "kubetls.client.list_watch": "edges",
    "kubetls.client.listing": "edges",
    "kubetls.client.logs": "edges",
    "kubetls.client.outgoing": "values",
    "kubetls.client.paths": "values",
    "kubetls.client.reading": "edges",
    "kubetls.client.response": "edges",
    "kubetls.client.retry": "rules",
    "kubetls.client.session": "faces",
    "kubetls.client.status": "rules",
    "kubetls.client.stream": "edges",
    "kubetls.client.updating": "edges",
    "kubetls.client.verbs": "edges",
    "kubetls.client.waiting": "edges",
    "kubetls.client.watch": "edges",
    "kubetls.credentials.anchors": "values",
    "kubetls.credentials.choose": "edges",
    "kubetls.credentials.client_certificate": "values",
    "kubetls.credentials.config": "values",
    "kubetls.credentials.document": "values",
    "kubetls.credentials.endpoint": "values",
    "kubetls.credentials.exec_entry": "values",
    "kubetls.credentials.exec_plugin": "edges",
    "kubetls.credentials.files": "edges",
    "kubetls.credentials.hidden": "values",
    "kubetls.credentials.incluster": "edges",
    "kubetls.credentials.keeper": "edges",
    "kubetls.credentials.kubeconfig": "edges",
    "kubetls.credentials.kubeconfig_files": "edges",
    "kubetls.credentials.kubeconfig_source": "edges",
    "kubetls.credentials.pem": "values",
    "kubetls.credentials.program": "edges",
    "kubetls.credentials.token": "values",
    "kubetls.credentials.volume": "edges",
    "kubetls.identity.explain": "rules",
    "kubetls.identity.names": "values",
    "kubetls.identity.san": "values",
    "kubetls.identity.verify": "rules",
    "kubetls.testing": "door",
    "kubetls.testing.authority": "values",
    "kubetls.testing.credentials": "edges",
    "kubetls.testing.faults": "edges",
    "kubetls.testing.handler": "edges",
    "kubetls.testing.listener": "edges",
    "kubetls.testing.resources": "values",
    "kubetls.testing.selecting": "values",
    "kubetls.testing.server": "faces",
    "kubetls.testing.store": "values",
    "kubetls.transport.client_key": "edges",
    "kubetls.transport.connection": "edges",
    "kubetls.transport.context": "edges",
    "kubetls.transport.pool": "edges",
    "kubetls.transport.probe": "edges",
    "kubetls.transport.sockets": "edges",
    "flame_backend": "door",
    "flame_backend.errors": "errors",
    "flame_backend.events": "values",
    "flame_backend.backoff": "values",
    "flame_backend.backends.agent_process": "edges",
    "flame_backend.backends.base": "values",
    "flame_backend.backends.control_link": "edges",
    "flame_backend.backends.greetings": "edges",
    "flame_backend.backends.hub": "edges",
    "flame_backend.backends.kubernetes.access": "rules",
    "flame_backend.backends.inline": "edges",
    "flame_backend.backends.kubernetes.admission": "edges",
    "flame_backend.backends.kubernetes.backend": "edges",
    "flame_backend.backends.kubernetes.books": "rules",
    "flame_backend.backends.kubernetes.causes": "rules",
    "flame_backend.backends.kubernetes.hardening": "rules",
    "flame_backend.backends.kubernetes.image_name": "values",
    "flame_backend.backends.kubernetes.injected": "values",
    "flame_backend.backends.kubernetes.disposal": "edges",
    "flame_backend.backends.kubernetes.inquest": "edges",
    "flame_backend.backends.kubernetes.keys": "edges",
    "flame_backend.backends.kubernetes.identity": "rules",
    "flame_backend.backends.kubernetes.lease": "edges",
    "flame_backend.backends.kubernetes.leftovers": "rules",
    "flame_backend.backends.kubernetes.lifecycle": "edges",
    "flame_backend.backends.kubernetes.listener": "edges",
    "flame_backend.backends.kubernetes.manifest": "rules",
    "flame_backend.backends.kubernetes.merging": "values",
    "flame_backend.backends.kubernetes.mounts": "values",
    "flame_backend.backends.kubernetes.monitor": "edges",
    "flame_backend.backends.kubernetes.own_pod": "edges",
    "flame_backend.backends.kubernetes.pace": "rules",
    "flame_backend.backends.kubernetes.peers": "edges",
    "flame_backend.backends.kubernetes.pin": "edges",
    "flame_backend.backends.kubernetes.pod_template": "values",
    "flame_backend.backends.kubernetes.policy": "rules",
    "flame_backend.backends.kubernetes.provenance": "rules",
    "flame_backend.backends.kubernetes.refusals": "rules",
    "flame_backend.backends.kubernetes.pods": "edges",
    "flame_backend.backends.kubernetes.seen_pod": "values",
    "flame_backend.backends.kubernetes.shapes": "values",
    "flame_backend.backends.kubernetes.shared": "edges",
    "flame_backend.backends.kubernetes.tokens": "rules",
    "flame_backend.backends.kubernetes.waiting": "rules",
    "flame_backend.backends.kubernetes.workers": "edges",
    "flame_backend.backends.kubernetes.yaml_text": "values",
    "flame_backend.backends.local": "edges",
    "flame_backend.backends.loop": "edges",
    "flame_backend.backends.output": "edges",
    "flame_backend.backends.spawn": "edges",
    "flame_backend.backends.tickets": "edges",
    "flame_backend.backends.welcome": "edges",
    "flame_backend.cli": "faces",
    "flame_backend.cli.__main__": "faces",
    "flame_backend.cli.calls": "faces",
    "flame_backend.cli.check": "values",
    "flame_backend.cli.cluster": "faces",
    "flame_backend.cli.doctor": "faces",
    "flame_backend.cli.listing": "faces",
    "flame_backend.cli.output": "faces",
    "flame_backend.cli.render": "faces",
    "flame_backend.cli.runners": "faces",
    "flame_backend.cli.setup": "faces",
    "flame_backend.cli.trial": "faces",
    "flame_backend.metrics": "faces",
    "flame_backend.pool.announcer": "edges",
    "flame_backend.pool.breaker": "rules",
    "flame_backend.pool.calls": "faces",
    "flame_backend.pool.commands": "values",
    "flame_backend.pool.crew": "edges",
    "flame_backend.pool.engine": "faces",
    "flame_backend.pool.exchange": "edges",
    "flame_backend.pool.executor": "faces",
    "flame_backend.pool.forms": "faces",
    "flame_backend.pool.growing": "rules",
    "flame_backend.pool.initializing": "values",
    "flame_backend.pool.keeper": "edges",
    "flame_backend.pool.leases": "faces",
    "flame_backend.pool.ledger": "faces",
    "flame_backend.pool.machine": "rules",
    "flame_backend.pool.mapping": "faces",
    # Chooses the backend, so it knows them all.
    "flame_backend.pool.options": "faces",
    "flame_backend.pool.placement": "faces",
    "flame_backend.pool.placing": "faces",
    "flame_backend.pool.reports": "faces",
    "flame_backend.pool.retrying": "values",
    "flame_backend.pool.roster": "rules",
    "flame_backend.pool.shrinking": "rules",
    "flame_backend.pool.status": "faces",
    "flame_backend.pool.waiting": "rules",
    "flame_backend.runner.__main__": "faces",
    "flame_backend.runner.agent": "edges",
    "flame_backend.runner.children": "edges",
    "flame_backend.runner.chunks": "values",
    "flame_backend.runner.control": "edges",
    "flame_backend.runner.dial": "edges",
    "flame_backend.runner.family": "edges",
    "flame_backend.runner.fresh": "edges",
    "flame_backend.runner.loading": "edges",
    "flame_backend.runner.memory": "edges",
    "flame_backend.runner.output": "edges",
    "flame_backend.runner.parent": "edges",
    "flame_backend.runner.placed": "edges",
    "flame_backend.runner.processes": "edges",
    "flame_backend.runner.progress": "edges",
    "flame_backend.runner.pump": "edges",
    "flame_backend.runner.renewal": "edges",
    "flame_backend.runner.restart": "edges",
    "flame_backend.runner.slot": "edges",
    "flame_backend.runner.stamps": "edges",
    "flame_backend.runner.zygote": "edges",
    "flame_backend.version": "values",
    "flame_backend.wire.bucket": "values",
    "flame_backend.wire.complaints": "rules",
    "flame_backend.wire.decoding": "edges",
    "flame_backend.wire.exceptions": "edges",
    "flame_backend.wire.frames": "values",
    # Builds Paths and arrays.
    "flame_backend.wire.functions": "edges",
    "flame_backend.wire.hashing": "rules",
    "flame_backend.wire.link": "edges",
    "flame_backend.wire.lookout": "edges",
    "flame_backend.wire.main_script": "edges",
    "flame_backend.wire.rebuilding": "edges",
    "flame_backend.wire.stack": "edges",
    "flame_backend.wire.small": "values",
    "flame_backend.wire.tags": "values",
    "flame_backend.wire.text": "values",
    "flame_backend.wire.values": "edges",
}

BANNED = {
    *("socket", "ssl", "os", "time", "threading", "random", "pathlib", "logging"),
    *("pickle", "subprocess", "multiprocessing", "asyncio", "select", "selectors"),
    *("signal", "tempfile", "shutil", "secrets", "urllib3", "cloudpickle"),
}


class Import(NamedTuple):
    """One imported module, and whether it is imported when the program runs."""

    module: str
    name: str | None
    runs: bool


def imports(source: str, module: str) -> Iterator[Import]:
    """Yield every import of a source text, wherever it stands in it."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        runs = id(node) not in typing_only
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, runs)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, *filter(None, [node.module])])
            for alias in node.names:
                yield Import(base, alias.name, runs)


def sources() -> dict[str, str]:
    """Return the text of every module of both packages but folders' docstrings."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            text = file.read_text(encoding="utf-8")
            if parts[-1] == "__init__":
                parts = parts[:-1]
                if len(parts) > 1 and len(ast.parse(text).body) <= 1:
                    continue
            found[".".join(parts)] = text
    return found


SOURCES = sources()


def ours(found: Import) -> str | None:
    """Return the module of ours that an import reaches, None for foreign ones."""
    if found.name is not None and f"{found.module}.{found.name}" in SOURCES:
        return f"{found.module}.{found.name}"
    return found.module if found.module in SOURCES else None


@functools.cache
def graph(*, runs: bool) -> dict[str, set[str]]:
    """Return which module imports which: when running, or for type checking as well."""
    return {
        module: {
            to
            for found in imports(text, module)
            if (found.runs or not runs) and (to := ours(found)) not in {None, module}
        }
        for module, text in SOURCES.items()
    }


def test_every_module_has_a_layer() -> None:
    """The table names each module there is, and none that is gone."""
    assert sorted(TABLE) == sorted(SOURCES)


@pytest.mark.parametrize("module", sorted(TABLE.keys() & SOURCES))
def test_imports_point_left(module: str) -> None:
    """No module imports one of a later layer; a contract may name a later type."""
    own = LAYERS.index(TABLE[module])
    package = module.split(".", maxsplit=1)[0]
    later = {
        to
        for to in graph(runs=True)[module]
        if to.split(".")[0] == package and own < LAYERS.index(TABLE.get(to, LAYERS[0]))
    }
    assert set() == later


def test_imports_have_no_cycle() -> None:
    """Sideways is fine, round in a circle is not, not even for type checking."""
    order = list(graphlib.TopologicalSorter(graph(runs=False)).static_order())
    assert sorted(SOURCES) == sorted(order)


@pytest.mark.parametrize(
    "module",
    [name for name, layer in TABLE.items() if layer in PURE and name in SOURCES],
)
def test_pure_layers_reach_no_world(module: str) -> None:
    """Time, randomness, files, sockets and logs arrive as arguments."""
    reached = {
        found.module.split(".")[0]
        for found in imports(SOURCES[module], module)
        if found.runs
    }
    assert set() == reached & BANNED


def test_kubetls_never_imports_flame_backend() -> None:
    """The toolkit does not know who uses it."""
    users = {
        module
        for module, text in SOURCES.items()
        if module.split(".")[0] == "kubetls"
        and any(f.module.startswith("flame_backend") for f in imports(text, module))
    }
    assert set() == users


def names_of_kubetls(source: str, module: str) -> Iterator[str]:
    """Yield what a source uses of kubetls: names, or the path of a private module."""
    for found in imports(source, module):
        if found.module == "kubetls" and found.name is not None:
            yield found.name
        elif found.module.startswith("kubetls."):
            yield found.module
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="kubetls"), attr=name):
                yield name


@pytest.mark.parametrize(
    "module", [name for name in SOURCES if name.split(".")[0] == "flame_backend"]
)
def test_flame_backend_uses_the_public_door(module: str) -> None:
    """It gets by with what any user of kubetls has."""
    used = set(names_of_kubetls(SOURCES[module], module))
    assert set() == used - set(kubetls.__all__)


def importers(name: str) -> set[str]:
    """Return the modules that import a foreign module, when running."""
    return {
        module
        for module, text in SOURCES.items()
        if any(f.module.split(".")[0] == name and f.runs for f in imports(text, module))
    }


MAKE_PICKLES = {"flame_backend.wire.functions", "flame_backend.wire.main_script"}
READS_PICKLES = "flame_backend.wire.functions"


@pytest.mark.parametrize("name", ["pickle", "cloudpickle", "marshal", "shelve", "dill"])
def test_only_functions_are_pickled(name: str) -> None:
    """Two modules know pickles; everything else is data."""
    assert importers(name) <= MAKE_PICKLES


def test_codec_of_functions_is_where_it_should_be() -> None:
    """The rule above does not pass because nothing was found."""
    assert importers("pickle") == MAKE_PICKLES
    assert importers("cloudpickle") == MAKE_PICKLES - {READS_PICKLES}


@pytest.mark.parametrize("module", sorted(MAKE_PICKLES))
def test_one_module_reads_pickles(module: str) -> None:
    """What loads a pickle stands in one place."""
    readers = {"Unpickler", "load", "loads"}
    assert bool(readers & words(SOURCES[module])) == (module == READS_PICKLES)


def words(source: str) -> set[str]:
    """Return every identifier of a source, as name, attribute, import or keyword."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Name(id=word)
                | ast.Attribute(attr=word)
                | ast.keyword(arg=str(word))
            ):
                found.add(word)
            case ast.alias(name=word, asname=other):
                found |= {word, other or word}
            case ast.Constant(value=str(word)):
                found.add(word)
    return found


UNVERIFIED = [
    "CERT_NONE",
    "CERT_OPTIONAL",
    "_create_unverified_context",
    "_create_stdlib_context",
    "disable_warnings",
]


@pytest.mark.parametrize("word", UNVERIFIED)
def test_no_handshake_goes_unverified(word: str) -> None:
    """CERT_NONE and its kin stand in the probe alone, which sends nothing."""
    texts = dict(SOURCES)
    for file in (ROOT / "examples").rglob("*.py"):
        texts[str(file.relative_to(ROOT))] = file.read_text(encoding="utf-8")
    users = {module for module, text in texts.items() if word in words(text)}
    expected = {"kubetls.transport.probe"} if word == "CERT_NONE" else set()
    assert expected == users


@pytest.mark.parametrize(
    ("expected", "source"),
    [
        (("os", None, True), "import os"),
        (("os.path", None, True), "def f():\n    import os.path as p"),
        (("os", "path", True), "try:\n    from os import path\nfinally:\n    pass"),
        (("os", None, False), "if TYPE_CHECKING:\n    import os"),
        (("os", None, False), "if typing.TYPE_CHECKING:\n    if 1:\n        import os"),
        (("os", None, True), "if TYPE_CHECKING:\n    pass\nelse:\n    import os"),
        (("a.b", "d", True), "from . import d"),
        (("a.b.d", "e", True), "from .d import e"),
        (("a", "e", True), "from .. import e"),
    ],
)
def test_reader_of_imports_sees_them_all(
    expected: tuple[str, str | None, bool], source: str
) -> None:
    """Nested, relative and typing-only imports are told apart."""
    assert [Import(*expected)] == list(imports(source, "a.b.c"))


@pytest.mark.parametrize(
    ("expected", "source"),
    [
        ({"session"}, "from kubetls import session"),
        ({"session", "_private"}, "import kubetls\nkubetls.session(kubetls._private)"),
        ({"kubetls.client.session"}, "from kubetls.client.session import Session"),
        ({"kubetls.errors"}, "import kubetls.errors"),
        ({"client"}, "import kubetls\nkubetls.client.session"),
    ],
)
def test_reader_of_the_door_sees_private_names(expected: set[str], source: str) -> None:
    """Private modules, private names and attributes are all seen."""
    assert expected == set(names_of_kubetls(source, "flame_backend.x"))


@pytest.mark.parametrize(
    "source",
    [
        "ssl.CERT_NONE",
        "from ssl import CERT_NONE as c",
        "getattr(ssl, 'CERT_NONE')",
        "f(CERT_NONE=1)",
    ],
)
def test_reader_of_words_sees_every_spelling(source: str) -> None:
    """Attribute, import, string and keyword."""
    assert "CERT_NONE" in words(source)

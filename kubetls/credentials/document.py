"""A kubeconfig's YAML as a tree of entries that know their place. Pure.

Only what kubeconfigs are made of: mappings, lists, text, true and false. Numbers and
dates stay text, as for kubectl (a context may be named 2024-01-01); `as_json` makes
numbers of them where a plugin is to have them. Custom tags and
repeated keys are refused: the first build objects, the second mean different things to
different readers. Aliases expand within a budget, and merge keys (`<<`) merge.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from kubetls.credentials.hidden import HiddenBytes, leaves_no_frame
from kubetls.errors import KubeconfigError
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    import yaml

DOCUMENT_BYTES: Final = 1024 * 1024
"""A kubeconfig of hundreds of clusters stays far below."""

NODE_COUNT: Final = 200_000
"""Values in a document, aliases expanded; hundreds of clusters have ten thousand."""

_TAG: Final = "tag:yaml.org,2002:"
_SCALARS: Final = frozenset(
    _TAG + kind
    for kind in ("str", "bool", "null", "int", "float", "timestamp", "value", "merge")
)
# YAML 1.2: yes and on are words. A flag written so is refused as no flag.
_TRUE: Final = ("true", "True", "TRUE")
_FALSE: Final = ("false", "False", "FALSE")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\Z")
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,17}\Z")


class _Plain(str):
    """Text that stood there as a number, without quotes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One mapping of a kubeconfig, read field by field, with its place for errors.

    A value that is refused may be a secret in the wrong place: no method holds one
    when it raises.

    Attributes:
        values: Its fields; never shown, they may be secret.
        file: The kubeconfig it stands in.
        path: Where in it, "" for the whole document.
    """

    values: dict[str, Any] = field(repr=False)
    file: str
    path: str = ""

    def place(self, name: str) -> str:
        """Return file and path of a field, for errors."""
        path = f"{self.path}.{name}" if self.path else name
        return f"{self.file}: {path}"

    def text(self, name: str) -> str | None:
        """Return a text field; None when absent or empty."""
        found = self.values.get(name)
        if found is None or found == "":
            return None
        if isinstance(found, str):
            return found
        del found
        raise KubeconfigError(self.place(name), "must be text")

    def hidden(self, name: str) -> HiddenBytes | None:
        """Return a text field that may be secret; None when absent or empty."""
        text = self.text(name)
        # A lone surrogate stays illegal instead of becoming a question mark.
        return (
            None if text is None else HiddenBytes(text.encode(errors="surrogatepass"))
        )

    def flag(self, name: str) -> bool:
        """Return a true or false field; False when absent."""
        found = self.values.get(name)
        if found is None or isinstance(found, bool):
            return bool(found)
        del found
        raise KubeconfigError(self.place(name), "must be true or false")

    def has(self, name: str) -> bool:
        """Tell whether a field is there and not empty, whatever its type."""
        return self.values.get(name) not in (None, "", False, {}, [])

    def body(self, name: str, path: str) -> Entry:
        """Return the mapping in a field; absent is empty, as for kubectl."""
        found = self.values.get(name)
        if found is None or isinstance(found, dict):
            return Entry(found or {}, self.file, path)
        del found
        raise KubeconfigError(self.place(name), "must be a mapping")

    def listed(self, listing: str) -> dict[str, Entry]:
        """Return the entries of a list by their names.

        Raises:
            KubeconfigError: The list or an entry has another shape, or a name comes
                twice (kubectl refuses that as well).
        """
        found = self.values.get(listing) or []
        if not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
            del found
            raise KubeconfigError(self.place(listing), "must be a list of mappings")
        items = [
            Entry(item, self.file, f"{listing}[{number}]")
            for number, item in enumerate(found)
        ]
        del found
        entries: dict[str, Entry] = {}
        for item in items:
            name = item.text("name") or ""
            if name in entries:
                reason = f"the name {escaped(name)!r} stands there twice"
                raise KubeconfigError(self.place(listing), reason)
            entries[name] = item
        return entries


@leaves_no_frame
def parse_document(content: HiddenBytes, file: str) -> Entry:
    """Read one kubeconfig.

    Raises:
        KubeconfigError: Not YAML, or not of the shape of a kubeconfig.

    Untrusted input:
        At most `DOCUMENT_BYTES`, and `NODE_COUNT` values once aliases are expanded.
    """
    if len(content) > DOCUMENT_BYTES:
        raise KubeconfigError(file, f"larger than {DOCUMENT_BYTES} bytes")
    document = Entry(_parsed(content, file), file)
    for name, expected in (("apiVersion", "v1"), ("kind", "Config")):
        if document.text(name) not in {None, expected}:
            raise KubeconfigError(document.place(name), f"must be {expected}")
    return document


def is_blank(content: HiddenBytes) -> bool:
    """Tell whether a file holds nothing but comments and white space."""
    lines = (line.strip() for line in content.content.splitlines())
    return all(not line or line == b"---" or line.startswith(b"#") for line in lines)


def _parsed(content: HiddenBytes, file: str) -> dict[str, Any]:
    import yaml

    try:
        # Nodes, not objects: constructors of the library never run.
        node = yaml.SafeLoader(content.content).get_single_node()
        values = None if node is None else _plain(node, file, "", itertools.count())
    except KubeconfigError:
        raise
    except RecursionError:
        raise KubeconfigError(file, "nested too deeply") from None
    # Besides its own errors the library lets those of int() and chr() through.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise KubeconfigError(file, f"not one YAML document{where}") from None
    if not isinstance(values, dict):
        raise KubeconfigError(file, "holds no mapping, so it is no kubeconfig")
    return values


def _plain(node: yaml.Node, file: str, path: str, seen: Iterator[int]) -> Any:
    """Return what a node stands for; `seen` counts, or aliases expand for ever."""
    import yaml

    if next(seen) >= NODE_COUNT:
        raise KubeconfigError(file, f"more than {NODE_COUNT} values, aliases expanded")
    if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
        return _scalar(node)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return [
            _plain(item, file, f"{path}[{number}]", seen)
            for number, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        return _mapping(node, file, path, seen)
    reason = f"the tag {escaped(node.tag)} has no place in a kubeconfig"
    raise KubeconfigError(f"{file}: {path}", reason)


def _mapping(
    node: yaml.MappingNode, file: str, path: str, seen: Iterator[int]
) -> dict[str, Any]:
    import yaml

    values: dict[str, Any] = {}
    merged: dict[str, Any] | None = None
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise KubeconfigError(f"{file}: {path}", "a key must be text")
        key = key_node.value
        place = f"{path}.{escaped(key)}" if path else escaped(key)
        merges = key_node.tag == f"{_TAG}merge"
        if key in values or (merges and merged is not None):
            raise KubeconfigError(f"{file}: {place}", "stands there twice")
        value = _plain(value_node, file, place, seen)
        if merges:
            merged = _merged(value, f"{file}: {place}")
        else:
            values[key] = value
    return {**(merged or {}), **values}


@leaves_no_frame
def _merged(value: Any, place: str) -> dict[str, Any]:
    """Return what a merge key brings; of several mappings the first has precedence.

    Passed over, as unknown fields are, it would take a token or a stricter setting
    away in silence.
    """
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, dict) for part in parts):
        raise KubeconfigError(place, "merges mappings only")
    found: dict[str, Any] = {}
    for part in reversed(parts):
        found.update(part)
    return found


def _scalar(node: yaml.ScalarNode) -> str | bool | None:
    text: str = node.value
    if node.tag == f"{_TAG}null":
        return None
    if node.tag == f"{_TAG}bool" and text in _TRUE + _FALSE:
        return text in _TRUE
    if node.tag in {f"{_TAG}int", f"{_TAG}float"}:
        return _Plain(text)
    return text


def as_json(value: Any) -> Any:
    """Return a value of a document as JSON has it: plain numbers are numbers."""
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_json(inner) for inner in value]
    if isinstance(value, _Plain):
        if _INTEGER.match(value):
            return int(value)
        return float(value) if _DECIMAL.match(value) else str(value)
    return value

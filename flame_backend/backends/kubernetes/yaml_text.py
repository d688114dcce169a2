"""YAML as people write it: parsed strictly, into what JSON can say. Pure.

What PyYAML lets pass would be a wish that nobody hears of: of a key that stands twice
it keeps the last. The API server refuses that, but sees only what we post.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flame_backend.backends.kubernetes.merging import plain
from flame_backend.errors import ManifestError

if TYPE_CHECKING:
    import yaml

_MERGE: Final = "tag:yaml.org,2002:merge"


def parsed(text: str, where: str) -> list[Any]:
    """Parse YAML documents into what JSON can say.

    Args:
        text: Any number of documents.
        where: What is parsed, for errors.

    Raises:
        ManifestError: It is no YAML, has a key twice, or says what JSON cannot.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            _refuse_twice(node, where)
            return node

    try:
        found = list(yaml.load_all(text, Strict))
    except ManifestError:
        raise
    except Exception as error:
        # PyYAML lets through what Python says to `!!int x`, a 13th month, 5000 lists.
        words = " ".join(str(error).split())
        raise ManifestError(where, f"not YAML: {words}") from error
    return [plain(document, where) for document in found]


def _refuse_twice(node: yaml.MappingNode, where: str) -> None:
    keys = [key for key, _ in node.value if key.tag != _MERGE]
    seen: set[tuple[str, str]] = set()
    for key in keys:
        # A key that is no scalar is refused by the loader itself.
        name = (key.tag, str(key.value))
        if name in seen:
            place = f"line {key.start_mark.line + 1}"
            raise ManifestError(where, f"the key {key.value} stands twice ({place})")
        seen.add(name)

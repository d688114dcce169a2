"""From the API server's JSON to objects: plain dicts, or a type of the caller's.

One decoder does both, in C, bytes to objects in one pass: a list of pods costs about
what its bytes cost. What does not decode is an error, never an empty list.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    TypeVar,
    get_type_hints,
    is_typeddict,
)

import msgspec

from kubetls.errors import ConfigError
from kubetls.identity.names import escaped

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_WANTED: Final = ("name", "namespace", "uid", "resourceVersion")


class NotDecoded(ValueError):
    """Bytes are no JSON, or not what was asked for; the text says where."""


class _ListMetadata(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion", default="")
    continue_token: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct, Generic[T]):
    # Without a default: what has no items is no list. Some servers send null.
    items: list[T] | None
    kind: str = ""
    api_version: str = msgspec.field(name="apiVersion", default="")
    metadata: _ListMetadata = msgspec.field(default_factory=_ListMetadata)


class _RawEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list.

    Attributes:
        items: The objects.
        resource_version: Version of the whole list.
        continue_token: Asks for the next page; "" on the last one.
    """

    items: list[T]
    resource_version: str
    continue_token: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """One line of a watch.

    Attributes:
        type: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR, as sent.
        object: A dict for BOOKMARK and ERROR, else what the decoder makes.
        resource_version: Of the object, "" when it has none.
    """

    type: str
    object: Any
    resource_version: str


class Decoding(Generic[T]):
    """How the objects of one collection are decoded and told apart.

    Args:
        kind: A msgspec.Struct type for one item whose `metadata` is a Struct with
            name, namespace, uid and resourceVersion (by their names in JSON), or a
            TypedDict with the same in it, which leaves out of a dict what it does
            not name; None for plain dicts.

    Raises:
        ConfigError: The type lacks one of these.
    """

    def __init__(self, kind: type[T] | None) -> None:
        self._plain = kind is None
        item: Any = dict[str, Any] if kind is None else kind
        get = _field_of_dict if kind is None else _fields_of(kind)
        self._name, self._namespace, self.uid, self.version = map(get, _WANTED)
        self._pages = msgspec.json.Decoder(_Page[item])
        self._items = msgspec.json.Decoder(item)

    def key(self, item: T) -> tuple[str, str]:
        """Return namespace ("" for cluster-scoped objects) and name."""
        return self._namespace(item), self._name(item)

    def page(self, body: bytes) -> Page[T]:
        """Decode a list.

        Raises:
            NotDecoded: It is none.
        """
        parsed: _Page[T] = _decoded(self._pages.decode, body)
        if parsed.kind == "Status":
            msg = "a Status"
            raise NotDecoded(msg)
        items = parsed.items or []
        if self._plain:
            # Lists leave these out of their items.
            kind = parsed.kind.removesuffix("List")
            for item in items:
                item.setdefault("apiVersion", parsed.api_version)  # type: ignore[attr-defined]
                item.setdefault("kind", kind)  # type: ignore[attr-defined]
        metadata = parsed.metadata
        return Page(items, metadata.resource_version, metadata.continue_token)

    def event(self, line: bytes) -> Parsed:
        """Decode a line of a watch.

        Raises:
            NotDecoded: It is no event.
        """
        raw: _RawEvent = _decoded(_EVENTS.decode, line)
        if raw.type in _OURS:
            found: dict[str, Any] = _decoded(_DICTS.decode, raw.object)
            return Parsed(raw.type, found, _field_of_dict("resourceVersion")(found))
        item = _decoded(self._items.decode, raw.object)
        return Parsed(raw.type, item, self.version(item))


_EVENTS: Final = msgspec.json.Decoder(_RawEvent)
_VALUES: Final = msgspec.json.Decoder(Any)
_DICTS: Final = msgspec.json.Decoder(dict[str, Any])
_OURS: Final = frozenset({"BOOKMARK", "ERROR"})


def value_of(body: bytes) -> Any:
    """Decode JSON of any shape.

    Raises:
        NotDecoded: It is none; the text shows nothing of it.
    """
    return _decoded(_VALUES.decode, body)


def _decoded(decode: Callable[[Any], Any], body: bytes | msgspec.Raw) -> Any:
    try:
        return decode(body)
    except RecursionError:
        raise NotDecoded("nested too deeply") from None
    except UnicodeDecodeError:
        raise NotDecoded("not UTF-8") from None
    except ValueError as error:
        raise NotDecoded(escaped(str(error), 200)) from None


def _field_of_dict(name: str) -> Callable[[Any], str]:
    def get(item: dict[str, Any]) -> str:
        metadata = item.get("metadata")
        return str(metadata.get(name) or "") if isinstance(metadata, dict) else ""

    return get


def _fields_of(kind: type[Any]) -> Callable[[str], Callable[[Any], str]]:
    if is_typeddict(kind):
        metadata = get_type_hints(kind).get("metadata")
        named = get_type_hints(metadata) if is_typeddict(metadata) else {}
        for name in _WANTED:
            if name not in named:
                reason = f"{kind.__name__}.metadata must be a TypedDict with {name!r}"
                raise ConfigError("decoder", reason)
        return _field_of_dict
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        raise ConfigError(
            "decoder", "must be a msgspec.Struct or TypedDict for one item"
        )
    attribute, metadata = _attribute(kind, "metadata")
    if not (isinstance(metadata, type) and issubclass(metadata, msgspec.Struct)):
        raise ConfigError("decoder", f"{kind.__name__}.metadata must be a Struct")

    def get(name: str) -> Callable[[Any], str]:
        path = f"{attribute}.{_attribute(metadata, name)[0]}"
        found = operator.attrgetter(path)
        return lambda item: found(item) or ""

    return get


def _attribute(kind: type[msgspec.Struct], name: str) -> tuple[str, Any]:
    for field in msgspec.structs.fields(kind):
        if field.encode_name == name:
            return field.name, field.type
    raise ConfigError("decoder", f"{kind.__name__} has no field {name!r}")

"""Laws of the credential grammars: valid parses, one illegal change is refused.

Every parser is total: arbitrary text or bytes give a value or the documented error.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kubetls.credentials.anchors import parse_anchors
from kubetls.credentials.client_certificate import parse_client_certificate
from kubetls.credentials.document import parse_document
from kubetls.credentials.endpoint import (
    HOST_VARIABLE,
    PORT_VARIABLES,
    endpoint_from_environment,
    endpoint_from_url,
)
from kubetls.credentials.hidden import HiddenBytes
from kubetls.credentials.kubeconfig import config_from_files
from kubetls.credentials.pem import pem_blocks, pem_text
from kubetls.credentials.token import (
    BoundToken,
    parse_mounted_token,
    parse_opaque_token,
)
from kubetls.credentials.volume import read_volume
from kubetls.errors import (
    ConfigError,
    CredentialError,
    CredentialMalformed,
    KubeconfigError,
)
from tests.credential_files import CA_PEM, OTHER_CA_PEM, document, publish

if TYPE_CHECKING:
    from collections.abc import Callable

LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABEL, min_size=1, max_size=5).map(".".join)
IPV4 = st.ip_addresses(v=4).filter(lambda a: not (a.is_unspecified or a.is_multicast))
IPV6 = st.ip_addresses(v=6).filter(
    lambda a: not (a.is_unspecified or a.is_multicast or a.ipv4_mapped)
)
PORTS = st.integers(1, 65535)
SEGMENT = st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True)
JWTS = st.tuples(SEGMENT, SEGMENT, SEGMENT).map(".".join)
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)

# What no host, port or URL may have in it, at whatever place it stands.
NOISE = [
    "\x00",
    "\n",
    "\r",
    "\t",
    " ",
    "%",
    "_",
    "*",
    "\u00e9",
    "\u0661",
    "[",
    "@",
    "\\",
]


def inserted(text: str, place: int, piece: str) -> str:
    """Return the text with a piece at a place, counted around its length."""
    at = place % (len(text) + 1)
    return text[:at] + piece + text[at:]


@settings(max_examples=80, deadline=None)
@given(host=NAMES | IPV4.map(str) | IPV6.map(str), port=PORTS)
def test_valid_host_and_port_parse(host: str, port: int) -> None:
    """Names, IPv4 and bare IPv6 parse; the URL brackets IPv6 and nothing else."""
    environ = {HOST_VARIABLE: host, PORT_VARIABLES[0]: str(port)}
    endpoint = endpoint_from_environment(environ)
    assert port == endpoint.port
    shown = f"[{host}]" if ":" in host else host
    assert f"https://{shown}:{port}" == endpoint.url


@settings(max_examples=120, deadline=None)
@given(
    host=NAMES | IPV4.map(str) | IPV6.map(str),
    place=st.integers(0),
    noise=st.sampled_from([*NOISE, "..", "/", "?", "#", "]", "://"]),
)
def test_one_illegal_piece_refuses_the_host(host: str, place: int, noise: str) -> None:
    """One illegal piece anywhere is ConfigError naming the variable."""
    environ = {HOST_VARIABLE: inserted(host, place, noise), PORT_VARIABLES[1]: "443"}
    with pytest.raises(ConfigError) as caught:
        endpoint_from_environment(environ)
    assert HOST_VARIABLE == caught.value.source


@settings(max_examples=60, deadline=None)
@given(
    port=PORTS,
    place=st.integers(0),
    noise=st.sampled_from([*NOISE, "-", "+", ".", "e"]),
)
def test_one_illegal_piece_refuses_the_port(port: int, place: int, noise: str) -> None:
    """One character that is no ASCII digit is ConfigError naming the variable."""
    text = inserted(str(port), place, noise)
    with pytest.raises(ConfigError) as caught:
        endpoint_from_environment({HOST_VARIABLE: "10.0.0.1", PORT_VARIABLES[1]: text})
    assert PORT_VARIABLES[1] == caught.value.source


@settings(max_examples=60, deadline=None)
@given(
    special=st.one_of(
        st.ip_addresses(network="224.0.0.0/4"),
        st.ip_addresses(network="ff00::/8"),
        st.ip_addresses(network="::ffff:0:0/96"),
        st.sampled_from([ipaddress.ip_address(0), ipaddress.IPv6Address(0)]),
    )
)
def test_special_addresses_are_no_server(special: object) -> None:
    """Multicast, unspecified and IPv4-mapped addresses are refused in a pod."""
    with pytest.raises(ConfigError):
        endpoint_from_environment(
            {HOST_VARIABLE: str(special), PORT_VARIABLES[1]: "443"}
        )


@settings(max_examples=80, deadline=None)
@given(
    host=NAMES | IPV4.map(str) | IPV6.map(lambda a: f"[{a}]"),
    port=st.none() | PORTS,
    prefix=st.lists(LABEL, max_size=3).map(
        lambda parts: "".join(f"/{p}" for p in parts)
    ),
    place=st.integers(0),
    noise=st.sampled_from([*NOISE, "?", "#", "//", "/../", "/./", "::"]),
)
def test_server_url_parses_whole_or_not_at_all(
    host: str, port: int | None, prefix: str, place: int, noise: str
) -> None:
    """A valid URL keeps its parts; one illegal piece behind the scheme refuses it."""
    rest = host + ("" if port is None else f":{port}") + prefix
    endpoint = endpoint_from_url(f"https://{rest}", "server")
    assert f"https://{host}:{port or 443}{prefix}" == endpoint.url
    # In a path "_", "*" and "@" are legal, and so is a trailing slash.
    legal = {"_", "*", "@", "::", "//"} if prefix else {"//"}
    if noise not in legal:
        with pytest.raises(KubeconfigError):
            endpoint_from_url(f"https://{inserted(rest, place, noise)}", "server")


@settings(max_examples=80, deadline=None)
@given(token=JWTS, newline=st.booleans())
def test_valid_token_parses(token: str, newline: bool) -> None:
    """Three segments, with or without one final newline, are the token."""
    content = token.encode() + b"\n" * newline
    assert token == parse_mounted_token(content, "token").reveal()


@settings(max_examples=120, deadline=None)
@given(
    token=JWTS,
    place=st.integers(0),
    noise=st.sampled_from(
        [b"\x00", b" ", b"\r", b"\t", b"=", b"+", b"/", b".", b"\x7f", b"\xff", b"\n\n"]
    ),
)
def test_one_illegal_octet_refuses_the_token(
    token: str, place: int, noise: bytes
) -> None:
    """One octet outside of the grammar is CredentialMalformed."""
    at = place % (len(token) + 1)
    content = token[:at].encode() + noise + token[at:].encode()
    with pytest.raises(CredentialMalformed):
        parse_mounted_token(content, "token")


@settings(max_examples=60, deadline=None)
@given(text=VISIBLE, around=st.text(" \t\r\n"), place=st.integers(0), noise=st.binary())
def test_opaque_token_is_what_is_visible(
    text: str, around: str, place: int, noise: bytes
) -> None:
    """Blanks around it are dropped; an inner blank, control or high octet refuses."""
    content = (around + text + around).encode()
    assert text == parse_opaque_token(content, "token").reveal()
    if len(text) > 1 and noise and not noise.decode("latin-1").isascii():
        at = 1 + place % (len(text) - 1)
        broken = text[:at].encode() + noise + text[at:].encode()
        with pytest.raises(CredentialMalformed):
            parse_opaque_token(broken, "token")


@settings(max_examples=120, deadline=None)
@given(
    payload=st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["exp", "kubernetes.io", "warnafter", "x"]), inner
            )
        ),
    ).map(lambda value: yaml.safe_dump(value).encode()),
    text=st.text(),
)
def test_any_payload_makes_a_token(payload: bytes, text: str) -> None:
    """Times are a number or None, whatever the payload is."""
    for token in (
        BoundToken(f"x.{base64.urlsafe_b64encode(payload).decode()}.y"),
        BoundToken(f"x.{text}.y"),
        BoundToken(text),
    ):
        assert isinstance(token.expires_at, float | None)
        assert isinstance(token.warn_after, float | None)


def total(parse: Callable[[], object], *errors: type[Exception]) -> None:
    """Call; only the documented errors may come out."""
    with contextlib.suppress(*errors):
        parse()


PEM_PIECES = st.lists(
    st.sampled_from(
        [
            CA_PEM,
            OTHER_CA_PEM,
            b"-----BEGIN CERTIFICATE-----\n",
            b"AAAA\n",
            b"# x\n",
            b"-----END CERTIFICATE-----\n",
            b"-----",
            b"\n",
            b"\r",
            b"\xff",
            b"=\n",
        ]
    ),
    max_size=6,
).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(content=st.binary() | PEM_PIECES | st.text().map(str.encode))
def test_parsers_of_bytes_are_total(content: bytes) -> None:
    """Tokens, bundles, client certificates: a value or CredentialError."""
    hidden = HiddenBytes(content)
    total(lambda: parse_mounted_token(content, "x"), CredentialError)
    total(lambda: parse_opaque_token(content, "x"), CredentialError)
    for authorities_only in (True, False):
        total(
            lambda only=authorities_only: parse_anchors(  # type: ignore[misc]
                content, "x", authorities_only=only
            ),
            CredentialError,
        )
    total(lambda: parse_client_certificate(hidden, "x", hidden, "y"), CredentialError)
    total(lambda: parse_document(hidden, "x"), KubeconfigError)


@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text("https:/[]@?#.0123456789ab%-"))
def test_parsers_of_text_are_total(text: str) -> None:
    """Environment and URL: an endpoint or ConfigError."""
    environ = {HOST_VARIABLE: text, PORT_VARIABLES[0]: text}
    total(lambda: endpoint_from_environment(environ), ConfigError)
    environ[HOST_VARIABLE] = "10.0.0.1"
    total(lambda: endpoint_from_environment(environ), ConfigError)
    for url in (text, f"https://{text}", f"https://h/{text}", f"https://h:{text}"):
        total(lambda url=url: endpoint_from_url(url, "x"), KubeconfigError)  # type: ignore[misc]


@settings(max_examples=60, deadline=None)
@given(
    contents=st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=4),
    comment=st.text().filter(lambda text: not text.strip().startswith("-----")),
)
def test_blocks_survive_the_round_trip(contents: list[bytes], comment: str) -> None:
    """What is written as PEM is read back, comments around it or not."""
    noise = "# " + " ".join(comment.split()) + "\n"
    text = noise + noise.join(pem_text("CERTIFICATE", content) for content in contents)
    blocks = pem_blocks(text.encode(errors="replace"), "x")
    assert contents == [block.decoded("x") for block in blocks]


@settings(max_examples=100, deadline=None)
@given(place=st.integers(0), octet=st.integers(0, 255))
def test_changed_octet_never_gives_another_bundle_in_silence(
    place: int, octet: int
) -> None:
    """One octet changed: the same anchors, other anchors that load, or our error."""
    at = place % len(CA_PEM)
    changed = CA_PEM[:at] + bytes([octet]) + CA_PEM[at + 1 :]
    with contextlib.suppress(CredentialError):
        anchors = parse_anchors(changed, "x")
        assert 1 == len(anchors.certificates)
        assert len(parse_anchors(CA_PEM, "x").certificates[0]) == len(
            anchors.certificates[0]
        )


JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = {
    "cluster": [
        "server",
        "certificate-authority",
        "certificate-authority-data",
        "insecure-skip-tls-verify",
        "tls-server-name",
        "proxy-url",
    ],
    "user": [
        "token",
        "tokenFile",
        "client-certificate",
        "client-key-data",
        "exec",
        "username",
        "auth-provider",
        "as",
    ],
    "context": ["cluster", "user", "namespace"],
}
CHANGES = st.one_of(
    *(
        st.tuples(st.just(part), st.dictionaries(st.sampled_from(fields), JUNK))
        for part, fields in FIELDS.items()
    ),
    st.tuples(
        st.sampled_from(["clusters", "users", "contexts", "current-context", "kind"]),
        JUNK,
    ),
)


@settings(max_examples=150, deadline=None)
@given(change=CHANGES)
def test_kubeconfig_with_any_field_is_total(change: tuple[str, Any]) -> None:
    """Whatever stands in a known field: a config or our error, never another one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config"
        file.write_text(yaml.safe_dump(document(**dict([change]))), encoding="utf-8")
        total(lambda: config_from_files([str(file)]), ConfigError, CredentialError)


class Kubelet(RuleBasedStateMachine):
    """A volume that is rotated, damaged and repaired."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.volume = Path(self.folder.name)
        self.number = 0
        self.published: set[tuple[bytes, bytes]] = set()
        self.rotate()

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule()
    def rotate(self) -> None:
        """Publish the next generation."""
        self.number += 1
        name = str(self.number).encode()
        token = b"a.b." + name
        self.current = publish(
            self.volume, str(self.number), token=token, namespace=name
        )
        self.published.add((token, name))

    @rule(name=st.sampled_from(["token", "ca.crt", "namespace"]))
    def delete(self, name: str) -> None:
        """Take a file away."""
        (self.current / name).unlink(missing_ok=True)

    @rule(name=st.sampled_from(["token", "ca.crt", "namespace"]))
    def relink(self, name: str) -> None:
        """Put a link in the place of a file."""
        (self.current / name).unlink(missing_ok=True)
        (self.current / name).symlink_to("/etc/hostname")

    @rule()
    def go_back(self) -> None:
        """Point `..data` at the first generation again."""
        link = self.volume / "..data_tmp"
        link.symlink_to("..1")
        link.replace(self.volume / "..data")
        self.current = self.volume / "..1"

    @rule()
    def unlink(self) -> None:
        """Take `..data` away: what is left is links that lead nowhere."""
        (self.volume / "..data").unlink(missing_ok=True)

    @invariant()
    def reading_is_one_generation_or_an_error(self) -> None:
        """Token and namespace, when both are there, were published together."""
        try:
            content = read_volume(str(self.volume))
        except CredentialError:
            return
        if content.token is not None and content.namespace is not None:
            pair = (content.token.content, content.namespace.content)
            assert pair in self.published


TestKubelet = Kubelet.TestCase
TestKubelet.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)

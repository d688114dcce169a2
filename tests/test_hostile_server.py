"""A server that is not the one we mean receives no application byte, in any way.

Real handshakes on loopback. The server counts what it gets after the handshake; the
session, a borrowed context in http.client and one in asyncio are all tried.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import pickle
import select
import socket
import ssl
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import pytest
import urllib3

import kubetls
from kubetls.credentials.anchors import TrustAnchors, parse_anchors
from kubetls.credentials.config import Config, Generation
from kubetls.credentials.endpoint import Endpoint
from kubetls.credentials.token import parse_mounted_token
from kubetls.identity.names import reference_identifier
from kubetls.transport.connection import Guard, VerifiedConnection, VerifiedPeer
from kubetls.transport.context import LockedContext, locked_context
from kubetls.transport.pool import GuardedPool
from kubetls.transport.sockets import VerifiedSocket
from tests.cluster.pki import Authority, Pair
from tests.servers import Server, response

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKEN = "aGVhZGVy.c2VjcmV0LXBheWxvYWQ.c2lnbmF0dXJl"
AUTHORITY = Authority()
STRANGER = Authority()
STRANGER_PEM = STRANGER.certificate.decode()

GOOD = AUTHORITY.issue("api", addresses=("127.0.0.1",), names=("api.example",))


class Source:
    """A fixed generation of credentials."""

    def __init__(self, authority: Authority) -> None:
        anchors = parse_anchors(authority.certificate, "ca.crt")
        token = parse_mounted_token(TOKEN.encode(), "token")
        self.generation = Generation(anchors, token)

    def read(self, *, fresh: bool = False) -> Generation:
        return self.generation


def config_for(server: Server, reference: str | None = None) -> Config:
    name = reference_identifier(reference) if reference else None
    address = reference_identifier(server.host)
    endpoint = Endpoint(address, server.port, name)
    return Config(endpoint, Source(AUTHORITY), "default", "test")


def open_session(server: Server, reference: str | None = None) -> kubetls.Session:
    return kubetls.session(
        config_for(server, reference),
        retries=kubetls.Retries(attempts=0),
        timeout=kubetls.Timeout(connect=5, read=5),
    )


def context_for(reference: str = "127.0.0.1") -> LockedContext:
    anchors = parse_anchors(AUTHORITY.certificate, "ca.crt")
    return locked_context(anchors, reference_identifier(reference))


REFUSED: list[tuple[str, Pair, str | None, type[Exception]]] = [
    (
        "wrong address",
        AUTHORITY.issue("api", addresses=("127.0.0.2", "::1")),
        None,
        kubetls.IdentityMismatch,
    ),
    (
        "address as a name only",
        AUTHORITY.issue("api", names=("127.0.0.1",)),
        None,
        kubetls.IdentityMismatch,
    ),
    (
        "wrong name",
        AUTHORITY.issue("api", names=("other.example",)),
        "api.example",
        kubetls.IdentityMismatch,
    ),
    (
        "wildcard over two labels",
        AUTHORITY.issue("api", names=("*.b.example",)),
        "x.y.b.example",
        kubetls.IdentityMismatch,
    ),
    (
        "common name only",
        AUTHORITY.issue("api.example"),
        "api.example",
        kubetls.IdentityMismatch,
    ),
    (
        "no SAN at all",
        AUTHORITY.issue("127.0.0.1"),
        None,
        kubetls.IdentityMismatch,
    ),
    (
        "another CA",
        STRANGER.issue("api", addresses=("127.0.0.1",)),
        None,
        kubetls.ChainRefused,
    ),
    (
        "expired",
        AUTHORITY.issue("api", addresses=("127.0.0.1",), days=-1),
        None,
        kubetls.ChainRefused,
    ),
    (
        "a client's certificate",
        AUTHORITY.issue("api", addresses=("127.0.0.1",), server=False),
        None,
        kubetls.ChainRefused,
    ),
]
CASES = pytest.mark.parametrize(
    ("pair", "reference", "error"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)


def test_good_server_gets_the_request_and_the_token(tmp_path: Path) -> None:
    """The control: the same set-up with the right certificate works."""
    with Server(GOOD, tmp_path) as server, open_session(server) as session:
        assert "v0.0.0" == session.get("/version")["gitVersion"]
        assert f"Authorization: Bearer {TOKEN}".encode() in server.received
        assert [None] == server.names


def test_name_is_indicated_and_an_address_is_not(tmp_path: Path) -> None:
    """Server name indication carries names only; the check is the same."""
    with (
        Server(GOOD, tmp_path) as server,
        open_session(server, "api.example") as session,
    ):
        session.get("/version")
        assert ["api.example"] == server.names


@CASES
def test_refused_server_gets_no_byte_from_a_session(
    tmp_path: Path, pair: Pair, reference: str | None, error: type[Exception]
) -> None:
    """The typed error comes, and nothing else has left."""
    with Server(pair, tmp_path) as server, open_session(server, reference) as session:
        with pytest.raises(error):
            session.post("/api/v1/pods", {"secret": "body"})
        assert b"" == server.received


@CASES
def test_refused_server_gets_no_byte_through_http_client(
    tmp_path: Path, pair: Pair, reference: str | None, error: type[Exception]
) -> None:
    """A borrowed context protects the standard library's client too."""
    del error
    context = context_for(reference or "127.0.0.1")
    name = reference or "127.0.0.1"

    def talk(server: Server) -> None:
        address = (server.host, server.port)
        with socket.create_connection(address, 5) as raw:
            client = http.client.HTTPConnection(*address)
            client.sock = context.wrap_socket(raw, server_hostname=name)
            client.request("GET", "/", headers={"Authorization": TOKEN})

    with Server(pair, tmp_path) as server:
        with pytest.raises((ssl.SSLError, kubetls.KubeTLSError)):
            talk(server)
        assert b"" == server.received


@CASES
def test_refused_server_gets_no_byte_through_asyncio(
    tmp_path: Path, pair: Pair, reference: str | None, error: type[Exception]
) -> None:
    """TLS over memory, as asyncio does it: the same verifier stands there."""
    del error
    context = context_for(reference or "127.0.0.1")

    async def talk(port: int) -> None:
        name = reference or "127.0.0.1"
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=name
        )
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await writer.drain()

    with Server(pair, tmp_path) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            asyncio.run(talk(server.port))
        assert b"" == server.received


@pytest.mark.parametrize("trusted", [True, False])
def test_handshake_that_does_not_block_is_judged_at_its_end(
    tmp_path: Path, *, trusted: bool
) -> None:
    """A socket may be wrapped before it connects; nothing passes in between."""
    issuer = AUTHORITY if trusted else STRANGER
    pair = issuer.issue("api", addresses=("127.0.0.1",))

    def shake(tls: VerifiedSocket) -> None:
        while tls.verified_identity is None:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                with pytest.raises(kubetls.ContextRefused):
                    tls.write(b"Bearer")
                select.select([tls], [], [], 5)
            else:
                assert tls.verified_identity is not None

    with (
        Server(pair, tmp_path) as server,
        socket.socket() as raw,
        context_for().wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        tls.setblocking(False)
        tls.connect_ex((server.host, server.port))
        select.select([], [tls], [], 5)
        if trusted:
            shake(tls)
        else:
            with pytest.raises(ssl.SSLError):
                shake(tls)
            assert -1 == tls.fileno()
        assert b"" == server.received


def test_data_before_the_handshake_is_refused() -> None:
    """SSLObject.write() handshakes implicitly in OpenSSL; ours refuses first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context_for().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(kubetls.ContextRefused, match="before the server's identity"):
        tls.write(b"Bearer")
    with pytest.raises(kubetls.ContextRefused, match="before the server's identity"):
        tls.read()
    assert 0 == outgoing.pending


@pytest.mark.parametrize(
    "option",
    [
        {"assert_hostname": "127.0.0.1"},
        {"assert_hostname": False},
        {"assert_fingerprint": "aa" * 32},
        {"proxy": "http://127.0.0.1:1"},
        {"server_hostname": "elsewhere.example"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_urllib3_knob_is_refused(option: dict[str, object]) -> None:
    """Every knob that would replace the check is refused where connections are made."""
    endpoint = Endpoint(reference_identifier("127.0.0.1"), 1)
    guard = Guard(endpoint, context_for(), lambda _: None)
    with pytest.raises(kubetls.ContextRefused):
        VerifiedConnection("127.0.0.1", 1, guard=guard, **option)


def test_foreign_pool_cannot_weaken_a_borrowed_context(tmp_path: Path) -> None:
    """urllib3's own pool writes into contexts; the locked one does not take it."""
    wrong = AUTHORITY.issue("api", addresses=("127.0.0.2",))
    context = context_for()
    with Server(wrong, tmp_path) as server:
        for option in (
            {"assert_hostname": False},
            {"cert_reqs": "CERT_NONE"},
            {"ca_certs": __file__},
        ):
            pool = urllib3.HTTPSConnectionPool(
                "127.0.0.1", server.port, ssl_context=context, retries=False, **option
            )
            with pool, pytest.raises(Exception):  # noqa: B017, PT011 - any refusal will do
                pool.request("GET", "/")
        assert b"" == server.received


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("check_hostname", False),
        ("verify_mode", ssl.CERT_NONE),
        ("verify_mode", ssl.CERT_OPTIONAL),
        ("hostname_checks_common_name", True),
        ("minimum_version", ssl.TLSVersion.TLSv1),
        ("verify_flags", ssl.VerifyFlags.VERIFY_DEFAULT),
        ("sslsocket_class", ssl.SSLSocket),
        ("sslobject_class", ssl.SSLObject),
        ("keylog_filename", os.devnull),
        ("options", 0),
    ],
)
def test_sealed_context_is_not_changed(name: str, value: object) -> None:
    """Setting anything to anything else raises and changes nothing."""
    context = context_for()
    with pytest.raises(kubetls.ContextRefused):
        setattr(context, name, value)
    context.check_unchanged()


@pytest.mark.parametrize(
    "change",
    [
        lambda context: context.load_verify_locations(cadata=STRANGER_PEM),
        lambda context: context.load_cert_chain(__file__),
        lambda context: context.load_default_certs(),
        lambda context: context.set_default_verify_paths(),
        lambda context: context.set_ciphers("ALL"),
        lambda context: context.set_psk_client_callback(lambda _: ("", b"key")),
        lambda context: context.set_alpn_protocols(["h2"]),
        lambda context: delattr(context, "reference"),
        lambda context: delattr(context, "_sealed"),
    ],
    ids=["ca", "chain", "default", "paths", "ciphers", "psk", "alpn", "del", "seal"],
)
def test_sealed_context_takes_nothing_more(
    change: Callable[[LockedContext], None],
) -> None:
    """Each method that would add or take away something refuses, and does nothing."""
    context = context_for()
    with pytest.raises(kubetls.ContextRefused):
        change(context)
    context.check_unchanged()


def test_context_is_not_pickled() -> None:
    """It is made where it is used."""
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(context_for())


def test_setting_what_is_there_is_no_change() -> None:
    """Libraries set verify_mode and ALPN to what they are on every connection."""
    context = context_for()
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1"])
    context.check_unchanged()


def test_anchor_added_behind_the_lock_is_noticed(tmp_path: Path) -> None:
    """The base class's loader goes around ours; the store is compared before use."""
    context = context_for()
    with pytest.raises(kubetls.ContextRefused):
        context.load_verify_locations(cadata=STRANGER_PEM)
    ssl.SSLContext.load_verify_locations(context, cadata=STRANGER_PEM)
    bad = STRANGER.issue("api", addresses=("127.0.0.1",))
    with Server(bad, tmp_path) as server:
        with (
            socket.create_connection((server.host, server.port)) as raw,
            pytest.raises(kubetls.ContextRefused),
        ):
            context.wrap_socket(raw, server_hostname="127.0.0.1")
        assert b"" == server.received


def test_anchor_added_before_the_handshake_is_noticed(tmp_path: Path) -> None:
    """Time passes between wrapping memory and its handshake: both look."""
    context = context_for()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    ssl.SSLContext.load_verify_locations(context, cadata=STRANGER_PEM)
    bad = STRANGER.issue("api", addresses=("127.0.0.1",))
    with (
        Server(bad, tmp_path) as server,
        socket.create_connection((server.host, server.port), 5) as raw,
    ):
        with pytest.raises(ssl.SSLCertVerificationError, match="changed by other code"):
            handshake_over(raw, tls, incoming, outgoing)
        with pytest.raises(kubetls.ContextRefused):
            tls.write(b"Bearer")
        assert b"" == server.received


def handshake_over(
    raw: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, out: ssl.MemoryBIO
) -> None:
    """Do the handshake of a TLS object over a socket."""
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            raw.sendall(out.read())
            incoming.write(raw.recv(65536))
        else:
            return


def test_anchor_added_before_wrapping_memory_is_noticed() -> None:
    """The store is compared there as for sockets."""
    context = context_for()
    ssl.SSLContext.load_verify_locations(context, cadata=STRANGER_PEM)
    with pytest.raises(kubetls.ContextRefused, match="changed by other code"):
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="127.0.0.1")


def test_resumed_session_has_no_verdict() -> None:
    """It carries the certificate of another handshake, however right that was."""
    certificate = ssl.PEM_cert_to_DER_cert(GOOD.certificate.decode())
    context = context_for()
    assert context.judge(certificate, resumed=False).matched == "127.0.0.1"
    with pytest.raises(kubetls.ContextRefused, match="resumed"):
        context.judge(certificate, resumed=True)


def test_other_classes_of_connections_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever patched ssl below us: what is not our class has no verifier in it."""
    context = context_for()
    foreign = socket.socket()
    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", lambda *_, **__: foreign)
    monkeypatch.setattr(ssl.SSLContext, "wrap_bio", lambda *_, **__: foreign)
    with foreign, socket.socket() as raw:
        with pytest.raises(kubetls.ContextRefused, match="object class"):
            context.wrap_bio(
                ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="127.0.0.1"
            )
        with pytest.raises(kubetls.ContextRefused, match="socket class"):
            context.wrap_socket(raw, server_hostname="127.0.0.1")
        assert -1 == foreign.fileno()


@pytest.mark.parametrize("options", [{"server_side": True}, {"session": object()}])
def test_memory_takes_only_our_handshake(options: dict[str, object]) -> None:
    """No server's part, no session of another connection."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(kubetls.ContextRefused):
        context_for().wrap_bio(
            incoming,
            outgoing,
            server_hostname="127.0.0.1",
            **options,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    "options",
    [
        {"server_hostname": "elsewhere.example"},
        {"server_hostname": None},
        {"server_hostname": "127.0.0.1", "session": object()},
        {"server_hostname": "127.0.0.1", "server_side": True},
        {"server_hostname": "127.0.0.1", "do_handshake_on_connect": False},
    ],
    ids=str,
)
def test_wrap_socket_takes_only_our_handshake(options: dict[str, object]) -> None:
    """Another name, none, a server, a deferred handshake: refused before any byte."""
    with (
        socket.socket() as raw,
        pytest.raises(kubetls.ContextRefused),
    ):
        context_for().wrap_socket(raw, **options)  # type: ignore[arg-type]


def test_session_of_an_earlier_handshake_is_refused(tmp_path: Path) -> None:
    """Resumed, it would carry the identity that was presented then."""
    context = context_for()
    with Server(GOOD, tmp_path) as server:
        address = (server.host, server.port)
        with context.wrap_socket(
            socket.create_connection(address, 5), server_hostname="127.0.0.1"
        ) as tls:
            earlier = tls.session
        assert earlier is not None
        with (
            socket.create_connection(address, 5) as raw,
            pytest.raises(kubetls.ContextRefused, match="not resumed"),
        ):
            context.wrap_socket(raw, server_hostname="127.0.0.1", session=earlier)
    with pytest.raises(kubetls.ContextRefused, match="not resumed"):
        context.wrap_bio(
            ssl.MemoryBIO(),
            ssl.MemoryBIO(),
            server_hostname="127.0.0.1",
            session=earlier,
        )


# What an administrator may write for all programs of a machine.
OPENSSL_CONF = """\
openssl_conf = init
[init]
ssl_conf = ssl
[ssl]
system_default = tls
[tls]
MinProtocol = TLSv1
CipherString = ALL:@SECLEVEL=0
VerifyMode = None
Options = UnsafeLegacyRenegotiation,UnsafeLegacyServerConnect,Compression
"""
CONTEXT_SEEN = """\
import ssl, sys
from pathlib import Path
from kubetls.credentials.anchors import parse_anchors
from kubetls.identity.names import reference_identifier
from kubetls.transport.context import locked_context

anchors = parse_anchors(Path(sys.argv[1]).read_bytes(), "ca.crt")
context = locked_context(anchors, reference_identifier("127.0.0.1"))
wanted = ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
unwanted = 0x4 | 0x40000  # legacy servers, unsafe renegotiation
print(
    context.minimum_version.name, context.verify_mode.name, context.check_hostname,
    context.options & wanted == wanted, context.options & unwanted,
    context.keylog_filename, len(context.get_ca_certs()),
)
"""


def test_environment_weakens_no_context(tmp_path: Path) -> None:
    """OpenSSL's configuration, a key log and other bundles change nothing of it."""
    anchor, config = tmp_path / "ca.crt", tmp_path / "openssl.cnf"
    anchor.write_bytes(AUTHORITY.certificate)
    config.write_text(OPENSSL_CONF)
    (tmp_path / "other.crt").write_bytes(STRANGER.certificate)
    done = subprocess.run(
        [sys.executable, "-c", CONTEXT_SEEN, anchor],
        env=os.environ
        | {
            "OPENSSL_CONF": str(config),
            "SSLKEYLOGFILE": str(tmp_path / "keys"),
            "SSL_CERT_FILE": str(tmp_path / "other.crt"),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert "TLSv1_2 CERT_REQUIRED True True 0 None 1\n" == done.stdout
    assert not (tmp_path / "keys").exists()


def test_proof_of_a_certificate_unlocks_nothing() -> None:
    """verify_identity proves a name; only a connection can mint a peer."""
    certificate = ssl.PEM_cert_to_DER_cert(GOOD.certificate.decode())
    proof = kubetls.verify_identity(certificate, "127.0.0.1")
    with pytest.raises(TypeError):
        VerifiedPeer(object(), proof, object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        kubetls.VerifiedIdentity(proof.reference, "x", b"", object())


def test_tunnel_is_refused() -> None:
    """A CONNECT request would leave before the origin is verified."""
    endpoint = Endpoint(reference_identifier("127.0.0.1"), 1)
    guard = Guard(endpoint, context_for(), lambda _: None)
    with pytest.raises(kubetls.ContextRefused):
        VerifiedConnection("127.0.0.1", 1, guard=guard).set_tunnel("elsewhere", 443)
    with pytest.raises(kubetls.ContextRefused):
        GuardedPool(guard, 1)._prepare_proxy(None)


def test_proxy_variables_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to the server, whatever the environment says."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Server(GOOD, tmp_path) as server, open_session(server) as session:
        session.get("/version")


@pytest.mark.parametrize(
    "location",
    [
        "/other",
        "//elsewhere.example/x",
        "https://elsewhere.example/",
        "http://127.0.0.1/",
    ],
)
def test_redirect_is_an_error(tmp_path: Path, location: str) -> None:
    """A redirect is never followed, and asked once."""
    answer = response(b"", f"Location: {location}", status="307 Temporary Redirect")
    with Server(GOOD, tmp_path, [answer]) as server, open_session(server) as session:
        with pytest.raises(kubetls.UnexpectedRedirect):
            session.post("/api/v1/pods", {})
        assert 1 == server.received.count(b"POST ")


WHOLE = json.dumps({"kind": "Status", "padding": "x" * 64}).encode()


@pytest.mark.parametrize("kept", range(0, len(WHOLE), 9))
def test_cut_body_is_an_error(tmp_path: Path, kept: int) -> None:
    """A body shorter than its Content-Length is never taken for complete."""
    head, _, body = response(WHOLE, "X-Cut: yes").partition(b"\r\n\r\n")
    answer = head + b"\r\n\r\n" + body[:kept]
    with (
        Server(GOOD, tmp_path, [answer]) as server,
        open_session(server) as session,
        pytest.raises(kubetls.TransportError),
    ):
        session.get("/version")


def test_body_without_length_is_an_error(tmp_path: Path) -> None:
    """Neither Content-Length nor chunked: its end could not be told from a cut."""
    answer = b"HTTP/1.1 200 OK\r\n\r\n{}"
    with (
        Server(GOOD, tmp_path, [answer]) as server,
        open_session(server) as session,
        pytest.raises(kubetls.ProtocolError, match="Content-Length"),
    ):
        session.get("/version")


VAGUE = {
    "no number": ["Content-Length: 5x"],
    "negative": ["Content-Length: -5"],
    "with a sign": ["Content-Length: +14"],
    "with an underscore": ["Content-Length: 1_4"],
    "empty": ["Content-Length: "],
    "two lengths": ["Content-Length: 14", "Content-Length: 14"],
    "more than there is": ["Content-Length: 99999999999999999999999"],
    "an unknown coding": ["Transfer-Encoding: xchunked"],
    "a coding before chunked": ["Transfer-Encoding: gzip, chunked"],
    "chunked twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "chunked and a length": ["Transfer-Encoding: chunked", "Content-Length: 14"],
    "compressed": ["Content-Encoding: gzip", "Content-Length: 14"],
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", VAGUE)
def test_body_whose_end_is_unclear_is_an_error(
    tmp_path: Path, name: str, stream: bool
) -> None:
    """http.client reads such a one to the end of the connection, a cut as well."""
    head = "\r\n".join(["HTTP/1.1 200 OK", *VAGUE[name], "", ""])
    answer = head.encode() + b'{"kind":"Pod"}'
    with Server(GOOD, tmp_path, [answer]) as server, open_session(server) as session:
        with pytest.raises(kubetls.ProtocolError):
            read(session, stream=stream)
        assert 1 == server.received.count(b"GET ")


def read(session: kubetls.Session, *, stream: bool) -> object:
    """Read a response whole, or as it comes."""
    found = session.request("GET", "/version", stream=stream)
    return b"".join(found.stream()) if stream else found.json()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"ok", b'{"a":NaN}', b"{} {}", b"{",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"), b'{"a":"\\ud800"}', b"[" * 400_000, b'{"a":' * 400_000,
        b'{"a":' + b"9" * 10_000 + b"}", b'{"a":1e999}', b'{"a":"\xff"}',
    ],
    ids=lambda body: repr(body[:8]),
)  # fmt: skip
def test_answer_that_is_no_object_is_an_error(tmp_path: Path, body: bytes) -> None:
    """Neither an empty one nor what some other reader of JSON would guess."""
    answers = [response(body)]
    with (
        Server(GOOD, tmp_path, answers) as server,
        open_session(server) as session,
        pytest.raises(kubetls.ProtocolError, match="no JSON") as caught,
    ):
        session.get("/version")
    assert "999" not in str(caught.value)


def test_interim_responses_come_to_an_end(tmp_path: Path) -> None:
    """A few are passed over, and no number of them keeps a caller."""
    final = response(b"{}")
    few = b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + final
    many = b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + final
    with Server(GOOD, tmp_path, [few, many]) as server, open_session(server) as session:
        assert {} == session.get("/version")
        with pytest.raises(kubetls.ProtocolError, match="interim"):
            session.get("/version")


def test_old_tls_is_refused(tmp_path: Path) -> None:
    """A server that speaks TLS 1.1 at most gets no byte."""

    def old(context: ssl.SSLContext) -> None:
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1

    with (
        Server(GOOD, tmp_path, configure=old) as server,
        open_session(server) as session,
    ):
        with pytest.raises(kubetls.KubeTLSError):
            session.get("/version")
        assert b"" == server.received


@pytest.mark.parametrize(
    "answers",
    [
        [response(b"not json")],
        [response(b"{}", status="500 Internal Server Error")],
        [b"HTTP/1.1 200 OK\r\n\r\n"],
        [b"garbage\r\n\r\n"],
        [response(b"", "Location: /x", status="302 Found")],
    ],
    ids=["no JSON", "500", "no length", "no HTTP", "redirect"],
)
def test_token_is_in_no_traceback(tmp_path: Path, answers: list[bytes]) -> None:
    """Not even one that captures the variables of every frame."""
    with Server(GOOD, tmp_path, answers) as server, open_session(server) as session:
        with pytest.raises(kubetls.KubeTLSError) as caught:
            session.get("/version")
        told = traceback.TracebackException.from_exception(
            caught.value, capture_locals=True
        )
        text = "".join(told.format()) + repr(session) + repr(session.__dict__)
        assert TOKEN not in text
        assert b"Bearer" in server.received


def test_debug_output_of_http_client_is_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """http.client prints headers when its debug level is set; ours stays at 0."""
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
    with Server(GOOD, tmp_path) as server, open_session(server) as session:
        session.get("/version")
    assert TOKEN not in capsys.readouterr().out


def test_own_authorization_header_is_refused(tmp_path: Path) -> None:
    """The session's identity is the session's to state."""
    with (
        Server(GOOD, tmp_path) as server,
        open_session(server) as session,
        pytest.raises(kubetls.ConfigError, match="authorization"),
    ):
        session.request("GET", "/version", headers={"authorization": "Bearer x"})


def test_forked_child_makes_a_connection_of_its_own(tmp_path: Path) -> None:
    """Parent and child never encrypt under one key: the child's socket refuses."""
    with Server(GOOD, tmp_path) as server, open_session(server) as session:
        session.get("/version")
        before = server.handshakes
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if session.get("/version") else 1)
            finally:
                os._exit(1)
        assert 0 == os.waitpid(pid, 0)[1]
        assert before + 1 == server.handshakes
        session.get("/version")
        assert before + 1 == server.handshakes


def test_replaced_context_class_is_refused() -> None:
    """A library that puts its own class in place of ssl.SSLContext is named."""
    code = (
        "import ssl\n"
        "class Injected(ssl.SSLContext): pass\n"
        "Injected.__module__ = 'injector'\n"
        "ssl.SSLContext = Injected\n"
        "import kubetls\n"
        "try:\n"
        "    kubetls.session\n"
        "except kubetls.ContextRefused as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "injector" in done.stdout


def test_context_class_replaced_after_the_import_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An injection comes at any time, so every new context looks."""
    injected = type("Injected", (ssl.SSLContext,), {})
    monkeypatch.setattr(ssl, "SSLContext", injected)
    with pytest.raises(kubetls.ContextRefused, match="replaced"):
        context_for()


def test_library_that_reads_common_names_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it can't be told not to, there is no context."""
    monkeypatch.setattr(ssl, "HAS_NEVER_CHECK_COMMON_NAME", False)
    with pytest.raises(kubetls.ContextRefused, match="common names"):
        context_for()


def test_anchors_that_are_not_all_loaded_are_refused() -> None:
    """OpenSSL passes over some in silence; its store holds as many as we gave it."""
    der = ssl.PEM_cert_to_DER_cert(AUTHORITY.certificate.decode())
    with pytest.raises(kubetls.CredentialMalformed, match="all certificates"):
        locked_context(TrustAnchors((der, der)), reference_identifier("127.0.0.1"))


def test_verdict_for_another_reference_mints_no_peer(tmp_path: Path) -> None:
    """A context may replace an address; whom the connection means is its own word."""
    anchors = parse_anchors(AUTHORITY.certificate, "ca.crt")
    address = reference_identifier("127.0.0.1")
    context = locked_context(
        anchors, reference_identifier("api.example"), address=address
    )
    with Server(GOOD, tmp_path) as server:
        endpoint = Endpoint(address, server.port)
        pool = GuardedPool(Guard(endpoint, context, lambda _: TOKEN), 1)
        with pytest.raises(kubetls.ContextRefused, match="verdict of its own"):
            pool.request("GET", "/version")
        assert b"" == server.received


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verified_identity", None),
        ("session_reused", True),
        ("context", context_for()),
        ("selected_alpn_protocol", lambda: "h2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_socket_in_another_state_gets_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    """What the handshake should have ruled out is looked at again before the token."""
    with Server(GOOD, tmp_path) as server, open_session(server) as session:
        shown = property(lambda _: value, lambda *_: None)
        if name != "session_reused":
            monkeypatch.setattr(VerifiedSocket, name, shown)
        else:
            # The context's verdict is asked with it, too, and let through here.
            judge = LockedContext.judge
            monkeypatch.setattr(VerifiedSocket, name, shown)
            monkeypatch.setattr(
                LockedContext, "judge", lambda s, der, **_: judge(s, der, resumed=False)
            )
        with pytest.raises(kubetls.ContextRefused):
            session.get("/version")
        assert b"" == server.received


@pytest.mark.parametrize("connected", [False, True])
def test_socket_put_in_place_gets_no_request(
    tmp_path: Path, *, connected: bool
) -> None:
    """The token is for the socket that was verified, not for one that replaced it."""
    ours, theirs = socket.socketpair()
    with Server(GOOD, tmp_path) as server, ours, theirs:
        endpoint = Endpoint(reference_identifier("127.0.0.1"), server.port)
        guard = Guard(endpoint, context_for(), lambda _: TOKEN)
        connection = VerifiedConnection("127.0.0.1", server.port, guard=guard)
        connection.lease()
        if connected:
            connection.connect()
            connection.sock.close()
        connection.sock = ours
        with pytest.raises(kubetls.ContextRefused, match="not the one"):
            connection.request("GET", "/version")
        ours.close()
        assert b"" == theirs.recv(1)


AROUND = pytest.mark.parametrize(
    "around",
    [
        lambda tls: setattr(tls, "context", context_for()),
        lambda tls: setattr(tls, "session", None),
        lambda tls: tls.unwrap(),
        lambda tls: tls.sendto(b"Bearer", ("127.0.0.1", 1)),
        lambda tls: tls.send(b"Bearer", socket.MSG_OOB),
        lambda tls: tls.sendall(b"Bearer", socket.MSG_OOB),
    ],
    ids=["context", "session", "unwrap", "sendto", "send", "sendall"],
)


@AROUND
def test_verified_socket_has_no_way_around_tls(
    tmp_path: Path, around: Callable[[VerifiedSocket], object]
) -> None:
    """Nor can its context or session be exchanged."""
    with (
        Server(GOOD, tmp_path) as server,
        socket.create_connection((server.host, server.port), 5) as raw,
        context_for().wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        with pytest.raises(kubetls.ContextRefused):
            around(tls)
        assert b"" == server.received


@pytest.mark.parametrize("name", ["context", "session"])
def test_verified_object_keeps_what_it_was_made_with(name: str) -> None:
    """As the socket does."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context_for().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(kubetls.ContextRefused):
        setattr(tls, name, None)


def test_closed_socket_sends_nothing_in_the_clear(tmp_path: Path) -> None:
    """The base class uses the bare socket where the TLS layer is gone."""
    with (
        Server(GOOD, tmp_path) as server,
        socket.create_connection((server.host, server.port), 5) as raw,
        context_for().wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        tls.shutdown(socket.SHUT_RD)
        assert tls._sslobj is not None
        tls._sslobj = None
        for send in (tls.send, tls.sendall, tls.write):
            with pytest.raises(OSError, match="closed"):
                send(b"Bearer")


def test_connection_carried_over_a_fork_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes would encrypt different bytes under one key and nonce."""
    with (
        Server(GOOD, tmp_path) as server,
        socket.create_connection((server.host, server.port), 5) as raw,
        context_for().wrap_socket(raw, server_hostname="127.0.0.1") as tls,
    ):
        monkeypatch.setattr(os, "getpid", lambda: 1)
        for use in (
            tls.read,
            tls.recv,
            lambda: tls.write(b"x"),
            lambda: tls.send(b"x"),
        ):
            with pytest.raises(kubetls.ContextRefused, match="fork"):
                use()
        monkeypatch.undo()
        assert b"" == server.received

"""Projected service-account tokens: verified offline, claim by claim.

Pure: token, keys, expectations and the time in; accepted or `AuthRefused` out. The
algorithms are those the API server signs with and nothing else; headers that bring
their own key are refused; what is expected is compared for equality.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flame_backend.errors import LinkUnauthenticated

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKEN_CHARACTERS: Final = 8 * 1024
LEEWAY_SECONDS: Final = 60.0
LIFE_SECONDS: Final = 3600.0
"""Longest exp - iat: the kubelet asks for 600 s, API servers round up a little."""

_EC: Final = {"ES256": ("P-256", 32), "ES384": ("P-384", 48), "ES512": ("P-521", 66)}
ALGORITHMS: Final = frozenset({"RS256", *_EC})
_REFUSED_HEADERS: Final = ("crit", "jwk", "jku", "x5c", "x5u", "b64", "zip")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedClaims:
    """What the token of one runner must say.

    Attributes:
        issuer: The cluster's issuer, byte for byte.
        audience: The one audience made for this runner.
        namespace: The pod's namespace.
        service_account: Name of the pod's account.
        pod: Name of the pod.
        uid: UID of the pod, from the answer to our own POST; None while that is
            not there, and then compared by the caller when it is.
    """

    issuer: str
    audience: str
    namespace: str
    service_account: str
    pod: str
    uid: str | None


class ClockSkew(LinkUnauthenticated):
    """A token that is right in all but its times: the clocks differ, or it is old."""


def key_id(token: str) -> str:
    """Return the key that a token names, after checking its header.

    Raises:
        LinkUnauthenticated: The header is not one the API server writes.
    """
    header = _json(_parts(token)[0], "header")
    # As text: what is no text may have no hash, and is none of these.
    if str(header.get("alg")) not in ALGORITHMS:
        _refuse("alg")
    if header.get("typ") is not None and str(header["typ"]) != "JWT":
        _refuse("typ")
    if any(name in header for name in _REFUSED_HEADERS):
        _refuse("a header that brings its own key or rules")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        _refuse("kid")
    return kid


def verified_claims(
    token: str, jwks: Mapping[str, Any], expected: ExpectedClaims, now: float
) -> dict[str, Any]:
    """Verify a token and return its claims.

    Args:
        token: The token as it was presented.
        jwks: The API server's key set.
        expected: What it must say.
        now: Seconds since the epoch.

    Raises:
        ClockSkew: All is right but the times.
        LinkUnauthenticated: Names the first claim or step that failed, and no more.
    """
    kid = key_id(token)
    head, payload, signature = _parts(token)
    algorithm = _json(head, "header")["alg"]
    key = _key(jwks, kid, algorithm)
    _verify(key, algorithm, f"{head}.{payload}".encode(), _decoded(signature))
    claims = _json(payload, "payload")
    # Who it is first: only what is said of the runner's own token is worth telling.
    _check_subject(claims, expected)
    _check_times(claims, now)
    return claims


def _parts(token: str) -> tuple[str, str, str]:
    if len(token) > TOKEN_CHARACTERS or not token.isascii():
        _refuse("size or characters")
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        _refuse("three parts")
    return parts[0], parts[1], parts[2]


def _decoded(part: str) -> bytes:
    """Decode unpadded base64url that is canonical: encodes to the same text again."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        _refuse("base64url")
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != part:
        _refuse("canonical base64url")
    return data


def strict_json(data: bytes) -> dict[str, Any]:
    """Parse a JSON object; a key that stands twice is an error.

    Raises:
        ValueError: It is none.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            msg = "a key stands twice"
            raise ValueError(msg)
        return found

    parsed = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    if not isinstance(parsed, dict):
        msg = "not an object"
        raise ValueError(msg)  # noqa: TRY004 - one family for what is not JSON as wanted
    return parsed


def _json(part: str, what: str) -> dict[str, Any]:
    try:
        return strict_json(_decoded(part))
    except (ValueError, RecursionError):
        _refuse(what)


def _key(jwks: Mapping[str, Any], kid: str, algorithm: str) -> dict[str, Any]:
    keys = jwks.get("keys")
    found = [
        key
        for key in (keys if isinstance(keys, list) else [])
        if isinstance(key, dict) and key.get("kid") == kid
    ]
    if len(found) != 1:
        _refuse("kid")
    key: dict[str, Any] = found[0]
    wanted = ("RSA", None) if algorithm == "RS256" else ("EC", _EC[algorithm][0])
    if (key.get("kty"), key.get("crv")) != wanted:
        _refuse("a key of another kind")
    if key.get("use") not in {None, "sig"} or key.get("alg") not in {None, algorithm}:
        _refuse("a key for another purpose")
    # RFC 7517 section 4.3: where operations are listed, no other is meant.
    operations = key.get("key_ops")
    if operations is not None and (
        not isinstance(operations, list) or "verify" not in operations
    ):
        _refuse("a key for another purpose")
    return key


def _verify(key: dict[str, Any], algorithm: str, data: bytes, signature: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

    def number(name: str) -> int:
        return int.from_bytes(_decoded(str(key.get(name, ""))), "big")

    try:
        if algorithm == "RS256":
            if number("n").bit_length() < 2048:
                _refuse("an RSA key below 2048 bits")
            public = rsa.RSAPublicNumbers(number("e"), number("n")).public_key()
            public.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            return
        curve, size = _EC[algorithm]
        if len(signature) != 2 * size:
            # JWS has r and s side by side (RFC 7518 section 3.4), never DER.
            _refuse("signature")
        curves: dict[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
            "P-256": (ec.SECP256R1(), hashes.SHA256()),
            "P-384": (ec.SECP384R1(), hashes.SHA384()),
            "P-521": (ec.SECP521R1(), hashes.SHA512()),
        }
        kind, digest = curves[curve]
        point = ec.EllipticCurvePublicNumbers(number("x"), number("y"), kind)
        r = int.from_bytes(signature[:size], "big")
        s = int.from_bytes(signature[size:], "big")
        point.public_key().verify(
            utils.encode_dss_signature(r, s), data, ec.ECDSA(digest)
        )
    except (InvalidSignature, ValueError):
        _refuse("signature")


def _check_times(claims: dict[str, Any], now: float) -> None:
    issued, begins, ends = (_moment(claims, name) for name in ("iat", "nbf", "exp"))
    if issued > now + LEEWAY_SECONDS or begins > now + LEEWAY_SECONDS:
        ahead = max(issued, begins) - now
        _skewed(f"nbf: issued {ahead:.0f} s in the future of this pod's clock")
    if ends <= now:
        _skewed(f"exp: expired {now - ends:.0f} s ago by this pod's clock")
    if ends - issued > LIFE_SECONDS:
        _refuse("a life longer than was asked for")


def _moment(claims: dict[str, Any], name: str) -> int:
    value = claims.get(name)
    if type(value) is not int:
        _refuse(name)
    return value


def _check_subject(claims: dict[str, Any], expected: ExpectedClaims) -> None:
    kubernetes = claims.get("kubernetes.io")
    if not isinstance(kubernetes, dict):
        _refuse("kubernetes.io")
    account = kubernetes.get("serviceaccount")
    pod = kubernetes.get("pod")
    if not isinstance(account, dict) or not isinstance(pod, dict):
        _refuse("a token that is bound to no pod")
    if "secret" in kubernetes:
        _refuse("a token that is bound to a Secret")
    subject = f"system:serviceaccount:{expected.namespace}:{expected.service_account}"
    wanted = {
        "iss": (claims.get("iss"), expected.issuer),
        "sub": (claims.get("sub"), subject),
        "namespace": (kubernetes.get("namespace"), expected.namespace),
        "serviceaccount": (account.get("name"), expected.service_account),
        "serviceaccount.uid": (account.get("uid"), account.get("uid")),
        "pod.name": (pod.get("name"), expected.pod),
        "pod.uid": (pod.get("uid"), expected.uid or pod.get("uid")),
    }
    for name, (found, want) in wanted.items():
        if not isinstance(found, str) or not found or not isinstance(want, str):
            _refuse(name)
        # JSON can spell characters that UTF-8 cannot.
        if not hmac.compare_digest(
            found.encode(errors="surrogatepass"), want.encode(errors="surrogatepass")
        ):
            _refuse(name)
    if claims.get("aud") != [expected.audience]:
        _refuse("aud")
    if not isinstance(claims.get("jti", ""), str):
        _refuse("jti")


def check_review(status: object, expected: ExpectedClaims) -> None:
    """Check a TokenReview's status; for clusters whose operators want it.

    An API server that knows nothing of audiences leaves them out, and would accept a
    token for itself: so they must be there, and be ours alone.

    Raises:
        LinkUnauthenticated: The token is not the runner's.
    """
    if not isinstance(status, dict) or status.get("error"):
        _refuse("review: an error")
    user = status.get("user")
    if status.get("authenticated") is not True or not isinstance(user, dict):
        _refuse("review: not authenticated")
    if status.get("audiences") != [expected.audience]:
        _refuse("review: audiences")
    name = f"system:serviceaccount:{expected.namespace}:{expected.service_account}"
    if user.get("username") != name:
        _refuse("review: username")
    extra = user.get("extra")
    extra = extra if isinstance(extra, dict) else {}
    if extra.get("authentication.kubernetes.io/pod-name") != [expected.pod]:
        _refuse("review: pod-name")
    if extra.get("authentication.kubernetes.io/pod-uid") != [expected.uid]:
        _refuse("review: pod-uid")


def _skewed(what: str) -> NoReturn:
    msg = f"the token was refused: {what}; compare the clocks of the nodes"
    raise ClockSkew(msg)


def _refuse(what: str) -> NoReturn:
    msg = f"the token was refused: {what}"
    raise LinkUnauthenticated(msg)

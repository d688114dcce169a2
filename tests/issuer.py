"""An issuer of projected tokens: right ones, and every known way to forge one.

PyJWT signs them, with real keys; nothing of ours makes what ours has to judge.
"""

from __future__ import annotations

import base64
import json
import time
import warnings
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from flame_backend.backends.kubernetes.tokens import ExpectedClaims

NOW = float(int(time.time()))
EXPECTED = ExpectedClaims(
    issuer="https://issuer.example",
    audience="flame-backend/parent/runner",
    namespace="apps",
    service_account="app",
    pod="runner",
    uid="uid-1",
)
RSA = rsa.generate_private_key(65537, 2048)
SMALL = rsa.generate_private_key(65537, 1024)
P256 = ec.generate_private_key(ec.SECP256R1())
STRANGER = rsa.generate_private_key(65537, 2048)


def jwk(key: Any, kid: str, algorithm: str) -> dict[str, Any]:
    """Return the public half as the API server publishes it."""
    if isinstance(key, rsa.RSAPrivateKey):
        text = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())
    else:
        text = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())
    return json.loads(text) | {"kid": kid, "use": "sig", "alg": algorithm}


JWKS = {
    "keys": [
        jwk(RSA, "rsa", "RS256"),
        jwk(P256, "ec", "ES256"),
        jwk(SMALL, "small", "RS256"),
    ]
}


def claims(**changes: Any) -> dict[str, Any]:
    """Return the right claims with some changed; None takes one out."""
    found: dict[str, Any] = {
        "iss": EXPECTED.issuer,
        "sub": "system:serviceaccount:apps:app",
        "aud": [EXPECTED.audience],
        "iat": int(NOW),
        "nbf": int(NOW),
        "exp": int(NOW) + 600,
        "jti": "id-1",
        "kubernetes.io": {
            "namespace": "apps",
            "serviceaccount": {"name": "app", "uid": "uid-sa"},
            "pod": {"name": "runner", "uid": "uid-1"},
            "node": {"name": "node", "uid": "uid-node"},
        },
    }
    found |= changes
    return {name: value for name, value in found.items() if value is not None}


def bound(**changes: Any) -> dict[str, Any]:
    """Return the kubernetes.io claim with some parts changed."""
    return claims()["kubernetes.io"] | changes


def sign(
    payload: dict[str, Any],
    key: Any = RSA,
    algorithm: str = "RS256",
    **headers: Any,
) -> str:
    """Sign with PyJWT."""
    return jwt.encode(payload, key, algorithm, headers={"kid": "rsa"} | headers)


def part(value: object) -> str:
    """Encode one segment."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "issuer": {"iss": "https://issuer.example/"},
    "no issuer": {"iss": None},
    "subject as number": {"sub": 7},
    "subject": {"sub": "system:serviceaccount:apps:other"},
    "audience of another runner": {"aud": ["flame-backend/parent/other"]},
    "audience of the API": {"aud": ["https://kubernetes.default.svc"]},
    "two audiences": {"aud": [EXPECTED.audience, "more"]},
    "audience as text": {"aud": EXPECTED.audience},
    "expired": {"exp": int(NOW)},
    "not yet valid": {"nbf": int(NOW) + 120},
    "from the future": {"iat": int(NOW) + 120},
    "too long a life": {"exp": int(NOW) + 7200},
    "no expiry": {"exp": None},
    "expiry as text": {"exp": str(int(NOW) + 600)},
    "expiry as true": {"exp": True},
    "expiry as fraction": {"exp": NOW + 600.5},
    "begin as true": {"nbf": True},
    "another pod": {"kubernetes.io": bound(pod={"name": "other", "uid": "uid-1"})},
    "an earlier pod": {"kubernetes.io": bound(pod={"name": "runner", "uid": "uid-0"})},
    "bound to no pod": {"kubernetes.io": bound(pod=None)},
    "bound to a Secret": {"kubernetes.io": bound(secret={"name": "s"})},
    "another namespace": {"kubernetes.io": bound(namespace="other")},
    "another account": {"kubernetes.io": bound(serviceaccount={"name": "other"})},
    "account without UID": {"kubernetes.io": bound(serviceaccount={"name": "app"})},
    "account with another UID": {
        "kubernetes.io": bound(serviceaccount={"name": "app", "uid": 5})
    },
    "id as number": {"jti": 5},
    "account as text": {"kubernetes.io": bound(serviceaccount="app")},
    "pod as text": {"kubernetes.io": bound(pod="runner")},
    "no kubernetes claims": {"kubernetes.io": None},
}


def small_key_token() -> str:
    """Return a token signed by a key that is too small, which PyJWT warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sign(claims(), SMALL, "RS256", kid="small")


def signed_text(payload: str, kid: object = "rsa") -> str:
    """Sign a payload that is no JSON a library would write."""
    head = part({"alg": "RS256", "kid": kid, "typ": "JWT"})
    data = f"{head}.{part(payload.encode())}"
    signature = RSA.sign(data.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{data}.{part(signature)}"


def padded_signature() -> str:
    """Return an ES256 token whose s has a zero in front: the same number, longer."""
    data, _, signature = sign(claims(), P256, "ES256", kid="ec").rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    return f"{data}.{part(raw[:32] + bytes(1) + raw[32:])}"


def forged() -> dict[str, str]:
    """Return tokens whose signature or header is the attack."""
    head, body, signature = sign(claims()).split(".")
    plain = {"alg": "RS256", "kid": "rsa"}
    twice = b'{"alg":"RS256","kid":"x","kid":"rsa","typ":"JWT"}'
    public = jwk(STRANGER, "rsa", "RS256")
    double = json.dumps(claims())[:-1] + ', "iss": "https://issuer.example"}'
    ec_head = part({"alg": "ES256", "kid": "ec", "typ": "JWT"})
    der = P256.sign(f"{ec_head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "alg none": f"{part({'alg': 'none', 'kid': 'rsa'})}.{body}.",
        "alg none with signature": f"{part({'alg': 'none', 'kid': 'rsa'})}.{body}.AA",
        "HS256 by the public key": sign(claims(), b"x" * 64, "HS256"),
        "stranger's key": sign(claims(), STRANGER),
        "embedded key": sign(claims(), STRANGER, jwk=public),
        "key by URL": sign(claims(), STRANGER, jku="https://evil.example/keys"),
        "critical extension": sign(claims(), crit=["b64"], b64=False),
        "unknown kid": sign(claims(), kid="other"),
        "no kid": jwt.encode(claims(), RSA, "RS256"),
        "kid of another kind of key": sign(claims(), RSA, "RS256", kid="ec"),
        "small RSA key": small_key_token(),
        "ECDSA signature in DER": f"{ec_head}.{body}.{part(der)}",
        "ECDSA signature of zeros": f"{ec_head}.{body}.{part(bytes(64))}",
        "key in the header": sign(claims(), STRANGER, x5c=["AAAA"]),
        "certificate by URL": sign(claims(), STRANGER, x5u="https://evil.example/c"),
        "kid that is a path": sign(claims(), kid="../../dev/null"),
        "kid that is a list": f"{part({'alg': 'RS256', 'kid': ['rsa']})}.{body}.AA",
        "alg that is a list": f"{part({'alg': ['RS256'], 'kid': 'rsa'})}.{body}.AA",
        "typ that is an object": f"{part({**plain, 'typ': {}})}.{body}.AA",
        "kid that is empty": sign(claims(), kid=""),
        "kid twice": f"{part(twice)}.{body}.{signature}",
        "compressed": sign(claims(), zip="DEF"),
        "PS256": sign(claims(), RSA, "PS256"),
        "typ": sign(claims(), typ="at+jwt"),
        "payload changed": f"{head}.{part(claims(jti='id-2'))}.{signature}",
        "padded": f"{head}.{body}=.{signature}",
        "not canonical": f"{head}.{body}.{signature[:-1]}{chr(ord(signature[-1]) + 1)}",
        "signature of one digit": f"{head}.{body}.A",
        "header of one digit": f"A.{body}.{signature}",
        "two parts": f"{head}.{body}",
        "four parts": f"{head}.{body}.{signature}.x",
        "claim twice": signed_text(double),
        "ECDSA signature with a zero more": padded_signature(),
        "huge and signed": sign(claims(more="x" * 8000)),
        "huge": f"{head}.{'A' * 10_000}.{signature}",
        "not ASCII": f"{head}.{body}é.{signature}",
        "empty": "",
        "JSON array": f"{part([])}.{body}.{signature}",
        "deep JSON": f"{part(b'[' * 5000)}.{body}.{signature}",
    }

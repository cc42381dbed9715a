"""JSON Web Tokens as registries use them (RFC 7515, 7517, 7518): signed with our key, or verified with somebody else's.

Only signatures with public keys are accepted: a verifier that also knows shared secrets can be talked into trusting
one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

LEEWAY_SECONDS = 60.0
_HASHES: dict[str, type[hashes.SHA256] | type[hashes.SHA384] | type[hashes.SHA512]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class InvalidToken(ValueError):
    """The token cannot be believed; the message says why."""


def encode_part(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_part(text: str) -> bytes:
    """The reverse."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidToken("not base64url") from error


def sign(claims: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> str:
    """A token signed with ES256."""
    header = {"alg": "ES256", "typ": "JWT", "kid": thumbprint(key.public_key())}
    text = encode_part(msgspec.json.encode(header)) + "." + encode_part(msgspec.json.encode(claims))
    r, s = utils.decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return text + "." + encode_part(r.to_bytes(32, "big") + s.to_bytes(32, "big"))


class Verifier:
    """Verifies tokens with trusted keys by id, and with certificates that chain to trusted roots."""

    def __init__(
        self,
        keys: Mapping[str, PublicKey],
        roots: Iterable[x509.Certificate] = (),
        algorithms: frozenset[str] = frozenset(),
    ) -> None:
        self._algorithms = algorithms
        self._keys = dict(keys)
        self._roots = tuple(roots)
        for root in self._roots:
            public = root.public_key()
            if isinstance(public, PublicKey):
                self._keys.setdefault(thumbprint(public), public)
                self._keys.setdefault(libtrust_id(public), public)

    @classmethod
    def load_sync(
        cls, jwks: Path | None, certificates: Path | None, algorithms: frozenset[str] = frozenset()
    ) -> Verifier:
        """From a JWKS file, a PEM bundle, or both; ValueError when neither has a key."""
        keys: dict[str, PublicKey] = {}
        if jwks is not None:
            for entry in _keys_of(jwks):
                key = key_from_jwk(entry)
                keys[str(entry.get("kid") or thumbprint(key))] = key
        roots = x509.load_pem_x509_certificates(certificates.read_bytes()) if certificates is not None else []
        if not keys and not roots:
            raise ValueError("no key to verify tokens with")
        return cls(keys, roots, algorithms)

    def verify(self, token: str, issuer: str, audience: str, now: float | None = None) -> dict[str, Any]:
        """The claims of a token that is signed, current, from `issuer` and for `audience`."""
        header, claims, signed, signature = _split(token)
        algorithm = str(header.get("alg"))
        if self._algorithms and algorithm not in self._algorithms:
            raise InvalidToken(f"signature algorithm {algorithm[:20]} is not among those configured")
        check_signature(algorithm, self._key(header), signed, signature)
        moment = time.time() if now is None else now
        if claims.get("iss") != issuer:
            raise InvalidToken("wrong issuer")
        audiences = claims.get("aud")
        if audience not in (audiences if isinstance(audiences, list) else [audiences]):
            raise InvalidToken("wrong audience")
        if not _number(claims, "exp") + LEEWAY_SECONDS > moment:
            raise InvalidToken("expired")
        if _number(claims, "nbf", 0.0) - LEEWAY_SECONDS > moment:
            raise InvalidToken("not valid yet")
        return claims

    def _key(self, header: Mapping[str, Any]) -> PublicKey:
        chain = header.get("x5c")
        if chain:
            return self._key_of_chain(chain)
        identity = header.get("kid")
        embedded = header.get("jwk")
        if identity is None and isinstance(embedded, dict):
            identity = embedded.get("kid") or thumbprint(key_from_jwk(embedded))
        key = self._keys.get(str(identity))
        if key is None and len(self._keys) == 1 and identity is None:
            return next(iter(self._keys.values()))
        if key is None:
            raise InvalidToken("signed by an unknown key")
        return key

    def _key_of_chain(self, chain: Any) -> PublicKey:
        try:
            certificates = [x509.load_der_x509_certificate(base64.b64decode(item)) for item in chain]
        except (TypeError, ValueError) as error:
            raise InvalidToken("x5c holds no certificates") from error
        if not certificates or len(certificates) > 10:
            raise InvalidToken("x5c holds no usable chain")
        moment = time.time()
        for certificate, issuer in zip(certificates, [*certificates[1:], None], strict=True):
            start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
            if not start - LEEWAY_SECONDS <= moment <= end + LEEWAY_SECONDS:
                raise InvalidToken("a certificate of the chain is not valid now")
            if certificate in self._roots:
                break
            candidates = [issuer] if issuer is not None else list(self._roots)
            if not any(_issued(certificate, candidate) for candidate in candidates):
                raise InvalidToken("the certificate chain does not lead to a trusted root")
        public = certificates[0].public_key()
        if not isinstance(public, PublicKey):
            raise InvalidToken("unsupported key type")
        return public


def _keys_of(jwks: Path) -> list[dict[str, Any]]:
    try:
        document = msgspec.json.decode(jwks.read_bytes(), type=dict[str, Any])
        return msgspec.convert(document.get("keys", []), type=list[dict[str, Any]])
    except msgspec.MsgspecError as error:
        raise ValueError(f"{jwks} is no set of keys: {error}") from error


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return constraints.value.ca


def _split(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    parts = token.split(".")
    if len(parts) != 3 or len(token) > 64 * 1024:
        raise InvalidToken("not a signed token")
    try:
        header = msgspec.json.decode(decode_part(parts[0]), type=dict[str, Any])
        claims = msgspec.json.decode(decode_part(parts[1]), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise InvalidToken("not a signed token") from error
    return header, claims, f"{parts[0]}.{parts[1]}".encode(), decode_part(parts[2])


def _number(claims: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = claims.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidToken(f"no usable {name}")
    return float(value)


def check_signature(algorithm: str, key: PublicKey, data: bytes, signature: bytes) -> None:
    """`InvalidToken` unless `signature` is right for the algorithm and the key's type."""
    digest = _HASHES.get(algorithm[2:])
    try:
        if algorithm == "EdDSA" and isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        elif digest is not None and algorithm.startswith("RS") and isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), digest())
        elif digest is not None and algorithm.startswith("PS") and isinstance(key, rsa.RSAPublicKey):
            pss = padding.PSS(mgf=padding.MGF1(digest()), salt_length=padding.PSS.DIGEST_LENGTH)
            key.verify(signature, data, pss, digest())
        elif digest is not None and algorithm.startswith("ES") and isinstance(key, ec.EllipticCurvePublicKey):
            half = (key.key_size + 7) // 8
            if len(signature) != 2 * half:
                raise InvalidToken("wrong signature")
            r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
            key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(digest()))
        else:
            raise InvalidToken(f"unsupported signature algorithm {algorithm[:20]}")
    except InvalidSignature as error:
        raise InvalidToken("wrong signature") from error


def key_from_jwk(entry: Mapping[str, Any]) -> PublicKey:
    """The public key of a JWK."""

    def number(name: str) -> int:
        return int.from_bytes(decode_part(str(entry[name])), "big")

    try:
        match entry.get("kty"):
            case "RSA":
                return rsa.RSAPublicNumbers(number("e"), number("n")).public_key()
            case "EC":
                curve = _CURVES[str(entry["crv"])]
                return ec.EllipticCurvePublicNumbers(number("x"), number("y"), curve).public_key()
            case "OKP" if entry.get("crv") == "Ed25519":
                return ed25519.Ed25519PublicKey.from_public_bytes(decode_part(str(entry["x"])))
    except (KeyError, ValueError) as error:
        raise InvalidToken(f"unusable key: {error}") from error
    raise InvalidToken("unsupported key type")


def jwk_of(key: PublicKey) -> dict[str, str]:
    """The members of a public key's JWK that its thumbprint covers."""

    def text(number: int, length: int = 0) -> str:
        return encode_part(number.to_bytes(length or (number.bit_length() + 7) // 8, "big"))

    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return {"e": text(numbers.e), "kty": "RSA", "n": text(numbers.n)}
    if isinstance(key, ec.EllipticCurvePublicKey):
        point, size = key.public_numbers(), (key.key_size + 7) // 8
        curve = next(name for name, kind in _CURVES.items() if kind.name == key.curve.name)
        return {"crv": curve, "kty": "EC", "x": text(point.x, size), "y": text(point.y, size)}
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"crv": "Ed25519", "kty": "OKP", "x": encode_part(raw)}


def thumbprint(key: PublicKey) -> str:
    """RFC 7638, the key id of distribution 3."""
    return encode_part(hashlib.sha256(msgspec.json.encode(dict(sorted(jwk_of(key).items())))).digest())


def libtrust_id(key: PublicKey) -> str:
    """The key id of distribution 2: 240 bits of the DER key's hash, in base32 groups of four."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    return ":".join(text[i : i + 4] for i in range(0, len(text), 4))

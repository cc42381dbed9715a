"""TLS: the administrator's files, or a CA and certificate of our own, made at first start, kept, and renewed before
expiry.

The CA is what other hosts are told to trust (`berth registry ca`), so it lives for ten years; the server's certificate
is renewed without anybody noticing.
"""

from __future__ import annotations

import datetime
import ipaddress
import logging
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from registry.config import Settings, TlsFiles
from registry.server.secure import new_context
from registry.store.replacing import replace_file_sync
from registry.tasks import run_blocking

log = logging.getLogger("berth.registry.tls")

_CA_DAYS = 3650
_SERVER_DAYS = 397
_RENEW_DAYS_BEFORE = 30
_MINIMUM = {
    "tls1.0": ssl.TLSVersion.TLSv1,
    "tls1.1": ssl.TLSVersion.TLSv1_1,
    "tls1.2": ssl.TLSVersion.TLSv1_2,
    "tls1.3": ssl.TLSVersion.TLSv1_3,
}


@dataclass(frozen=True, slots=True)
class OwnCertificates:
    """Where our own CA and certificate lie."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The CA certificate, which clients may have."""
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """The server's key."""
        return self.folder / "server.key"

    @property
    def _ca_key(self) -> Path:
        return self.folder / "ca.key"

    def ensure_sync(self, names: list[str], now: datetime.datetime | None = None) -> bool:
        """Make what is missing, nearly expired or lacks a name; whether anything was made."""
        moment = now or datetime.datetime.now(datetime.UTC)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = False
        ca, ca_key = self._load(self.ca, self._ca_key)
        if ca is None or ca_key is None or ca.not_valid_after_utc - moment < datetime.timedelta(days=_SERVER_DAYS):
            ca, ca_key = _make_ca(moment)
            _store(self.ca, ca, self._ca_key, ca_key)
            made = True
        certificate, key = self._load(self.certificate, self.key)
        soon = datetime.timedelta(days=_RENEW_DAYS_BEFORE)
        if (
            made
            or certificate is None
            or key is None
            or certificate.not_valid_after_utc - moment < soon
            or not set(names) <= _names_of(certificate)
        ):
            certificate, key = _make_server(ca, ca_key, names, moment)
            _store(self.certificate, certificate, self.key, key)
            made = True
        return made

    @staticmethod
    def _load(certificate: Path, key: Path) -> tuple[x509.Certificate | None, ec.EllipticCurvePrivateKey | None]:
        try:
            loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
            private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        except (OSError, ValueError):
            return None, None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != loaded.public_key():
            return None, None
        return loaded, private


class TlsKeeper:
    """Makes the server's TLS context and keeps its certificate current."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        folder = settings.own_tls_folder
        self.own = OwnCertificates(folder) if folder is not None and settings.tls is None else None
        self._mark: tuple[tuple[int, int], ...] = ()
        self._context: ssl.SSLContext | None = None

    @property
    def files(self) -> TlsFiles | None:
        """What is served, or None without TLS."""
        if self._settings.tls is not None:
            return self._settings.tls
        return TlsFiles(self.own.certificate, self.own.key) if self.own is not None else None

    @property
    def context(self) -> ssl.SSLContext:
        """What the next connection is to be secured with, once `load` found that there is TLS."""
        assert self._context is not None
        return self._context

    async def load(self) -> bool:
        """Whether there is TLS; the files are read."""
        return await run_blocking(self._load_sync)

    def _load_sync(self) -> bool:
        self._renew_sync()
        if self.files is not None:
            self._mark, self._context = self._mark_of(self.files), self._made_of(self.files)
        return self._context is not None

    def _renew_sync(self) -> None:
        if self.own is not None:
            host, _ = self._settings.listen_on()
            self.own.ensure_sync(server_names(host))

    @staticmethod
    def _made_of(files: TlsFiles) -> ssl.SSLContext:
        context = new_context()
        context.minimum_version = _MINIMUM[files.minimum]
        context.load_cert_chain(files.certificate, files.key)
        context.set_alpn_protocols(["http/1.1"])
        if files.ciphers:
            context.set_ciphers(files.ciphers)
        for authority in files.client_cas:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_OPTIONAL if files.client_optional else ssl.CERT_REQUIRED
        return context

    async def refresh(self) -> bool:
        """Renew our own certificate when due, and take up changed files for new connections; whether anything
        changed."""
        return self._context is not None and await run_blocking(self._refresh_sync)

    def _refresh_sync(self) -> bool:
        self._renew_sync()
        files = self.files
        assert files is not None
        try:
            mark = self._mark_of(files)
            if mark == self._mark:
                return False
            # Made anew and then exchanged: a certificate and a key that do not fit would leave a context that serves
            # nobody.
            self._context = self._made_of(files)
        except (OSError, ssl.SSLError) as error:
            # Half-replaced files, most likely: the old certificate serves on, the next look takes the new one.
            log.warning("cannot load the TLS certificate again: %s", error)
            return False
        self._mark = mark
        return True

    @staticmethod
    def _mark_of(files: TlsFiles) -> tuple[tuple[int, int], ...]:
        status = [path.stat() for path in (files.certificate, files.key, *files.client_cas)]
        return tuple((item.st_mtime_ns, item.st_ino) for item in status)


def server_names(host: str) -> list[str]:
    """Names and addresses the certificate is for: loopback, this host, and the address we listen on."""
    names = ["localhost", "127.0.0.1", "::1"]
    hostname = socket.gethostname()
    if hostname:
        names.append(hostname)
    if host and host not in ("0.0.0.0", "::"):
        names.append(host)
    return list(dict.fromkeys(names))


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_of(certificate: x509.Certificate) -> set[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in extension.value}


def _make_ca(now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"berth registry CA {socket.gethostname()}"[:64])])
    certificate = (
        _builder(name, name, key, now, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _make_server(
    ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, names: list[str], now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "berth registry")])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        _builder(subject, ca.subject, key, now, _SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # An hour of grace for clients whose clock is behind ours.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _store(path: Path, certificate: x509.Certificate, key_path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    replace_file_sync(key_path, private, 0o600)
    replace_file_sync(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)

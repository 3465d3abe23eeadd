"""A certificate authority that lives for one run, for TLS hosts on loopback.

Its key is never written to disk. Its certificates are valid for loopback names and for a day.
cryptography is imported in the functions that use it: importing the kit does not load it.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from companion_core.system.state_files import write_private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["LOOPBACK_NAMES", "CertificateAuthority"]

LOOPBACK_NAMES: Final = ("127.0.0.1", "::1", "localhost")
_DAY: Final = dt.timedelta(days=1)
_HOUR: Final = dt.timedelta(hours=1)


class CertificateAuthority:
    """Signs certificates for hosts of this run.

    Args:
        folder: an owner-only folder; `ca_file` is written there.

    Attributes:
        ca_file: the authority's own certificate, for `network.extra_ca_file`.
    """

    def __init__(self, folder: Path) -> None:
        from cryptography import x509  # noqa: PLC0415 - slow to import
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - slow to import
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - slow to import

        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name("companion-core run authority")
        certificate = self._sign(
            self._builder(self._name, self._key.public_key(), _now() + _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
        )
        self.ca_file = folder / "ca.pem"
        write_private(self.ca_file, certificate.public_bytes(serialization.Encoding.PEM))

    def server_context(self, *names: str, expires: dt.datetime | None = None) -> ssl.SSLContext:
        """Return a server's TLS context with a fresh certificate for `names`.

        Args:
            names: IP addresses and DNS names; without any, the loopback names.
            expires: a day from now unless given.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # OpenSSL reads a key only from a file, which is deleted before this returns.
        file = self._folder / f".{secrets.token_hex(8)}.pem"
        write_private(file, self.server_pem(*names, expires=expires))
        try:
            context.load_cert_chain(os.fspath(file))
        finally:
            file.unlink()
        return context

    def server_pem(self, *names: str, expires: dt.datetime | None = None) -> bytes:
        """Return such a certificate and its key, for a server in another process."""
        from cryptography import x509  # noqa: PLC0415 - slow to import
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - slow to import
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - slow to import

        key = ec.generate_private_key(ec.SECP256R1())
        until = _now() + _DAY if expires is None else expires
        certificate = self._sign(
            self._builder(_common_name("companion-core host"), key.public_key(), until)
            .add_extension(_alternative_names(names or LOOPBACK_NAMES), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
            )
        )
        return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, until: dt.datetime
    ) -> x509.CertificateBuilder:
        from cryptography import x509  # noqa: PLC0415 - slow to import

        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(_now(), until - _HOUR) - _HOUR)
            .not_valid_after(until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - slow to import

        return builder.sign(self._key, hashes.SHA256())


def _now() -> dt.datetime:
    return dt.datetime.now(tz=dt.UTC)


def _common_name(text: str) -> x509.Name:
    from cryptography import x509  # noqa: PLC0415 - slow to import

    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, text)])


def _alternative_names(names: tuple[str, ...]) -> x509.SubjectAlternativeName:
    from cryptography import x509  # noqa: PLC0415 - slow to import

    entries: list[x509.GeneralName] = []
    for name in names:
        try:
            entries.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            entries.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(entries)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509  # noqa: PLC0415 - slow to import

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

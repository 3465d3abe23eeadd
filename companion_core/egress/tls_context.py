"""The one TLS client configuration of the package: full checks, which no option turns off."""

from __future__ import annotations

import ssl
from pathlib import Path

from companion_core.errors import Reason, UsageError

__all__ = ["build_tls_context"]


def build_tls_context(extra_ca_file: str | Path | None = None) -> ssl.SSLContext:
    """Return a context that trusts the system's authorities and, beside them, one file.

    Building it reads the system's store (tens of milliseconds): make one and pass it on.
    Unlike `ssl.create_default_context` it never writes TLS secrets to $SSLKEYLOGFILE.

    Raises:
        UsageError: `configuration_invalid` when the file is missing or holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # certificate required, host name checked
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if extra_ca_file is not None:
        try:
            context.load_verify_locations(cafile=str(extra_ca_file))
        except (OSError, ValueError) as error:
            detail = f"network.extra_ca_file holds no readable certificate: {extra_ca_file}"
            raise UsageError(Reason.CONFIGURATION_INVALID, detail) from error
    return context

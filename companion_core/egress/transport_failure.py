"""The one error of an exchange with a host: every other one is translated into it."""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from companion_core.transfer_fault import TransferFault, TransferProblem

__all__ = ["ProxyFailed", "TransportFailed", "translated"]

_UNREACHABLE: Final = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
)
# Trying again changes nothing about these.
_LASTING: Final = frozenset(
    {
        TransferFault.CERTIFICATE,
        TransferFault.TLS,
        TransferFault.PROXY_CERTIFICATE,
        TransferFault.PROXY_LOGIN,
        TransferFault.PROXY_MALFORMED,
        TransferFault.PROXY_UNSUPPORTED,
    }
)


class TransportFailed(Exception):
    """The exchange failed; `retryable` when trying again may help.

    Attributes:
        problem: what stopped it.
    """

    def __init__(self, problem: TransferProblem, *, retryable: bool) -> None:
        super().__init__("transport failed")
        self.problem = problem
        self.retryable = retryable


class ProxyFailed(OSError):
    """No connection through the proxy; it holds no address and no credential."""

    def __init__(self, fault: TransferFault) -> None:
        super().__init__("the proxy does not connect")
        self.fault = fault


@contextlib.contextmanager
def translated(*further: type[Exception]) -> Iterator[None]:
    """Raise `TransportFailed` in place of an error of the system, TLS or HTTP.

    Args:
        further: errors of a library, which mean that the answer is broken.
    """
    kinds: tuple[type[Exception], ...] = (
        OSError,
        http.client.HTTPException,
        ValueError,
        *further,
    )
    try:
        yield
    except kinds as error:
        fault = _fault_of(error)
        raise TransportFailed(TransferProblem(fault), retryable=fault not in _LASTING) from error


def _fault_of(error: Exception) -> TransferFault:
    match error:
        case ProxyFailed():
            return error.fault
        case ssl.SSLCertVerificationError():
            return TransferFault.CERTIFICATE
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | http.client.IncompleteRead():
            return TransferFault.CUT_OFF
        case ssl.SSLError():
            return TransferFault.TLS
        case socket.gaierror():
            return TransferFault.UNKNOWN_HOST
        case ConnectionRefusedError():
            return TransferFault.CONNECTION_REFUSED
        case TimeoutError():
            return TransferFault.TIMED_OUT
        case OSError(errno=number) if number in _UNREACHABLE:
            return TransferFault.UNREACHABLE
        case ConnectionError():
            return TransferFault.CUT_OFF
        case OSError() | ValueError():
            # ValueError: a host name that IDNA refuses, or a read after a deadline closed the file.
            return TransferFault.OTHER
    return TransferFault.BROKEN_ANSWER

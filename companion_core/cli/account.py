"""What `companion login` and `companion logout` share: the account of the configuration."""

from __future__ import annotations

import functools
import ssl

from companion_core.cli import Settings
from companion_core.cli.foreground import harden_process
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import Reason, UsageError
from companion_core.serving.account import Account, open_account
from companion_core.serving.own_list import plugins_of_command

__all__ = ["require_account"]

_NO_ACCOUNT = """no account is configured. What a publisher's manifest may need, write into {file}:
    [account]
    issuer = "https://login.example.org"
    client_id = "companion" """.rstrip()


def require_account(settings: Settings) -> Account:
    """Return the account; its keychain is opened when it is used.

    Raises:
        UsageError: `configuration_invalid`: there is no [account].
    """
    harden_process()
    config, paths = settings.read_config(), settings.paths
    paths.prepare()

    @functools.cache
    def context() -> ssl.SSLContext:
        return build_tls_context(config.network.extra_ca_file)

    plugins = plugins_of_command(config, paths, settings.egress, context)
    account = open_account(
        config,
        paths,
        settings.egress,
        context,
        lambda: plugins().select_keychain(config.keychain.name),
    )
    if account is None:
        detail = _NO_ACCOUNT.format(file=settings.config)
        raise UsageError(Reason.CONFIGURATION_INVALID, detail)
    return account

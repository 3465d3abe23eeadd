"""The sections of the configuration: each is a dataclass whose fields are the known keys.

A field's metadata holds its check and the rule in words. `reader` checks a document against these
tables, and the reference in docs/configuration.md is written from them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from companion_core.decisions.oauth import is_issuer
from companion_core.decisions.oauth.grammar import (
    PATH,
    has_dot_segment,
    is_printable,
    is_scope_list,
)
from companion_core.decisions.signatures import parse_public_key
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.errors import Reason, UsageError

__all__ = [
    "SECTIONS",
    "AccountConfig",
    "Config",
    "GatewayConfig",
    "KeychainConfig",
    "LimitsConfig",
    "ManifestConfig",
    "ModelConfig",
    "ModelsConfig",
    "NetworkConfig",
    "PluginsConfig",
    "RuntimeConfig",
    "is_model_id",
]

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,127}\Z")
_PLUGIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
_SINGLE: Final = "the single trusted one"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

# What to write, for a person who has neither a file nor a model.
_NO_MODEL: Final = """no model is named. Add one of your own:
    companion models add ./model.gguf
or name a publisher's in the configuration:
    [manifest]
    url = "https://models.example.org/companion/manifest.json"
    trusted_keys = ["ed25519:..."]
    [model]
    id = "..."
companion init writes such a file."""

Check = Callable[[Any], bool]


def _is_int(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _is_number(low: float, high: float) -> Check:
    return lambda value: (
        type(value) in {int, float} and math.isfinite(value) and low <= value <= high
    )


def _is_text(pattern: re.Pattern[str]) -> Check:
    return lambda value: type(value) is str and pattern.match(value) is not None


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_absolute_path(value: Any) -> bool:
    return type(value) is str and "\0" not in value and Path(value).is_absolute()


def _is_url(value: Any) -> bool:
    if type(value) is str and value.startswith("file:///"):
        return value.isascii() and "\0" not in value
    return isinstance(parse_https_url(value), HttpsUrl)


def _is_redirect_path(value: Any) -> bool:
    return (
        type(value) is str
        and value.startswith("/")
        and re.fullmatch(PATH, value) is not None
        and not has_dot_segment(value)
    )


def _is_keys(value: Any) -> bool:
    return (
        type(value) in {list, tuple}
        and bool(value)
        and all(parse_public_key(key) is not None for key in value)
    )


def _is_options(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        type(item) in {str, int, float, bool} for item in value.values()
    )


def _is_aliases(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        type(name) is str and type(of) is str and is_model_id(name) and is_model_id(of)
        for name, of in value.items()
    )


def is_model_id(value: str) -> bool:
    """Return whether `value` may be the id of a model in the manifest."""
    return _IDENTIFIER.match(value) is not None


def _key(check: Check, rule: str, default: Any = dataclasses.MISSING, *, varies: str = "") -> Any:
    """Declare a key; `varies` describes in words a default that depends on the machine."""
    metadata = {"check": check, "rule": rule, "varies": varies}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def _options(side: str) -> Any:
    """Declare the table of options that a plugin of `side` documents."""
    rule = f"a table of texts, numbers and booleans that the {side}'s plugin documents"
    metadata = {"check": _is_options, "rule": rule, "varies": ""}
    return field(default_factory=lambda: MappingProxyType({}), metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestConfig:
    """[manifest]: where the manifest is, and which keys may sign it."""

    url: str = _key(_is_url, "an https:// or file:/// address")
    trusted_keys: tuple[str, ...] = _key(_is_keys, 'a list of "ed25519:…" keys')


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountConfig:
    """[account]: who signs you in, for a publisher's manifest that asks for it."""

    issuer: str = _key(is_issuer, "the https:// address of the sign-in service, its issuer")
    client_id: str = _key(is_printable, "the name of this program at the service; it has no secret")
    scopes: tuple[str, ...] = _key(
        is_scope_list,
        "a list of scopes; no more is accepted",
        ("openid", "offline_access"),
    )
    redirect_path: str = _key(
        _is_redirect_path, "the path of the redirect address that the service knows", "/callback"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """[model]: which model is served; by default one of the person's own."""

    id: str | None = _key(
        _is_text(_IDENTIFIER),
        "the id of a model in the manifest, or of one of your own",
        None,
        varies="your default model, as `companion models default` set it, or your only one",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelsConfig:
    """[models]: your own models, besides the publisher's."""

    key_file: str | None = _key(
        _is_absolute_path,
        "an absolute path to a file for the key that signs your own models, for a machine without "
        "a keychain; COMPANION_KEY_PASSPHRASE encrypts it",
        None,
        varies="the key is in the keychain",
    )
    aliases: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}),
        metadata={
            "check": _is_aliases,
            "rule": "a table of further names, each with the id of the model that it stands for",
            "varies": "",
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """[runtime]: which plugin plans the start, and of which program."""

    name: str | None = _key(
        _is_text(_PLUGIN_NAME), "the name of a runtime plugin", None, varies=_SINGLE
    )
    binary: str | None = _key(
        lambda value: value == "embedded" or _is_absolute_path(value),
        'an absolute path, or "embedded"',
        None,
        varies="the server inside the plugin, if its extra is installed",
    )
    binary_sha256: str | None = _key(
        _is_text(_SHA256), "64 lower-case hex digits", None, varies='needed, but for "embedded"'
    )
    interpreter: str | None = _key(
        _is_absolute_path,
        "an absolute path to a Python 3.11 or newer, which runs what the companion starts",
        None,
        varies="the one that runs the companion",
    )
    context_length: int | None = _key(
        _is_int(1, 10_000_000),
        "tokens, at least 1",
        None,
        varies="what fits memory, at most the model's own; `companion status` says how much",
    )
    threads: int | None = _key(
        _is_int(1, 1024),
        "1 to 1024",
        None,
        varies="one for each core of the machine, each fast one where it has two kinds",
    )
    isolation: str = _key(
        _is_text(re.compile(r"best\Z|required\Z")), '"best" or "required"', "best"
    )
    require_gpu: bool = _key(
        _is_bool, "true or false: refuse to start what no accelerator computes", default=False
    )
    unsafe_open_backend: bool = _key(_is_bool, "true or false", default=False)
    options: Mapping[str, str | int | float | bool] = _options("runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeychainConfig:
    """[keychain]: which plugin keeps secrets; "memory" has to be named here."""

    name: str | None = _key(
        _is_text(_PLUGIN_NAME), "the name of a keychain plugin", None, varies=_SINGLE
    )
    options: Mapping[str, str | int | float | bool] = _options("keychain")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginsConfig:
    """[plugins]: code that a product vouches for, besides the code that the person trusts."""

    pins_file: str | None = _key(
        _is_absolute_path, "an absolute path to a JSON file of plugin names and digests", None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """[gateway]: the loopback front door."""

    port: int = _key(_is_int(0, 65535), "0 (chosen at the first start and kept) to 65535", 0)
    requests_per_minute: int = _key(_is_int(1, 1_000_000), "1 to 1000000", 600)
    max_in_flight: int = _key(_is_int(1, 1024), "1 to 1024", 2)
    queue_bound: int = _key(_is_int(1, 100_000), "1 to 100000", 16)
    queue_deadline_seconds: float = _key(_is_number(0.1, 3600), "0.1 to 3600 seconds", 30.0)
    first_byte_seconds: float = _key(
        _is_number(1, 86_400), "1 to 86400 seconds that an answer may take to begin", 3600.0
    )
    second_parser: bool = _key(_is_bool, "true or false: llhttp too, if installed", default=True)
    unix_socket: bool = _key(
        _is_bool, "true or false: an owner-only Unix socket too, for containers", default=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """[network]: an authority to trust besides the system's; certificates are always checked."""

    extra_ca_file: str | None = _key(_is_absolute_path, "an absolute path to a PEM file", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """[limits]: ceilings for the runtime's whole process tree."""

    max_ram_bytes: int | None = _key(
        _is_int(1, 2**62), "bytes", None, varies="three quarters of the machine's memory"
    )
    max_vram_bytes: int | None = _key(
        _is_int(1, 2**62),
        "bytes, of what all programs use of the accelerators' memory",
        None,
        varies="no ceiling",
    )
    max_cpu_percent: float = _key(_is_number(0.001, 100), "of the whole machine, up to 100", 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The configuration; without a `manifest`, only the person's own models are served."""

    manifest: ManifestConfig | None = None
    account: AccountConfig | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    keychain: KeychainConfig = field(default_factory=KeychainConfig)
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    @property
    def model_id(self) -> str:
        """The id of the model to be served.

        Raises:
            UsageError: `configuration_invalid`: none is named, and there is no default.
        """
        if self.model.id is None:
            raise UsageError(Reason.CONFIGURATION_INVALID, _NO_MODEL)
        return self.model.id


SECTIONS: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        "manifest": ManifestConfig,
        "account": AccountConfig,
        "model": ModelConfig,
        "models": ModelsConfig,
        "runtime": RuntimeConfig,
        "keychain": KeychainConfig,
        "plugins": PluginsConfig,
        "gateway": GatewayConfig,
        "network": NetworkConfig,
        "limits": LimitsConfig,
    }
)

"""The configuration: TOML in, frozen values out; anything unknown or malformed is refused.

Each section is a dataclass whose fields are the known keys; a field's metadata holds its
check. The reference in docs/configuration.md is written from these tables.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from companion_core.decisions.signatures import parse_public_key
from companion_core.decisions.source import HttpsUrl, parse_https_url
from companion_core.errors import Reason, UsageError
from companion_core.system.state_files import (
    open_ordinary,
    open_to_others,
)

__all__ = [
    "Config",
    "GatewayConfig",
    "KeychainConfig",
    "LimitsConfig",
    "ManifestConfig",
    "ModelConfig",
    "NetworkConfig",
    "PluginsConfig",
    "RuntimeConfig",
    "load_config",
    "parse_config",
    "read_document",
    "with_model",
]

MAX_CONFIG_BYTES: Final = 256 * 1024
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,127}\Z")
_PLUGIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
_SINGLE: Final = "the single trusted one"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

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


def _key(check: Check, rule: str, default: Any = dataclasses.MISSING, *, varies: str = "") -> Any:
    """Declare a key; `varies` says in words what a default is that depends on the machine."""
    metadata = {"check": check, "rule": rule, "varies": varies}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestConfig:
    """[manifest]: what is trusted, and where it is found."""

    url: str = _key(_is_url, "an https:// or file:/// address")
    trusted_keys: tuple[str, ...] = _key(_is_keys, 'a list of "ed25519:…" keys')


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """[model]: which of the manifest's models is served."""

    id: str = _key(_is_text(_IDENTIFIER), "the id of a model in the manifest")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """[runtime]: which plugin plans the start, and of what."""

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
    context_length: int | None = _key(
        _is_int(1, 10_000_000), "tokens, at least 1", None, varies="the model's own"
    )
    threads: int = _key(
        _is_int(1, 1024),
        "1 to 1024",
        max(1, min(4, (os.cpu_count() or 1) - 1)),
        varies="one less than the machine's cores, at most 4",
    )
    isolation: str = _key(
        _is_text(re.compile(r"best\Z|required\Z")), '"best" or "required"', "best"
    )
    unsafe_open_backend: bool = _key(_is_bool, "true or false", default=False)
    options: Mapping[str, str | int | float | bool] = field(
        default_factory=lambda: MappingProxyType({}),
        metadata={
            "check": _is_options,
            "rule": "a table of texts, numbers and booleans that the runtime's plugin documents",
            "varies": "",
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeychainConfig:
    """[keychain]: which plugin keeps secrets; "memory" only when asked for by name."""

    name: str | None = _key(
        _is_text(_PLUGIN_NAME), "the name of a keychain plugin", None, varies=_SINGLE
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginsConfig:
    """[plugins]: code that a product vouches for, beside what the person trusts."""

    pins_file: str | None = _key(
        _is_absolute_path, "an absolute path to a JSON file of plugin names and digests", None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """[gateway]: the loopback front door."""

    port: int = _key(_is_int(0, 65535), "0 (the system chooses) to 65535", 0)
    requests_per_minute: int = _key(_is_int(1, 1_000_000), "1 to 1000000", 600)
    max_in_flight: int = _key(_is_int(1, 1024), "1 to 1024", 2)
    queue_bound: int = _key(_is_int(1, 100_000), "1 to 100000", 16)
    queue_deadline_seconds: float = _key(_is_number(0.1, 3600), "0.1 to 3600 seconds", 30.0)
    second_parser: bool = _key(_is_bool, "true or false: llhttp too, if installed", default=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """[network]: certificate checks are never off; an authority may be added."""

    extra_ca_file: str | None = _key(_is_absolute_path, "an absolute path to a PEM file", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """[limits]: ceilings for the runtime's whole process tree."""

    max_ram_bytes: int | None = _key(
        _is_int(1, 2**62), "bytes", None, varies="three quarters of the machine's memory"
    )
    max_vram_bytes: int | None = _key(_is_int(1, 2**62), "bytes", None, varies="no ceiling")
    max_cpu_percent: float = _key(_is_number(0.001, 100), "of the whole machine, up to 100", 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a companion is started with; `manifest` and `model` have no default."""

    manifest: ManifestConfig
    model: ModelConfig
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    keychain: KeychainConfig = field(default_factory=KeychainConfig)
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)


SECTIONS: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        "manifest": ManifestConfig,
        "model": ModelConfig,
        "runtime": RuntimeConfig,
        "keychain": KeychainConfig,
        "plugins": PluginsConfig,
        "gateway": GatewayConfig,
        "network": NetworkConfig,
        "limits": LimitsConfig,
    }
)


def with_model(config: Config, model_id: str) -> Config:
    """Return the configuration for another model of the manifest.

    Raises:
        UsageError: `usage` when that is no id.
    """
    if _IDENTIFIER.match(model_id) is None:
        raise UsageError(Reason.USAGE, "--model is the id of a model in the manifest")
    return dataclasses.replace(config, model=ModelConfig(id=model_id))


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        UsageError: `configuration_invalid`; the detail names file, line and nearest key.
    """
    document, text = read_document(path)
    return parse_config(document, source=str(path), text=text)


def read_document(path: Path) -> tuple[dict[str, Any], str]:
    """Read a configuration file, and return its sections unchecked and its source.

    Raises:
        UsageError: `configuration_invalid`.
    """
    try:
        with open_ordinary(path) as file:
            if os.name == "posix" and open_to_others(os.fstat(file.fileno())):
                raise _invalid(f"{path}: others can change it, and with it what is trusted")
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise _invalid(f"{path}: there is no such file; name one with --config") from error
    except OSError as error:
        raise _invalid(f"{path}: it cannot be read") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise _invalid(f"{path}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        text = raw.decode("utf-8")
        return tomllib.loads(text), text
    except UnicodeDecodeError as error:
        raise _invalid(f"{path}: not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise _invalid(f"{path}: {error}") from error
    except RecursionError as error:
        raise _invalid(f"{path}: nested too deeply") from error


def parse_config(
    document: Mapping[str, Any], *, source: str = "configuration", text: str = ""
) -> Config:
    """Check a parsed document and return the configuration.

    Args:
        document: sections and their keys, as a TOML parser returns them.
        source: what messages call it.
        text: the document's source, to name lines; "" names none.

    Raises:
        UsageError: `configuration_invalid`.
    """
    sections: dict[str, Any] = {}
    for name, table in document.items():
        if name not in SECTIONS:
            raise _invalid(_unknown(source, text, (name,), SECTIONS))
        if not isinstance(table, Mapping):
            raise _invalid(f"{_where(source, text, (name,))}: [{name}] is a section")
        sections[name] = _parse_section(name, table, source, text)
    for name in ("manifest", "model"):
        if name not in sections:
            raise _invalid(f"{source}: [{name}] is missing")
    return Config(**sections)


def _parse_section(name: str, table: Mapping[str, Any], source: str, text: str) -> Any:
    section = SECTIONS[name]
    fields = {known.name: known for known in dataclasses.fields(section)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise _invalid(_unknown(source, text, (name, key), fields))
        if not fields[key].metadata["check"](value):
            rule = fields[key].metadata["rule"]
            raise _invalid(f"{_where(source, text, (name, key))}: {name}.{key} must be {rule}")
        values[key] = _frozen(value)
    for key, known in fields.items():
        required = (
            known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING
        )
        if required and key not in values:
            raise _invalid(f"{_where(source, text, (name,))}: {name}.{key} is missing")
    return section(**values)


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping):
        return MappingProxyType(dict(value))
    return value


def _invalid(detail: str) -> UsageError:
    return UsageError(Reason.CONFIGURATION_INVALID, detail)


def _unknown(source: str, text: str, path: tuple[str, ...], known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(known)}"
    return f"{_where(source, text, path)}: unknown key {'.'.join(path)}{hint}"


def _where(source: str, text: str, path: tuple[str, ...]) -> str:
    """Name file and line of a key; the TOML parser keeps no positions."""
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if header := re.match(r"\[\s*([^\[\]]+?)\s*\]", stripped):
            section = header[1]
            if len(path) == 1 and section == path[0]:
                return f"{source}:{number}"
            continue
        written = path[-1:] if section and section == ".".join(path[:-1]) else path
        dotted = r"\s*\.\s*".join(rf"""["']?{re.escape(part)}["']?""" for part in written)
        if (not section or written != path) and re.match(rf"{dotted}\s*[.=]", stripped):
            return f"{source}:{number}"
    return source

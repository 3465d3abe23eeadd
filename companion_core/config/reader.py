"""The configuration: TOML in, frozen values out; anything unknown or malformed is refused.

The known sections and keys are the tables of `sections`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from companion_core.config.sections import SECTIONS, Config, ModelConfig, is_model_id
from companion_core.errors import Reason, UsageError
from companion_core.system.state_files import open_ordinary, open_to_others

__all__ = ["load_config", "parse_config", "read_document", "with_interpreter", "with_model"]

MAX_CONFIG_BYTES: Final = 256 * 1024


def with_model(config: Config, model_id: str) -> Config:
    """Return the configuration for another model of the manifest.

    Raises:
        UsageError: `usage` if `model_id` is malformed.
    """
    if not is_model_id(model_id):
        raise UsageError(Reason.USAGE, "--model is the id of a model in the manifest")
    return dataclasses.replace(config, model=ModelConfig(id=model_id))


def with_interpreter(config: Config, program: str) -> Config:
    """Return the configuration for another interpreter.

    Raises:
        UsageError: `configuration_invalid` if `program` is no absolute path.
    """
    given = _parse_section("runtime", {"interpreter": program}, "Companion.open", "")
    runtime = dataclasses.replace(config.runtime, interpreter=given.interpreter)
    return dataclasses.replace(config, runtime=runtime)


def load_config(path: Path, *, named: bool = True) -> Config:
    """Read and check a configuration file.

    Args:
        path: of the file.
        named: the person named it; the default one may be absent, and then every default holds.

    Raises:
        UsageError: `configuration_invalid`; the detail names file, line and nearest key.
    """
    if not (named or os.path.lexists(path)):
        return Config()
    document, text = read_document(path)
    return parse_config(document, source=str(path), text=text)


def read_document(path: Path) -> tuple[dict[str, Any], str]:
    """Read a configuration file; return its sections, unchecked, and its text.

    Raises:
        UsageError: `configuration_invalid`.
    """
    try:
        with open_ordinary(path) as file:
            if os.name == "posix" and open_to_others(os.fstat(file.fileno()), file.fileno()):
                raise _invalid(f"{path}: others can change it, and with it what is trusted")
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        way_on = "name another with --config, or have companion init write it"
        raise _invalid(f"{path}: there is no such file; {way_on}") from error
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
        source: the name of the document in messages.
        text: the document's source, for the line numbers in messages; "" names no line.

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
    """Return file and line of a key, searched in the text: the TOML parser keeps no positions."""
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

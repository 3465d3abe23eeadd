"""A situation for the doctor's checks, with doubles at every boundary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from companion_core.config.paths import InstancePaths
from companion_core.config.reader import parse_config
from companion_core.doctor.checks import PluginSurvey, Situation
from companion_core.doctor.findings import Finding, Row, Section
from companion_core.egress.live import LiveEgress
from companion_core.errors import Reason

PUBLIC_KEY = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="  # RFC 8032, section 7.1

ANSWERS: dict[str, Any] = {
    "keychain": {
        "plugin": "vault",
        "reason": "ok",
        "detail": "",
        "device_only": True,
        "session_bound": True,
        "proved": True,
    },
    "runtime": {
        "plugin": "lamp",
        "reason": "ok",
        "detail": "",
        "binaries": [["embedded", "lamp, embedded", "1.0"], ["/usr/bin/lamp", "lamp", ""]],
        "channels": ["unix"],
        "formats": ["gguf"],
        "env_names": ["LAMP_KEY"],
        "child_env_names": ["LAMP_CHILD"],
        "option_names": [],
    },
}


def make_situation(folder: Path, **changes: Any) -> Situation:
    fields: dict[str, Any] = {
        "paths": InstancePaths(folder / "state"),
        "config_file": lambda: folder / "companion.toml",
        "origins": {},
        "environ": {},
        "egress": LiveEgress(),
        "survey": make_survey,
    }
    return Situation(**{**fields, **changes})


def make_config(**sections: Any) -> Any:
    base = {
        "manifest": {
            "url": "https://models.example.org/manifest.json",
            "trusted_keys": [PUBLIC_KEY],
        },
        "model": {"id": "tiny"},
    }
    return parse_config({**base, **sections})


def make_survey(
    *documents: dict[str, Any], reason: Reason = Reason.OK, answers: Any = ANSWERS
) -> PluginSurvey:
    return PluginSurvey(documents=documents, store_reason=reason, answers=answers)


def plugin(name: str, reason: str = "ok", **changes: Any) -> dict[str, Any]:
    document = {
        "name": name,
        "state": "registered" if reason == "ok" else "found",
        "reason": reason,
        "detail": "",
        "side": "runtime",
        "distribution": f"companion-runtime-{name}",
        "version": "0.1.0",
        "module": name,
        "digest": "d" * 64,
        "editable": False,
        "core": False,
        "hooks": ["companion_spawn"],
        "selected_for": [],
        "fix": "" if reason == "ok" else f"companion plugins trust {name}",
    }
    return {**document, **changes}


def make_row(id_: str, finding: Finding, section: Section = Section.MACHINE) -> Row:
    return Row(id=id_, title=id_, section=section, finding=finding)


STATUS: dict[str, Any] = {
    "available": True,
    "reason": "ok",
    "lifecycle": "ready",
    "pid": os.getpid(),
    "gateway": {"url": "http://127.0.0.1:1/v1"},
    "runtime": {
        "name": "lamp",
        "pid": os.getpid(),
        "channel": "unix",
        "isolation": "none",
        "ceilings": "observed",
    },
    "model": {"id": "tiny", "verified": True},
    "admission": {"in_flight": 0, "max_in_flight": 2, "queued": 0, "queue_bound": 16},
    "resources": {"ram_bytes": 10, "vram_bytes": 0, "cpu_percent": 0.1},
    "last_health_ok_seconds_ago": 1.0,
}


def situation_of(folder: Path, **changes: Any) -> Situation:
    """Return a situation in which a companion with this status runs."""
    situation = make_situation(folder)
    situation.status = {**STATUS, **changes}
    situation.plugins = make_survey()
    return situation

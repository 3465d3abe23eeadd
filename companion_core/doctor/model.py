"""Checks of the manifest and the stored models; they only read."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Final

from companion_core.authority.current_manifest import current_manifest
from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.authority.personal_manifest import claimed_ids
from companion_core.decisions.integrity import ModelSpec, parse_model_spec
from companion_core.doctor.checks import Check, Situation
from companion_core.doctor.configuration import require_config
from companion_core.doctor.findings import Finding, Section, broken, fine, skipped
from companion_core.doctor.state import ACCESS
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import CompanionError, Reason
from companion_core.models.proof import Prover
from companion_core.system.clock import wall_now

__all__ = ["checks"]

MANIFEST_SECONDS: Final = 30.0
MODELS_SECONDS: Final = 300.0
_DAY: Final = 86400
_STORED = re.compile(r"[0-9a-f]{64}")


def check_manifest(situation: Situation) -> Finding:
    """Fetch the manifest from its configured address, and judge it as a start would (I-02)."""
    config = require_config(situation)
    if config.manifest is None:
        return skipped(Reason.MANIFEST_UNAVAILABLE, "no publisher's manifest is configured")
    now = wall_now()
    current = current_manifest(
        config.manifest.url,
        egress=situation.egress,
        context=build_tls_context(config.network.extra_ca_file),
        trusted_keys=config.manifest.trusted_keys,
        memory=ManifestMemory.of(situation.paths, remember=False),  # it looks, and accepts nothing
        wall_now=now,
        cancelled=situation.cancelled,
    )
    situation.manifest = manifest = current.manifest
    days = (manifest.expires - now) / _DAY
    about = f"version {manifest.version}, signed by a trusted key, {days:.1f} days left"
    if current.is_stored:
        about += "; the stored one, because its host does not answer"
    wanted, own = config.model_id, claimed_ids(situation.paths.own_manifest)
    if wanted not in {*own, *(model.id for model in manifest.models)}:
        return broken(Reason.MODEL_NOT_IN_MANIFEST, f"{about}; it has no {wanted}")
    return fine(f"{about}, {len(manifest.models)} models")


def check_models(situation: Situation) -> Finding:
    """Hash every stored file again: its name is its SHA-256 (I-01)."""
    stored = _stored(situation.paths.models)
    if not stored:
        return skipped(Reason.NOT_VERIFIED, "no model is stored yet", fix="companion up")
    wrong: list[Reason] = []
    for path in stored:
        spec = parse_model_spec(path.name, path.lstat().st_size)
        if not isinstance(spec, ModelSpec):
            wrong.append(spec.reason)
            continue
        prover = Prover(spec, situation.cancelled, lambda _descriptor, _pause: False)
        try:
            prover.prove(path).discard()
        except CompanionError as error:
            wrong.append(error.reason)
    about = f"{len(stored)} files, {sum(path.lstat().st_size for path in stored) / 1e6:.1f} MB"
    if wrong:
        detail = f"{len(wrong)} of {about} are not what their names say; a start fetches them again"
        return broken(wrong[0], detail, fix="companion up")
    return fine(f"{about}, each is what its name says{_configured(situation)}")


def _stored(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _STORED.fullmatch(path.name))


def _configured(situation: Situation) -> str:
    """Say whether the configured model is among them, as far as the manifest is known."""
    if situation.config is None or situation.manifest is None:
        return ""
    wanted = situation.config.model_id
    files = [f for model in situation.manifest.models if model.id == wanted for f in model.files]
    missing = [f for f in files if not (situation.paths.models / f.sha256).exists()]
    return f"; {wanted} is {'not all there' if missing else 'among them'}"


def checks() -> tuple[Check, ...]:
    """Return the checks of this file."""
    check = partial(Check, section=Section.MODEL)
    return (
        check(
            id="manifest",
            title="manifest",
            run=check_manifest,
            needs=("configuration",),
            seconds=MANIFEST_SECONDS,
        ),
        check(
            id="models",
            title="stored models",
            run=check_models,
            needs=(ACCESS,),
            seconds=MODELS_SECONDS,
        ),
    )

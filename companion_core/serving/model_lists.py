"""The lists that vouch for models: a publisher's manifest, and the person's own, side by side.

An id stands for one model. If both lists have it, nothing says which one is meant, and it is
refused by name.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from companion_core.authority.current_manifest import CurrentManifest, current_manifest
from companion_core.authority.manifest_fetch import AccessTokens, ManifestUnreachable
from companion_core.authority.manifest_memory import ManifestMemory
from companion_core.authority.personal_manifest import PersonalManifest
from companion_core.config.paths import InstancePaths
from companion_core.config.sections import Config
from companion_core.decisions.manifest import Manifest, ManifestModel
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError, Reason, Refused

__all__ = ["FoundModel", "ModelLists"]

_SHOWN_IDS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model, and the list that vouches for it.

    Attributes:
        manifest: that `model` is of.
        publisher: how a publisher's manifest was obtained; None for the person's own.
    """

    model: ManifestModel
    manifest: Manifest
    publisher: CurrentManifest | None = None

    @property
    def vouched_by(self) -> ManifestKind:
        """Who says that these bytes are the model."""
        return self.manifest.kind


class ModelLists:
    """Finds a model in the lists that a person has. Blocking.

    Args:
        config: says where the publisher's manifest is, if there is one.
        paths: of what is remembered of manifests.
        egress: the doorway to the machine.
        context: how servers are verified.
        own: the person's own list.
        clock: seconds of the wall clock.
        tokens: for a publisher's host that asks for a sign-in.
    """

    def __init__(
        self,
        config: Config,
        paths: InstancePaths,
        egress: Egress,
        context: ssl.SSLContext,
        own: PersonalManifest,
        *,
        clock: Callable[[], float],
        tokens: AccessTokens | None = None,
    ) -> None:
        self._config = config
        self._paths = paths
        self._egress = egress
        self._context = context
        self._own = own
        self._clock = clock
        self._tokens = tokens

    def find(self, model_id: str, cancelled: threading.Event) -> FoundModel:
        """Return the model of that id.

        A publisher whose host is silent, and of whom nothing is stored, does not keep the person
        from a model of their own; nor does their own list, if it has expired or its key is gone,
        keep them from a publisher's model whose id it does not claim.

        Raises:
            Refused: `model_id_taken` if both lists have it, `model_not_in_manifest` if neither
                has; or with the reason of the rule that a list breaks.
            EnvironmentUnavailable: a list cannot be had: `manifest_unavailable`,
                `personal_key_missing`, or a keychain's reason.
        """
        trouble: CompanionError | None = None
        try:
            own = self._own.read().manifest
        except CompanionError as error:
            if self._config.manifest is None or self._own.claims(model_id):
                raise
            own, trouble = None, error
        mine = None if own is None else _find(own, model_id)
        if self._config.manifest is None:
            current = None
        else:
            try:
                current = self.publisher(cancelled)
            except ManifestUnreachable:
                if mine is None:
                    raise
                current = None
        theirs = None if current is None else _find(current.manifest, model_id)
        if mine is not None and theirs is not None:
            raise Refused(Reason.MODEL_ID_TAKEN, model_id)
        if own is not None and mine is not None:
            return FoundModel(model=mine, manifest=own)
        if current is not None and theirs is not None:
            return FoundModel(model=theirs, manifest=current.manifest, publisher=current)
        if trouble is not None:
            raise trouble
        raise Refused(Reason.MODEL_NOT_IN_MANIFEST, _known(own, current))

    def publisher(self, cancelled: threading.Event) -> CurrentManifest | None:
        """Return the publisher's manifest, as it is now or was accepted last; None without one.

        Raises:
            CompanionError: as `find`.
        """
        section = self._config.manifest
        if section is None:
            return None
        return current_manifest(
            section.url,
            egress=self._egress,
            context=self._context,
            trusted_keys=section.trusted_keys,
            memory=ManifestMemory.of(self._paths),
            wall_now=self._clock(),
            cancelled=cancelled,
            tokens=self._tokens,
        )


def _find(manifest: Manifest, model_id: str) -> ManifestModel | None:
    return next((model for model in manifest.models if model.id == model_id), None)


def _known(own: Manifest | None, current: CurrentManifest | None) -> str:
    told = []
    if current is not None:
        told.append(f"the manifest has {_ids(current.manifest)}")
    if own is not None:
        told.append(f"your own models are {_ids(own)}")
    return "; ".join(told) or "you have no model of your own yet: companion models add ./model.gguf"


def _ids(manifest: Manifest) -> str:
    ids = [model.id for model in manifest.models]
    more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return f"{', '.join(ids[:_SHOWN_IDS])}{more}"

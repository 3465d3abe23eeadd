"""What a shell may suggest for a word: ids and names that are known on this machine.

Read from stored files alone, quickly and without a network, and with no secret among them. Nothing
is decided by it, so a model's list is read without its signature; the command proves it. Whatever
goes wrong, there is nothing to suggest.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from companion_core.config.paths import DEFAULT_INSTANCE, InstancePaths, default_state_dir
from companion_core.errors import CompanionError

__all__ = ["client_names", "instances", "model_ids", "model_sources", "plugin_names"]

_MAX_BYTES: Final = 512 * 1024

Suggest = Callable[[click.Context, click.Parameter, str], list[Any]]


def _suggest(names: Callable[[InstancePaths], Iterable[str]]) -> Suggest:
    def suggest(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[Any]:
        with contextlib.suppress(CompanionError, OSError, ValueError):
            found = sorted(set(names(_paths(ctx))))
            return [name for name in found if name.startswith(incomplete)]
        return []

    return suggest


def _paths(ctx: click.Context) -> InstancePaths:
    """Return the folders of the instance that the words before this one choose."""
    chosen: dict[str, Any] = {}
    context: click.Context | None = ctx
    while context is not None:  # an option counts where it was given last
        for name in ("state_dir", "instance"):
            if context.params.get(name) is not None:
                chosen.setdefault(name, context.params[name])
        context = context.parent
    root = chosen.get("state_dir") or default_state_dir()
    return InstancePaths(Path(root).absolute(), chosen.get("instance", DEFAULT_INSTANCE))


def _model_ids(paths: InstancePaths) -> Iterator[str]:
    from companion_core.config.sections import is_model_id  # noqa: PLC0415 - when a word is asked for

    for path in (paths.own_manifest, *sorted(paths.manifests.glob("*.json"))):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            with path.open("rb") as file:
                envelope = json.loads(file.read(_MAX_BYTES))
            for model in json.loads(base64.b64decode(envelope["payload"]))["models"]:
                if is_model_id(model["id"]):
                    yield model["id"]


def _client_names(paths: InstancePaths) -> Iterator[str]:
    from companion_core.authority.client_keys import ClientKeyFile  # noqa: PLC0415 - when a word is asked for
    from companion_core.system.clock import wall_now  # noqa: PLC0415

    yield from (key.name for key in ClientKeyFile(paths.client_keys, clock=wall_now).read())


def _plugin_names(paths: InstancePaths) -> Iterator[str]:
    from companion_core.plugin_host import TrustStore, find_plugins  # noqa: PLC0415 - when a word is asked for

    yield from (found.name for found in find_plugins())
    yield from TrustStore(paths.plugin_store).read().trusted


def _instances(paths: InstancePaths) -> Iterator[str]:
    yield from (folder.name for folder in (paths.root / "instances").iterdir() if folder.is_dir())


model_ids = _suggest(_model_ids)
client_names = _suggest(_client_names)
plugin_names = _suggest(_plugin_names)
instances = _suggest(_instances)


def model_sources(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[Any]:
    """Suggest ids of models, and let the shell add names of files."""
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - when a word is asked for

    # First: in bash it takes away what was suggested before it.
    ids = map(CompletionItem, model_ids(ctx, parameter, incomplete))
    return [CompletionItem(incomplete, type="file"), *ids]

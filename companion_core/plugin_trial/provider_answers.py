"""Asks the selected keychain and runtime what they find on this machine; runs in the trial.

The keychain's test value has accounts of its own, so that it never meets the test value of a
companion that starts in the same moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from companion_core.authority.keychain import GuardedKeychain
from companion_core.errors import CompanionError, Reason
from companion_core.plugin_host import LoadedPlugins, call_provider_sync, rebuild_binaries
from companion_core.providers import CannotPlan
from companion_core.serving.assembly import LOCATE_SECONDS

__all__ = ["ask_providers"]

_ACCOUNTS: Final = "doctor"


def ask_providers(
    loaded: LoadedPlugins, instance: str, *, runtime: str | None, keychain: str | None
) -> dict[str, Any]:
    """Return for `keychain` and `runtime` a reason, what it is about, and what was answered.

    Args:
        loaded: the plugins, loaded in this process.
        instance: the keychain scope of the companion; its own accounts are not touched.
        runtime: the configured runtime, if any.
        keychain: the configured keychain, if any.
    """
    return {
        "keychain": _contained(_ask_keychain, loaded, keychain, instance),
        "runtime": _contained(_ask_runtime, loaded, runtime),
    }


def _contained(question: Any, *arguments: object) -> Mapping[str, Any]:
    answer: dict[str, Any] = {"plugin": "", "reason": Reason.OK.value, "detail": ""}
    try:
        question(answer, *arguments)
    except (CompanionError, CannotPlan) as error:
        answer["reason"] = error.reason.value
        answer["detail"] = getattr(error, "detail", "")
    except Exception:  # noqa: BLE001 - a fault is reported, and the other provider is still asked
        answer["reason"] = Reason.PLUGIN_CALL_FAILED.value
    return answer


def _ask_keychain(
    answer: dict[str, Any], loaded: LoadedPlugins, configured: str | None, instance: str
) -> None:
    answer |= {"device_only": None, "session_bound": False, "proved": False}
    chosen = loaded.select_keychain(configured)
    answer["plugin"] = chosen.plugin
    guarded = GuardedKeychain(
        chosen.provider, instance=f"{instance}/{_ACCOUNTS}", plugin=chosen.plugin
    )
    status = guarded.status()
    answer |= {
        "reason": status.reason.value,
        "device_only": status.device_only,
        "session_bound": status.session_bound,
    }
    if status.ok:  # else the store could prompt the person
        guarded.prove()
        answer["proved"] = True


def _ask_runtime(answer: dict[str, Any], loaded: LoadedPlugins, configured: str | None) -> None:
    lists = ("binaries", "channels", "formats", "env_names", "child_env_names", "option_names")
    answer |= {name: [] for name in lists}
    spawn = loaded.select_runtime(configured).spawn
    answer["plugin"] = spawn.plugin
    for name in lists[1:]:
        answer[name] = sorted(getattr(spawn.provider, name))
    found = rebuild_binaries(
        call_provider_sync(spawn.plugin, spawn.provider.locate, seconds=LOCATE_SECONDS)
    )
    if found is None:
        answer["reason"] = Reason.PLUGIN_RESULT_INVALID.value
        return
    answer["binaries"] = [[each.path, each.label, each.version or ""] for each in found]

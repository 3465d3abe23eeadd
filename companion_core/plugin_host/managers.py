"""The sealed plugin managers: plugins register plain hooks, and none is added after loading.

In a hook chain the wrapper of one plugin could turn the refusal of another into an approval.
So no wrapper, ordering or alias is accepted, and each implementation is called on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pluggy

from companion_core.hookspecs import (
    AUTHORITY_GROUP,
    PROJECT_NAME,
    RUNTIME_GROUP,
    AuthorityHooks,
    RuntimeHooks,
)

__all__ = ["SealedPluginManager", "sealed_managers"]

_RESERVED_OPTIONS: Final = (
    "wrapper",
    "hookwrapper",
    "tryfirst",
    "trylast",
    "optionalhook",
    "specname",
)


class SealedPluginManager(pluggy.PluginManager):
    """Holds the plugins of one entry-point group; `specification` is the class of its hooks."""

    def __init__(self, specification: type) -> None:
        super().__init__(PROJECT_NAME)
        self.add_hookspecs(specification)
        self._hook_names = frozenset(vars(self.hook))
        self._closed = False

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Refuse any option by which a plugin would affect another plugin's implementation.

        Raises:
            pluggy.PluginValidationError: an option of pluggy that the core reserves, or a
                hook of the other side or of no side at all.
        """
        options = super().parse_hookimpl_opts(plugin, name)
        if options is None:
            return None
        if any(options.get(option) for option in _RESERVED_OPTIONS):
            raise pluggy.PluginValidationError(plugin, "hook options are reserved to the core")
        if name not in self._hook_names:
            raise pluggy.PluginValidationError(plugin, "not a hook of this group")
        return options

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        """Register a plugin; if any part of it is refused, all of it is.

        Raises:
            pluggy.PluginValidationError: see `parse_hookimpl_opts`; also for a plugin without
                a hook, and for every plugin once the manager is sealed.
        """
        if self._closed:
            raise pluggy.PluginValidationError(plugin, "the plugins are already loaded")
        registered = super().register(plugin, name)
        if not self.get_hookcallers(plugin):
            self.unregister(plugin)
            raise pluggy.PluginValidationError(plugin, "no hook is implemented")
        return registered

    def seal(self) -> None:
        """Check that no hook is unknown, and refuse every later registration."""
        self.check_pending()
        self._closed = True

    def hooks_of(self, plugin: Any) -> tuple[str, ...]:
        """Return the names of the hooks that `plugin` implements, sorted."""
        return tuple(sorted(caller.name for caller in self.get_hookcallers(plugin) or ()))

    def call_singly(self, plugin: Any, hook: str, arguments: Mapping[str, object]) -> object:
        """Return what `plugin` alone answers to `hook`; None when it answers nothing.

        An implementation takes those of the arguments that it names.
        """
        others = [other for other in self.get_plugins() if other is not plugin]
        answers = self.subset_hook_caller(hook, others)(**arguments)
        return answers[0] if answers else None


def sealed_managers() -> dict[str, SealedPluginManager]:
    """Return an empty manager, not sealed yet, for each of the two groups."""
    return {
        AUTHORITY_GROUP: SealedPluginManager(AuthorityHooks),
        RUNTIME_GROUP: SealedPluginManager(RuntimeHooks),
    }

"""The facts on each plugin for `companion plugins`: from the inventory, the store and a trial."""

from __future__ import annotations

import os
import shlex
from typing import Any, Final

from companion_core.cli import Settings
from companion_core.config.sections import Config
from companion_core.errors import (
    REASONS,
    CompanionError,
    EnvironmentUnavailable,
    Reason,
    UsageError,
    error_for,
)
from companion_core.plugin_host import (
    FoundPlugin,
    PluginState,
    State,
    TrustBook,
    TrustRecord,
    TrustStore,
    first_party_releases,
    judge_found,
    parse_narrow,
    read_pins,
    record_of,
    survey_plugins,
)
from companion_core.plugin_trial.trial import Trial, row_of

__all__ = ["CORE_NAMES", "PluginCatalog"]

CORE_NAMES: Final = frozenset({"https", "memory", "process"})

Document = dict[str, Any]
_SHOWN_STRAYS: Final = 8


class PluginCatalog:
    """Every installed plugin and what is known of it without importing it in this process.

    Attributes:
        store: the file of the plugins that the person trusts.
        book: the file's content.
        store_reason: why the file could not be read, else `ok`.
        plugins: each plugin as found, and its state.
        answers: what the selected providers said, once `documents` has asked them.
    """

    def __init__(self, settings: Settings, *, strict: bool = True) -> None:
        """Read the inventory and the store.

        Args:
            settings: of the command line.
            strict: raise if the store cannot be read; else go on and trust no plugin.
        """
        self._settings = settings
        self._config = self._load_config()
        self.store = TrustStore(settings.paths.plugin_store)
        self.store_reason = Reason.OK
        self.book = TrustBook()
        self.answers: Document | None = None
        try:
            self.book = self.store.read()
        except CompanionError as error:
            if strict:
                raise
            self.store_reason = error.reason
        pins_file = None if self._config is None else self._config.plugins.pins_file
        self.plugins = survey_plugins(
            trusted=self.book.trusted,
            pins=read_pins(pins_file),
            narrow=parse_narrow(os.environ.get("COMPANION_PLUGINS")),
            reserved=CORE_NAMES,
        )

    def only(self, name: str) -> tuple[FoundPlugin, PluginState]:
        """Return the one plugin of this name.

        Raises:
            CompanionError: `plugin_not_found`, `plugin_duplicate`.
        """
        claims = [(found, state) for found, state in self.plugins if state.name == name]
        if not claims:
            raise EnvironmentUnavailable(Reason.PLUGIN_NOT_FOUND, name)
        if claims[0][1].reason is Reason.PLUGIN_DUPLICATE:
            raise refusal(claims[0][1])
        return claims[0]

    def judge_with(self, record: TrustRecord) -> Reason:
        """Return the verdict on the plugin of `record` if the person trusted it."""
        found = [plugin for plugin, _ in self.plugins]
        reasons = judge_found(
            found,
            first_party=first_party_releases(),
            trusted={**self.book.trusted, record.name: record},
            reserved=CORE_NAMES,
        )
        return next(r for p, r in zip(found, reasons, strict=True) if p.name == record.name)

    def trial(self, *more: TrustRecord) -> Trial:
        """Return a trial with the stored records, `more` and the configuration, if there is one."""
        config = self._config
        pinned = {found.name: record_of(found) for found, state in self.plugins if state.pinned}
        return Trial(
            egress=self._settings.egress,
            records=[*{**self.book.trusted, **pinned}.values(), *more],
            runtime=None if config is None else config.runtime.name,
            keychain=None if config is None else config.keychain.name,
            keychain_options={} if config is None else config.keychain.options,
        )

    def _load_config(self) -> Config | None:
        try:
            return self._settings.read_config()
        except UsageError:
            return None  # other commands report a wrong configuration

    def documents(self, *, ask: str | None = None) -> list[Document]:
        """Return what is known of each plugin; the core's own come last.

        Args:
            ask: the keychain scope for which the selected providers are asked; None asks none.
        """
        rows, core = self._outcomes(ask)
        return [
            *(self._document(found, state, rows.get(state.name)) for found, state in self.plugins),
            *(_core_document(row) for row in core),
        ]

    def _outcomes(self, ask: str | None) -> tuple[dict[str, Document], list[Document]]:
        """Return how far each trusted plugin got in a child, and the rows of the core's own.

        If a child with all of them gives no report, each is tried in a child of its own. That
        shows which plugin is at fault, and the providers are chosen from the others.
        """
        names = [state.name for _, state in self.plugins if state.state is State.TRUSTED]
        trial = self.trial()
        report = trial.run(names, ask=ask)
        if report is not None:
            rows = {name: row_of(report, name) for name in names}
        else:
            rows = {name: row_of(trial.run([name]), name) for name in names}
            sound = [name for name, row in rows.items() if row["reason"] == Reason.OK.value]
            report = trial.run(sound, ask=ask) or trial.run([]) or {"plugins": []}
        self.answers = report.get("answers")
        return rows, [row for row in report["plugins"] if row["core"]]

    def _document(self, found: FoundPlugin, state: PluginState, row: Document | None) -> Document:
        check = self.book.checked.get(state.name)
        document: Document = {
            "name": state.name,
            "state": state.state.value,
            "reason": state.reason.value,
            "detail": state.detail,
            "side": state.group.split(".")[1],
            "distribution": state.distribution,
            "version": state.version,
            "module": state.module,
            "digest": state.digest,
            "editable": state.editable,
            "pinned": state.pinned,
            "core": False,
            "changes": list(state.changes),
            "files": [file.path for file in found.files],
            "hooks": [],
            "selected_for": [],
            "conformance": None,
        }
        if check is not None and check.digest == state.digest:
            usable = check.reason == Reason.OK.value
            document["conformance"] = {
                "kit": check.kit,
                "result": "failed" if check.failure else "passed" if usable else "incomplete",
                "rule": check.failure,
                "untried": list(check.untried),
            }
        if row is not None:
            document |= {key: row[key] for key in ("state", "reason", "detail", "hooks")}
            document["selected_for"] = row["selected_for"]
        reason = Reason(document["reason"])
        document["advice"] = "" if reason is Reason.OK else REASONS[reason].advice
        document["fix"] = _fix(reason, found)
        return document


def refusal(state: PluginState) -> CompanionError:
    """Return the exception for a plugin that was refused in this state."""
    return refusal_of(state.reason, state.name, state.detail)


def refusal_of(reason: Reason, name: str, detail: str = "") -> CompanionError:
    """Return the exception for a plugin; its detail names the plugin."""
    return error_for(reason, ": ".join(filter(None, [name, detail])), plugin=name)


def _core_document(row: Document) -> Document:
    empty: Document = {"detail": "", "module": "", "digest": None, "changes": []}
    empty |= {"editable": False, "pinned": False}
    return {
        **empty,
        **{key: row[key] for key in ("name", "state", "reason", "distribution", "version")},
        "side": row["group"].split(".")[1],
        "core": True,
        "files": [],
        "hooks": row["hooks"],
        "selected_for": row["selected_for"],
        "conformance": None,
        "advice": "",
        "fix": "",
    }


def _fix(reason: Reason, plugin: FoundPlugin) -> str:
    """Return the command that removes `reason`; "" if no single command does."""
    trust = f"companion plugins trust {plugin.name}"
    untrust = f"companion plugins untrust {plugin.name}"
    uninstall = f"pip uninstall {plugin.distribution}"
    reinstall = f"pip install --force-reinstall --no-deps {plugin.distribution}"
    if plugin.editable:
        trust += " --editable"
    return {
        Reason.PLUGIN_UNTRUSTED: trust,
        Reason.PLUGIN_CHANGED: trust if plugin.intact else _remove(plugin) or reinstall,
        Reason.PLUGIN_EDITABLE: trust,
        Reason.PLUGIN_DUPLICATE: uninstall,
        Reason.PLUGIN_FOREIGN_MODULE: uninstall,
        Reason.PLUGIN_BOTH_SIDES: uninstall,
        Reason.PLUGIN_NARROWED: "unset COMPANION_PLUGINS",
        Reason.PLUGIN_IMPORT_FAILED: reinstall,
        Reason.PLUGIN_REGISTRATION_REFUSED: untrust,
        Reason.PLUGIN_CALL_FAILED: untrust,
        Reason.PLUGIN_RESULT_INVALID: untrust,
    }.get(reason, "")


def _remove(plugin: FoundPlugin) -> str:
    """Return the command that removes the code which is not of the distribution; "" for none."""
    listed = {file.path for file in plugin.files}
    strays = [path for path in plugin.strays if path not in listed][:_SHOWN_STRAYS]
    if not strays or not all(map(str.isprintable, strays)):
        return ""  # byte code that is listed goes with the distribution, and comes back with it
    paths = [os.path.join(plugin.root, *path.split("/")) for path in strays]  # noqa: PTH118 - text for a person
    if os.name == "posix":
        return " ".join(["rm", *map(shlex.quote, paths)])
    return " ".join(["del", *(f'"{path}"' for path in paths)])

"""Start a child that imports plugins (`plugin_trial.child`), with a deadline; read its report."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Final

from companion_core.egress.interface import Egress
from companion_core.errors import REASONS, Culprit, EnvironmentUnavailable, Reason
from companion_core.plugin_host import State, TrustRecord
from companion_core.providers import OptionValue
from companion_core.system.interpreter import running_interpreter
from companion_core.system.stop_signals import stop_signals_wait

__all__ = ["CHECK_SECONDS", "LOAD_SECONDS", "Trial", "row_of"]

LOAD_SECONDS: Final = 30.0
CHECK_SECONDS: Final = 180.0
_MAX_REPORT_BYTES: Final = 4 * 1024 * 1024
_BINARY_FACTS: Final = 3  # path, label, version
_MODULE: Final = "companion_core.plugin_trial.child"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What every child is told; each call of `run` starts another child.

    Attributes:
        records: the trust that the child applies.
        runtime: the configured runtime, from which the child tells what would be selected.
        keychain: the configured keychain, for the same purpose.
        keychain_options: what the configuration has for it.
    """

    egress: Egress
    records: Sequence[TrustRecord]
    runtime: str | None = None
    keychain: str | None = None
    keychain_options: Mapping[str, OptionValue] = field(
        default_factory=lambda: MappingProxyType({}), repr=False
    )

    def run(
        self,
        names: Sequence[str],
        *,
        check: str | None = None,
        ask: str | None = None,
        seconds: float = LOAD_SECONDS,
    ) -> dict[str, Any] | None:
        """Return the report on the plugins of these names; None if the child gave none.

        Args:
            names: the only plugins that are imported.
            check: the plugin to run the conformance kit on.
            ask: the keychain scope for which the selected providers are asked what they find.
            seconds: the deadline; the child is killed at it.

        Raises:
            EnvironmentUnavailable: what the child lacked, by the child's own account.
        """
        request = {
            "records": [asdict(record) for record in self.records],
            "names": list(names),
            "runtime": self.runtime,
            "keychain": self.keychain,
            "keychain_options": dict(self.keychain_options),
            "check": check,
            "ask": ask,
        }
        # Files, not pipes: a process that a plugin leaves running would keep a pipe open.
        with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as answer:
            question.write(json.dumps(request).encode())
            question.seek(0)
            child = None
            try:
                with stop_signals_wait():
                    child = self.egress.start_process(
                        [running_interpreter().program, "-P", "-m", _MODULE],
                        env=os.environ,
                        stdin=question,
                        stdout=answer,
                    )
                child.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                if child is not None:
                    child.kill()
                    child.wait()
            answer.seek(0)
            raw = answer.read(_MAX_REPORT_BYTES)
        if (lack := _lack(raw)) is not None:
            raise lack
        return _parse(raw, names, check=check is not None)


def _lack(raw: bytes) -> EnvironmentUnavailable | None:
    """Return what the child lacked, if it says that in place of a report."""
    try:
        told = json.loads(raw)["lack"]
        reason, detail = Reason(told["reason"]), told["detail"]
        known = REASONS[reason].culprit is Culprit.ENVIRONMENT
        whole = known and type(detail) is str and detail.isprintable()
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return EnvironmentUnavailable(reason, detail) if whole else None


def _parse(raw: bytes, names: Sequence[str], *, check: bool) -> dict[str, Any] | None:
    """Return the report if it is well formed, else None.

    A plugin may have ended the child early, or written a report of its own.
    """
    try:
        report = json.loads(raw)
        rows = report["plugins"]
        whole = all(_is_row(row) for row in rows) and {row["name"] for row in rows} >= set(names)
        checked, answers = report["checked"], report.get("answers")
        whole = whole and (answers is None or _are_answers(answers))
        if check and any(row["name"] in names and row["reason"] == "ok" for row in rows):
            whole = whole and _is_result(checked)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return report if whole else None


def _is_row(row: dict[str, Any]) -> bool:
    texts = [row[key] for key in ("name", "group", "distribution", "version", "detail")]
    lists = [*row["hooks"], *row["selected_for"]]
    return (
        all(type(text) is str and text.isprintable() for text in (*texts, *lists))
        and "." in row["group"]
        and row["state"] in set(State)
        and row["reason"] in set(Reason)
        and type(row["core"]) is bool
    )


def _is_result(result: dict[str, Any]) -> bool:
    texts = [*result["passed"], *result["untried"], result["failure"]]
    return result["reason"] in set(Reason) and all(
        type(text) is str and text.isprintable() for text in texts
    )


def _are_answers(answers: dict[str, Any]) -> bool:
    """Tell whether the answers have the form that `provider_answers` gives them."""
    keychain, runtime = answers["keychain"], answers["runtime"]
    texts = [answer[key] for answer in (keychain, runtime) for key in ("plugin", "detail")]
    for key in ("channels", "formats", "env_names", "child_env_names", "option_names"):
        texts += [*runtime[key]]
    texts += [text for binary in runtime["binaries"] for text in binary]
    return (
        all(type(text) is str and text.isprintable() for text in texts)
        and all(len(binary) == _BINARY_FACTS for binary in runtime["binaries"])
        and all(answer["reason"] in set(Reason) for answer in (keychain, runtime))
        and keychain["device_only"] in {None, True, False}
        and type(keychain["session_bound"]) is bool
        and type(keychain["proved"]) is bool
    )


def row_of(report: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Return the report's row on the installed plugin `name`.

    Without a report the row says that the plugin ended or stalled its child.
    """
    rows = [] if report is None else report["plugins"]
    silent = {
        "state": State.TRUSTED.value,
        "reason": Reason.PLUGIN_IMPORT_FAILED.value,
        "detail": "it ended or stalled the process that imported it",
        "hooks": [],
        "selected_for": [],
    }
    return next((row for row in rows if row["name"] == name and not row["core"]), silent)

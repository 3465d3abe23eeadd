"""Runs the checks one after the other, each with a deadline.

A check that raises, hangs or lacks what it needs becomes a row, and the next check runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from companion_core.config.paths import InstancePaths
from companion_core.config.sections import Config
from companion_core.control.client import RunningInstance
from companion_core.decisions.manifest import Manifest
from companion_core.doctor.findings import Finding, Row, Section, Status, broken, skipped
from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError, PluginFault, Reason
from companion_core.runtime import TierState
from companion_core.system.deadline import call_with_deadline

__all__ = ["Check", "PluginSurvey", "Situation", "Tended", "run_checks"]

CHECK_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSurvey:
    """What a child found out about the plugins; none of them is imported in this process.

    Attributes:
        documents: one per plugin, as `companion plugins list --json` prints them.
        store_reason: why the file of trusted plugins could not be read, else `ok`.
        answers: what the selected providers said (`plugin_trial.provider_answers`); None if
            the child gave no report.
    """

    documents: Sequence[Mapping[str, Any]]
    store_reason: Reason
    answers: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tended:
    """One thing that was written elsewhere.

    Attributes:
        name: for a person.
        state: "ok", "drift" or "foreign".
        detail: what is not as it should be.
        mend: writes it as it should be.
    """

    name: str
    state: str
    detail: str
    mend: Callable[[], object]


@dataclass(slots=True, kw_only=True)
class Situation:
    """What the checks look at, and what earlier checks found for later ones.

    Attributes:
        config_file: finds the configuration file; raises if the person has no home folder.
        origins: where each option of the root command came from.
        environ: the environment of this process.
        survey: tries the plugins in a child.
        connected: finds the programs that `companion connect` leads here.
        services: finds the service of the system, if one is installed.
        repair: put right what is harmless to put right.
        confirm: puts a question to the person, and tells whether they said yes.
        written: the keys that the configuration file has, as "section.key".
        status: of the running companion; None if none runs.
        cancelled: set once the result of the running check is no longer awaited.
    """

    paths: InstancePaths
    config_file: Callable[[], Path]
    origins: Mapping[str, str]
    environ: Mapping[str, str]
    egress: Egress
    survey: Callable[[], PluginSurvey]
    connected: Callable[[], Sequence[Tended]] = tuple
    services: Callable[[], Sequence[Tended]] = tuple
    repair: bool = False
    confirm: Callable[[str], bool] = lambda _question: False
    rows: dict[str, Row] = field(default_factory=dict)
    config: Config | None = None
    written: frozenset[str] = frozenset()
    plugins: PluginSurvey | None = None
    running: RunningInstance | None = None
    status: Mapping[str, Any] | None = None
    manifest: Manifest | None = None
    tiers: tuple[TierState, ...] = ()
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, which yields a row or several.

    Attributes:
        run: returns the finding of the check's own row, or rows in its place.
        needs: ids of rows that must not have failed; else the check is skipped.
        seconds: the deadline. None for a check that asks the person, or starts processes: each
            of these has a deadline of its own, and Ctrl-C has to reach the check so that none is
            left running.
    """

    id: str
    title: str
    section: Section
    run: Callable[[Situation], Finding | Sequence[Row]]
    needs: tuple[str, ...] = ()
    seconds: float | None = CHECK_SECONDS

    def row(self, finding: Finding) -> Row:
        """Return the check's own row."""
        return Row(id=self.id, title=self.title, section=self.section, finding=finding)


def run_checks(
    checks: Iterable[Check],
    situation: Situation,
    *,
    on_check: Callable[[Check], object] = lambda _check: None,
) -> tuple[Row, ...]:
    """Run every check and return the rows in the order of the sections.

    Raises:
        KeyboardInterrupt: nothing that was started is left running.
    """
    for check in checks:
        on_check(check)
        found = _unmet(check, situation) or _run(check, situation)
        for row in (check.row(found),) if isinstance(found, Finding) else found:
            situation.rows[row.id] = row
    order = list(Section)
    return tuple(sorted(situation.rows.values(), key=lambda row: order.index(row.section)))


def _unmet(check: Check, situation: Situation) -> Finding | None:
    for needed in check.needs:
        row = situation.rows.get(needed)
        if row is None or row.status in {Status.FAIL, Status.SKIP}:
            reason = Reason.NOT_APPLICABLE if row is None else row.reason
            return skipped(reason, f"needs {needed}")
    return None


def _run(check: Check, situation: Situation) -> Finding | Sequence[Row]:
    situation.cancelled = threading.Event()
    try:
        if check.seconds is None:
            return check.run(situation)
        return call_with_deadline(check.run, situation, seconds=check.seconds)
    except CompanionError as error:
        plugin = error.plugin if isinstance(error, PluginFault) else ""
        return broken(error.reason, error.detail or plugin)
    except TimeoutError:
        return broken(Reason.CHECK_TIMEOUT, f"no answer within {check.seconds} s")
    except OSError as error:
        return broken(Reason.DISK_UNAVAILABLE, error.strerror or "")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - becomes a row; the next check runs
        return broken(Reason.INTERNAL_FAULT, type(error).__name__)
    finally:
        situation.cancelled.set()

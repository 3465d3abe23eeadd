"""Rules for this file: what a service manager reads about the companion; text in, text out. No I/O.

Sources: systemd.service(5), systemd.exec(5), systemd.syntax(7), systemd.unit(5); launchd.plist(5);
the schema http://schemas.microsoft.com/windows/2004/02/mit/task.
"""

from __future__ import annotations

import plistlib
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Final

from companion_core.config.paths import DEFAULT_INSTANCE
from companion_core.errors import Reason, UsageError

__all__ = ["ServiceFacts", "launchd_agent", "scheduled_task", "systemd_unit"]

# A companion that ends with these would end so again: nothing but a person changes that.
_STAY_DOWN: Final = (2, 3, 5, 130)
_AGAIN_SECONDS: Final = 30
_DRAIN_SECONDS: Final = 90
_OWNER_ONLY: Final = 0o077
_TASK: Final = "http://schemas.microsoft.com/windows/2004/02/mit/task"
_DESCRIPTION: Final = "companion: a local AI runtime, verified and guarded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """What is started.

    Attributes:
        instance: the companion's.
        program: the absolute path of the interpreter.
        arguments: that it is given.
    """

    instance: str
    program: str
    arguments: tuple[str, ...]

    def __post_init__(self) -> None:
        if not all(each.isprintable() for each in (self.program, *self.arguments)):
            raise UsageError(
                Reason.USAGE, "a path has a character that no service manager reads as it is"
            )

    @property
    def name(self) -> str:
        """The service's: one for each instance."""
        alone = self.instance == DEFAULT_INSTANCE
        return "companion" if alone else f"companion-{self.instance}"


def systemd_unit(facts: ServiceFacts) -> str:
    """Return a unit for the person's own service manager.

    `Delegate` gives the companion a control group of its own to set hard ceilings in. What the
    directives forbid, no part of a companion needs; namespaces are not among it, because runtimes
    are confined with them.
    """
    command = " ".join(map(_quoted, (facts.program, *facts.arguments)))
    return f"""\
# Written by `companion service install`; `companion service uninstall` removes it.
[Unit]
Description={_DESCRIPTION}
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=exec
ExecStart={command}
Restart=on-failure
RestartSec={_AGAIN_SECONDS}
RestartPreventExitStatus={" ".join(map(str, _STAY_DOWN))}
SuccessExitStatus=130
KillMode=mixed
TimeoutStopSec={_DRAIN_SECONDS}
Delegate=yes
UMask=0077
LimitCORE=0
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


def _quoted(word: str) -> str:
    """Return a word that systemd reads as it is: no specifier, variable or quotation in it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return '"' + escaped.replace("$", "$$") + '"'


def launchd_label(facts: ServiceFacts) -> str:
    """Return the agent's label, which is its file's name too."""
    return f"org.companion-core.{facts.name}"


def launchd_agent(facts: ServiceFacts) -> str:
    """Return a property list of an agent of the person's own."""
    document = {
        "Label": launchd_label(facts),
        "ProgramArguments": [facts.program, *facts.arguments],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": _AGAIN_SECONDS,
        "ExitTimeOut": _DRAIN_SECONDS,
        "Umask": _OWNER_ONLY,
        "ProcessType": "Interactive",  # others get less of the processor
        "HardResourceLimits": {"Core": 0},
    }
    return plistlib.dumps(document, sort_keys=False).decode()


def scheduled_task(facts: ServiceFacts, user: str) -> str:
    """Return a task that runs as the person, from their log-on, with no more rights than theirs.

    Args:
        facts: what is started.
        user: who logs on: a domain, a backslash and a name.
    """
    task = ET.Element("Task", version="1.2", xmlns=_TASK)
    about = ET.SubElement(task, "RegistrationInfo")
    ET.SubElement(about, "Description").text = _DESCRIPTION
    ET.SubElement(about, "URI").text = f"\\{facts.name}"
    trigger = ET.SubElement(ET.SubElement(task, "Triggers"), "LogonTrigger")
    ET.SubElement(trigger, "UserId").text = user
    principal = ET.SubElement(ET.SubElement(task, "Principals"), "Principal", id="Author")
    for name, text in (
        ("UserId", user),
        ("LogonType", "InteractiveToken"),
        ("RunLevel", "LeastPrivilege"),
    ):
        ET.SubElement(principal, name).text = text
    settings = ET.SubElement(task, "Settings")
    for name, text in (
        ("MultipleInstancesPolicy", "IgnoreNew"),
        ("DisallowStartIfOnBatteries", "false"),
        ("StopIfGoingOnBatteries", "false"),
        ("AllowHardTerminate", "true"),
        ("ExecutionTimeLimit", "PT0S"),  # none
        ("Priority", "5"),  # the default is below what a person waits for
    ):
        ET.SubElement(settings, name).text = text
    again = ET.SubElement(settings, "RestartOnFailure")
    ET.SubElement(again, "Interval").text = "PT1M"
    ET.SubElement(again, "Count").text = "3"
    action = ET.SubElement(ET.SubElement(task, "Actions", Context="Author"), "Exec")
    ET.SubElement(action, "Command").text = facts.program
    ET.SubElement(action, "Arguments").text = subprocess.list2cmdline(facts.arguments)
    ET.indent(task)
    head = '<?xml version="1.0" encoding="UTF-16"?>\n'
    return head + ET.tostring(task, encoding="unicode") + "\n"

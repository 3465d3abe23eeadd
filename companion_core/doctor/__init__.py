"""`companion doctor`: whether each invariant holds on this machine, and what to do if not.

This is the folder's whole face; the core outside it imports from here alone.
"""

from companion_core.doctor.bundle import new_bundle, write_bundle
from companion_core.doctor.checks import Check, PluginSurvey, Situation, Tended
from companion_core.doctor.findings import Row, Section, Status
from companion_core.doctor.report import LINE_WIDTH, Report, examine

__all__ = [
    "LINE_WIDTH",
    "Check",
    "PluginSurvey",
    "Report",
    "Row",
    "Section",
    "Situation",
    "Status",
    "Tended",
    "examine",
    "new_bundle",
    "write_bundle",
]

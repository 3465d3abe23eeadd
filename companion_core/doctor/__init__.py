"""What is here, whether each invariant holds, and what to do where not: `companion doctor`."""

from companion_core.doctor.bundle import new_bundle, write_bundle
from companion_core.doctor.checks import PluginSurvey, Situation
from companion_core.doctor.findings import (
    Row,
    Section,
    Status,
)
from companion_core.doctor.report import Report, examine

__all__ = [
    "PluginSurvey",
    "Report",
    "Row",
    "Section",
    "Situation",
    "Status",
    "examine",
    "new_bundle",
    "write_bundle",
]

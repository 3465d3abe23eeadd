"""The companion as a service of the system: started at login, ended by the system in its order.

This is the folder's whole face.
"""

from __future__ import annotations

from companion_core.service.manager import (
    ServiceManager,
    ServiceState,
    ServiceStatus,
    choose_manager,
)
from companion_core.service.texts import ServiceFacts

__all__ = [
    "ServiceFacts",
    "ServiceManager",
    "ServiceState",
    "ServiceStatus",
    "choose_manager",
]

"""The loopback front door: guard, admission queue, streaming proxy and health loop."""

from companion_core.gateway.gateway import Gateway
from companion_core.gateway.health import HealthProbe
from companion_core.gateway.listener import bind_loopback
from companion_core.gateway.settings import Backend, GatewaySettings, ServingConditions

__all__ = [
    "Backend",
    "Gateway",
    "GatewaySettings",
    "HealthProbe",
    "ServingConditions",
    "bind_loopback",
]

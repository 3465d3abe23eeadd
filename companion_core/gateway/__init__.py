"""The loopback front door: guard, admission queue, streaming proxy and health loop."""

from companion_core.gateway.gateway import Backend, Gateway, GatewaySettings, ServingConditions
from companion_core.gateway.health import HealthProbe

__all__ = ["Backend", "Gateway", "GatewaySettings", "HealthProbe", "ServingConditions"]

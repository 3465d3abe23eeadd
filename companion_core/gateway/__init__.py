"""The loopback front door: listener, guard, admission queue, streaming proxy, health loop."""

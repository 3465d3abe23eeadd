"""Whether an idle runtime still works: it has to compute one token."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from companion_core.egress.interface import Egress
from companion_core.errors import CompanionError
from companion_core.providers import BackendRequest, Route
from companion_core.runtime.start.listener import StartedBackend
from companion_core.runtime.start.prepare import send_prepare

__all__ = ["computes_a_token"]

_QUESTIONS: Final = (
    ("/v1/completions", {"prompt": "a"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
)


async def computes_a_token(egress: Egress, backend: StartedBackend, seconds: float) -> bool:
    """Ask the backend itself for one token; also True where it serves no route to ask on."""
    for path, question in _QUESTIONS:
        if Route(method="POST", path=path) in backend.routes:
            body = {"model": backend.served_model, "max_tokens": 1, "stream": False, **question}
            request = BackendRequest(method="POST", path=path, json=json.dumps(body))
            try:
                async with asyncio.timeout(seconds):
                    await send_prepare(egress, backend.channel, request, key=backend.key)
            except (CompanionError, TimeoutError):
                return False
            return True
    return True

"""Judge `GET /health`: 503 while the model is loaded, then 200 with a status of "ok"."""

from __future__ import annotations

import json

from companion_core.providers import HealthResponse

__all__ = ["LlamaHealth"]


class LlamaHealth:
    """llama.cpp's own health endpoint."""

    path = "/health"

    def judge(self, response: HealthResponse) -> bool:
        """Return True for exactly the answer that llama.cpp gives when the model is loaded."""
        if response.status != 200:  # noqa: PLR2004 - HTTP's "OK"
            return False
        try:
            answer = json.loads(response.body)
        except (ValueError, RecursionError):
            return False
        return isinstance(answer, dict) and answer.get("status") == "ok"

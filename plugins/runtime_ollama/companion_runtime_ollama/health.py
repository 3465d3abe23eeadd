"""Judge `GET /api/ps`: Ollama's only answer that says whether the model is loaded."""

from __future__ import annotations

import json

from companion_core.providers import HealthResponse

__all__ = ["OllamaHealth"]


class OllamaHealth:
    """Ollama's list of loaded models."""

    path = "/api/ps"

    def judge(self, response: HealthResponse) -> bool:
        """Return True when the served model is among the loaded ones."""
        if response.status != 200:  # noqa: PLR2004 - HTTP's "OK"
            return False
        try:
            answer = json.loads(response.body)
        except (ValueError, RecursionError):
            return False
        models = answer.get("models") if isinstance(answer, dict) else None
        if not isinstance(models, list):
            return False
        names = [model.get("name") for model in models if isinstance(model, dict)]
        return response.served_model in names

"""Ask the running companion's model, and hand on its answer while it comes.

The requests take the way that every client takes: over the gateway, with the session's token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from companion_core.cli import Settings
from companion_core.cli.answer_events import Answer, OnText, error_in, read_answer
from companion_core.control.client import ask_running
from companion_core.egress.gateway_client import GatewayClients
from companion_core.errors import Reason, error_for
from companion_core.system.secret import Secret

__all__ = ["Sampling", "ask_model"]

Message = Mapping[str, str]

_FIRST_ERROR: Final = 400
_MOST_ERROR_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What a person sets about an answer; None leaves it to the model's runtime.

    Attributes:
        max_tokens: at most, of the answer.
        temperature: 0 for the likeliest answer.
        seed: for an answer that can be had again.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None

    def fields(self) -> dict[str, Any]:
        """Return what a request says about it."""
        named = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        return {name: value for name, value in named.items() if value is not None}


def ask_model(
    settings: Settings,
    messages: Sequence[Message],
    sampling: Sampling,
    on_text: OnText,
    *,
    model_id: str | None = None,
) -> Answer:
    """Return the whole answer; `on_text` hears it while it comes. Blocks.

    Args:
        settings: say which companion.
        messages: the conversation so far, oldest first.
        sampling: what the person set.
        on_text: may raise, which ends the answer.
        model_id: the model to ask; None for the one that is served.

    Raises:
        CompanionError: why there is no answer, as the gateway says it; `not_running`.
        KeyboardInterrupt: the person stopped the answer; the model's work ends with it.
    """
    session = ask_running(settings.paths, settings.egress, "session")
    request = {
        "model": model_id or session["model"],
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling.fields(),
    }
    answer = Answer(model=request["model"])
    clients = GatewayClients(session["base_url"], Secret(session["token"]))
    try:
        with clients.stream("chat/completions", request) as stream:
            if stream.status >= _FIRST_ERROR:
                raise error_in(stream.read(_MOST_ERROR_BYTES))
            read_answer(stream.lines(), answer, on_text)
    except ConnectionError as error:
        raise error_for(Reason.UPSTREAM_FAILED, "the answer broke off") from error
    return answer

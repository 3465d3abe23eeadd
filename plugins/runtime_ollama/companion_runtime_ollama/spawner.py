"""Plan `ollama serve` on the verified file alone: no registry, no cloud."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from typing import Final

from companion_core.errors import Reason
from companion_core.providers import (
    BackendRequest,
    CannotPlan,
    Dialect,
    Expected,
    Route,
    RuntimeBinary,
    SpawnPlan,
    SpawnRequest,
    TcpChannel,
)
from companion_runtime_ollama.templates import BARE, Template, in_ollamas_form

__all__ = ["SERVED_MODEL", "OllamaSpawner"]

# The fixed name of the served model: created from the verified file, and again after a change.
SERVED_MODEL: Final = "companion/model:latest"
_PROGRAM: Final = "ollama"
_ROUTES: Final = tuple(
    Route(method="POST", path=path)
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
)


class OllamaSpawner:
    """Describes how Ollama is started; never starts it."""

    channels = frozenset({"tcp"})
    formats = frozenset({"gguf"})
    env_names = frozenset(
        {
            "OLLAMA_CONTEXT_LENGTH",
            "OLLAMA_FLASH_ATTENTION",
            "OLLAMA_HOST",
            "OLLAMA_KEEP_ALIVE",
            "OLLAMA_MAX_LOADED_MODELS",
            "OLLAMA_MODELS",
            "OLLAMA_NOPRUNE",
            "OLLAMA_NO_CLOUD",
            "OLLAMA_NUM_PARALLEL",
        }
    )
    # Ollama's server sets these for its own runner process.
    child_env_names = frozenset({"LD_LIBRARY_PATH", "OLLAMA_LIBRARY_PATH"})
    option_names = frozenset({"flash_attention"})

    def locate(self) -> Sequence[RuntimeBinary]:
        """Find `ollama` on PATH; set-up time only."""
        import shutil  # noqa: PLC0415 - not needed to plan

        path = shutil.which(_PROGRAM)
        return [] if path is None else [RuntimeBinary(path=path, label="Ollama")]

    def plan(self, request: SpawnRequest) -> SpawnPlan:
        """Describe the start.

        Raises:
            CannotPlan: `model_format_unsupported` for a model of several files,
                `unknown_option` for a value that an option does not take.
        """
        channel = request.channel
        if request.embedded or not isinstance(channel, TcpChannel):
            raise CannotPlan(Reason.PLAN_REFUSED)
        if len(request.model_files) != 1:
            raise CannotPlan(Reason.MODEL_FORMAT_UNSUPPORTED)
        template = _template(request)
        digest = request.model_files[0].sha256
        models = f"{request.data_dir}/models"
        link = f"{models}/blobs/sha256-{digest}"
        return SpawnPlan(
            argv=(request.binary, "serve"),
            served_model=SERVED_MODEL,
            env=_environment(request, f"{channel.host}:{channel.port}", models),
            prepare=(
                # 201: received, hashed and stored. 200 would mean that it has a file of that
                # name, with any content.
                BackendRequest(
                    method="POST",
                    path=f"/api/blobs/sha256:{digest}",
                    send_model=True,
                    expect_status=(201,),
                    unless_stored=True,
                ),
                BackendRequest(
                    method="POST",
                    path="/api/create",
                    json=_create(request, digest, template),
                    expect_last_line='{"status":"success"}',
                    unless_stored=True,
                ),
                # What Ollama made of it: it refuses no template and no length, but uses others.
                BackendRequest(
                    method="POST",
                    path="/api/show",
                    json=json.dumps({"model": SERVED_MODEL}),
                    expect=_expected(request, template),
                ),
                # A request without a prompt loads the model for good, as the health check needs.
                BackendRequest(
                    method="POST",
                    path="/api/generate",
                    json=json.dumps({"model": SERVED_MODEL, "keep_alive": -1, "stream": False}),
                ),
            ),
            model_link=link,
            model_copies=(link,),
            store=models,
            routes=_ROUTES,
            read_paths=_libraries(request.binary),
            gpu=True,
            placement_texts=("offloaded {placed}/{all} layers to GPU",),
            dialect=Dialect(
                rename_fields=(("max_completion_tokens", "max_tokens"),),
                cuts_at=request.context_length,
            ),
        )


def _libraries(binary: str) -> tuple[str, ...]:
    """Return where Ollama looks for its libraries: `../lib/ollama` from its program.

    Empty on Windows: they lie beside the program, and no isolation hides them there.
    """
    if not posixpath.isabs(binary):
        return ()
    return (posixpath.join(posixpath.dirname(posixpath.dirname(binary)), "lib", "ollama"),)


def _environment(request: SpawnRequest, address: str, models: str) -> dict[str, str]:
    env = {
        "OLLAMA_HOST": address,
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_MODELS": models,
        "OLLAMA_NOPRUNE": "1",  # no model refers to the linked file until /api/create
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_NUM_PARALLEL": str(request.parallel),
    }
    if request.context_length is not None:
        env["OLLAMA_CONTEXT_LENGTH"] = str(request.context_length)
    flash_attention = request.options.get("flash_attention")
    if flash_attention is not None:
        if not isinstance(flash_attention, bool):
            raise CannotPlan(Reason.UNKNOWN_OPTION)
        env["OLLAMA_FLASH_ATTENTION"] = "1" if flash_attention else "0"
    return env


def _template(request: SpawnRequest) -> Template | None:
    """Return the template to create the model with; None leaves it to Ollama.

    Raises:
        CannotPlan: `chat_template_unsupported`, the manifest's has no form that Ollama reads.
    """
    if request.chat_template is not None:
        template = in_ollamas_form(request.chat_template)
        if template is None:
            raise CannotPlan(Reason.CHAT_TEMPLATE_UNSUPPORTED)
        return template
    own = request.model_chat_template
    return None if own is None else in_ollamas_form(own)


def _create(request: SpawnRequest, digest: str, template: Template | None) -> str:
    parameters: dict[str, object] = {"num_thread": request.threads}
    if request.context_length is not None:  # else Ollama takes its own default, whatever the model
        parameters["num_ctx"] = request.context_length
    body: dict[str, object] = {
        "model": SERVED_MODEL,
        "files": {"model.gguf": f"sha256:{digest}"},
        "parameters": parameters,
        "stream": True,
    }
    if template is not None:
        body["template"] = template.text
        if template.stop:
            parameters["stop"] = list(template.stop)
    return json.dumps(body)


def _expected(request: SpawnRequest, template: Template | None) -> tuple[Expected, ...]:
    expected = []
    if request.context_length is not None:
        expected.append(Expected(member="parameters", line=f"num_ctx {request.context_length}"))
    if template is None and request.model_chat_template is not None:
        reason = Reason.CHAT_TEMPLATE_UNSUPPORTED
        expected.append(Expected(member="template", unlike=BARE, reason=reason))
    return tuple(expected)

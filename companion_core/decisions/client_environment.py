"""Rules for this file: which variables a client started by `exec` inherits (I-17, I-19).

Pure; imports nothing of the package. Names are compared without regard to case, as Windows and
some clients read them. A name of a client's family that is not known to be harmless is set aside.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["HARMLESS", "ROWS", "Row", "Session", "client_environment", "set_aside", "unkeepable"]

LOOPBACK_HOSTS: Final = ("127.0.0.1", "localhost", "::1")
_NO_PROXY: Final = "NO_PROXY"


class Session(enum.Enum):
    """What of a session a variable carries."""

    BASE_URL = "the gateway's address, with `/v1`"
    ORIGIN = "the gateway's address, without a path"
    TOKEN = "the session token"  # noqa: S105 - a description
    MODEL = "the id of the model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What becomes of some variables.

    Attributes:
        names: in capitals; `*` stands for any characters.
        value: what they are set to; None sets an inherited one aside.
        why: what would happen otherwise.
        read_by: the programs that read them.
    """

    names: tuple[str, ...]
    value: Session | str | None
    why: str
    read_by: str


# Names; what they are set to (None sets an inherited one aside); why; the programs that read them.
_TABLE: Final[tuple[tuple[str, Session | str | None, str, str], ...]] = (
    # --- set, whether inherited or not ---
    (
        "OPENAI_BASE_URL OPENAI_API_BASE OPENAI_API_BASE_URL OPENAI_API_ENDPOINT OLLAMA_BASE_URL",
        Session.BASE_URL,
        "each spelling has clients that read it alone and go to the vendor without it, with the"
        " key; one that stays would win over another",
        "openai, LangChain, LlamaIndex, LiteLLM, Open WebUI, crush, Pydantic AI (Ollama)",
    ),
    (
        "OPENAI_HOST OPENAI_API_HOST ANTHROPIC_BASE_URL OLLAMA_HOST GOOGLE_GEMINI_BASE_URL"
        " GOOGLE_VERTEX_BASE_URL",
        Session.ORIGIN,
        "the client would go to the vendor or to another program; what the gateway does not speak"
        " is refused there",
        "goose, anthropic, Claude Code, LiteLLM, ollama, google-genai, gemini-cli",
    ),
    (
        "OPENAI_API_KEY ANTHROPIC_AUTH_TOKEN",
        Session.TOKEN,
        "the gateway lets in only programs that show it",
        "all OpenAI clients; anthropic, Claude Code, LiteLLM",
    ),
    (
        "OPENAI_MODEL OPENAI_DEFAULT_MODEL ANTHROPIC_MODEL ANTHROPIC_DEFAULT_OPUS_MODEL"
        " ANTHROPIC_DEFAULT_SONNET_MODEL ANTHROPIC_DEFAULT_HAIKU_MODEL"
        " ANTHROPIC_DEFAULT_FABLE_MODEL CLAUDE_CODE_SUBAGENT_MODEL GOOSE_MODEL",
        Session.MODEL,
        "the client would ask for a model that is not served",
        "programs by convention, openai-agents, Claude Code, goose",
    ),
    (
        "CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"
        " OPENAI_AGENTS_DISABLE_TRACING OPENCODE_DISABLE_MODELS_FETCH",
        "1",
        "settings files would move the address, or the client would report or ask elsewhere:"
        " openai-agents sends its traces to the vendor with `OPENAI_API_KEY`",
        "Claude Code, openai-agents, opencode",
    ),
    (
        "LITELLM_LOCAL_MODEL_COST_MAP",
        "True",
        "a price list would be fetched from a public host at each import",
        "LiteLLM",
    ),
    ("GOOSE_PROVIDER", "openai", "another provider would be asked", "goose"),
    # --- set aside ---
    (
        "OPENAI_* *_OPENAI_API_* *_OPENAI_BASE_URL",
        None,
        "another address (`OPENAI_PROXY`, `OPENAI_BASE_PATH`), identity (`OPENAI_ORG_ID`,"
        " `OPENAI_CUSTOM_HEADERS`) or kind of client (`OPENAI_API_TYPE`)",
        "openai, LangChain, goose, Open WebUI, aider",
    ),
    (
        "AZURE_OPENAI_* AZURE_API_* AZURE_AI_* AZURE_INFERENCE_*",
        None,
        "the client becomes one of Azure's",
        "openai, LangChain, LlamaIndex, LiteLLM",
    ),
    (
        "ANTHROPIC_* CLAUDE_CODE_* AWS_BEARER_TOKEN_BEDROCK AWS_BEDROCK_*",
        None,
        "another address (`ANTHROPIC_API_BASE`, `ANTHROPIC_UNIX_SOCKET`), account"
        " (`ANTHROPIC_API_KEY` and `ANTHROPIC_PROFILE` win over the token) or provider"
        " (`CLAUDE_CODE_USE_BEDROCK`)",
        "anthropic, Claude Code, LiteLLM, openai",
    ),
    (
        "OLLAMA_API_KEY OLLAMA_API_BASE OLLAMA_BASE_URLS OLLAMA_CLOUD_*",
        None,
        "another address, or a key for Ollama's cloud",
        "ollama, LiteLLM, Open WebUI",
    ),
    (
        "AIDER_MODEL AIDER_*_MODEL AIDER_API_KEY AIDER_ANTHROPIC_* AIDER_SET_ENV AIDER_ENV_FILE"
        " CODEX_API_KEY CODEX_ACCESS_TOKEN CODEX_OSS_* CRUSH_* GOOSE_PROVIDER__* GOOSE_LEAD_*"
        " GOOSE_PLANNER_* GOOSE_*_PROVIDER OPENCODE_CONFIG* OPENCODE_AUTH_* OPENCODE_API_KEY",
        None,
        "the program's own settings come before those above",
        "aider, Codex, crush, goose, opencode",
    ),
    (
        "LITELLM_* USE_LITELLM_PROXY LLM_* AIHUBMIX_* AIML_API_* BEDROCK_* CHATGPT_API_BASE"
        " CLOUDFLARE_API_BASE CRUSOE_API_BASE DATABRICKS_API_BASE DOCKER_MODEL_RUNNER_* EDENAI_*"
        " EMPOWER_API_BASE FEATHERLESS_* GALADRIEL_* GIGACHAT_* GITHUB_COPILOT_* COPILOT_API_URL"
        " HEROKU_API_BASE HF_API_BASE HOSTED_VLLM_* HUGGINGFACE_API_BASE INCEPTION_API_BASE"
        " INFINITY_API_BASE JINA_AI_* LAMBDA_API_BASE LANGFLOW_API_BASE LANGGRAPH_API_BASE"
        " LEMONADE_* LLAMAFILE_* MARITALK_* META_API_BASE MODELSCOPE_* MORPH_API_BASE NLP_CLOUD_*"
        " NSCALE_* OPENAI_LIKE_* OPENCODE_GO_* OVHCLOUD_* PARASAIL_* PREDIBASE_* PUBLICAI_*"
        " QWEN_AI_PLATFORM_* QWENCLOUD_* RAGFLOW_* REKA_* TENCENT_* TOPAZ_API_BASE"
        " VERTEX_API_BASE VLLM_BASE_URL CO_BASE_URL VOLCENGINE_* WANDB_API_BASE XINFERENCE_*",
        None,
        "another address, key or model",
        "LiteLLM, llm, OpenHands",
    ),
    (
        "BASE_URL API_BASE MODEL MODEL_NAME OAI_CONFIG_LIST CONTINUE_API_KEY CREWAI_*",
        None,
        "a client without a prefix of its own takes them for its address or model: CrewAI sends"
        " prompt and token to `BASE_URL`",
        "CrewAI, AutoGen, Continue",
    ),
    (
        "AI21_* AI_GATEWAY_* ALEPHALPHA_* ANYSCALE_* ARK_API_KEY BASETEN_* CEREBRAS_* CODESTRAL_*"
        " COHERE_* CO_API_KEY CO_API_URL DASHSCOPE_* DEEPINFRA_* DEEPSEEK_* FIREWORKS_*"
        " FIREWORKSAI_* FRIENDLI_* GEMINI_* GOOGLE_API_KEY GOOGLE_GEMINI_* GOOGLE_GENAI_*"
        " GOOGLE_GENERATIVE_AI_* GROQ_* HF_INFERENCE_ENDPOINT HUGGINGFACE_API_KEY HYPERBOLIC_*"
        " LLAMA_API_KEY LLAMA_CLOUD_* LM_STUDIO_* MINIMAX_* MISTRAL_* MOONSHOT_* NEBIUS_* NOVITA_*"
        " NVIDIA_API_KEY NVIDIA_NIM_* OPENROUTER_* OR_API_KEY PERPLEXITY_* PERPLEXITYAI_*"
        " POE_API_KEY REPLICATE_* SAMBANOVA_* TOGETHER_* TOGETHERAI_* UPSTAGE_* V0_API_KEY"
        " VERCEL_AI_GATEWAY_* VERTEXAI_* VLLM_API_KEY VOYAGE_* WATSONX_* XAI_* ZAI_* ZHIPUAI_*",
        None,
        "a client that finds a vendor's key may choose that vendor",
        "aider, Continue, goose, LiteLLM, opencode and others",
    ),
    (
        "LANGCHAIN_* LANGSMITH_* LANGFUSE_* ARIZE_* BRAINTRUST_* COMET_* DD_LLMOBS_* HELICONE_*"
        " LANGTRACE_* LOGFIRE_* LUNARY_* NEW_RELIC_AI_* AGENTOPS_* OPIK_* OTEL_* PHOENIX_*"
        " PORTKEY_* TRACELOOP_* WEAVE_* WANDB_API_KEY LITERAL_API_* BETA_TRACING_*"
        " ENABLE_BETA_TRACING_* ENABLE_ENHANCED_TELEMETRY_* ANT_OTEL_*",
        None,
        "traces carry prompts and answers off the machine; `LANGSMITH_GATEWAY` is an address too",
        "LangChain, LangSmith, OpenTelemetry, Claude Code, Chainlit and others",
    ),
    (
        "GLOBAL_AGENT_* NPM_CONFIG_NO_PROXY NO_GRPC_PROXY",
        None,
        "a proxy that does not read `NO_PROXY`, or a name that wins over it",
        "global-agent and proxy-from-env of Node.js, gRPC",
    ),
)

ROWS: Final = tuple(
    Row(names=tuple(names.split()), value=value, why=why, read_by=read_by)
    for names, value, why, read_by in _TABLE
)

# Names of the families above that lead nowhere; a client finds them as they are.
HARMLESS: Final = (
    *("OPENAI_LOG", "OPENAI_TIMEOUT", "OPENAI_MAX_RETRIES", "OPENAI_MAX_TOKENS"),
    *("OPENAI_TEMPERATURE", "OPENAI_WEBHOOK_SECRET", "OPENAI_AGENTS_DONT_LOG_*"),
    *("ANTHROPIC_LOG", "ANTHROPIC_WEBHOOK_SIGNING_KEY"),
    *("CLAUDE_CODE_DISABLE_*", "CLAUDE_CODE_MAX_*", "CLAUDE_CODE_SHELL*", "CLAUDE_CODE_TMPDIR"),
    *("CLAUDE_CODE_AUTO_COMPACT_*", "CLAUDE_CODE_EFFORT_LEVEL", "CLAUDE_CODE_GIT_BASH_PATH"),
    *("CLAUDE_CODE_ENTRYPOINT", "CLAUDE_CODE_SSE_PORT"),  # a terminal inside an editor has them
    *("LANGCHAIN_OPENAI_TCP_*", "LANGSMITH_HIDE_*", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME"),
    *("CREWAI_DISABLE_*", "CREWAI_STORAGE_DIR", "LLM_CACHE_DIR"),
    *("LITELLM_LOG", "LITELLM_MODE", "LITELLM_OFFLINE_MODE"),
    *("LLM_USER_PATH", "LLM_LOAD_PLUGINS", "LLM_RAISE_ERRORS", "LLM_TOOLS_DEBUG"),
    *("LLM_EMBEDDINGS_DB", "LLM_OPENAI_SHOW_RESPONSES"),
)


_SET: Final = {name: row.value for row in ROWS if row.value is not None for name in row.names}
_SET_ASIDE, _HARMLESS = (
    re.compile("|".join(re.escape(name).replace(r"\*", ".*") for name in names), re.DOTALL)
    for names in ([n for row in ROWS if row.value is None for n in row.names], HARMLESS)
)
_OF_THE_SESSION: Final = frozenset(
    name
    for name, value in _SET.items()
    if value in {Session.BASE_URL, Session.ORIGIN, Session.TOKEN}
) | {_NO_PROXY}


def client_environment(
    env: Mapping[str, str],
    base_url: str,
    token: str,
    model_id: str | None,
    *,
    keep: Sequence[str] = (),
) -> dict[str, str]:
    """Return `env` as a client of the session gets it.

    Args:
        env: what is inherited.
        base_url: the gateway's address, with `/v1`.
        token: the session token.
        model_id: the served model; None where it is not known, and no variable names one then.
        keep: names that stay as inherited, unless `unkeepable`.
    """
    kept = {name.upper() for name in keep} - _OF_THE_SESSION
    values = {
        Session.BASE_URL: base_url,
        Session.ORIGIN: base_url.removesuffix("/v1"),
        Session.TOKEN: token,
        Session.MODEL: model_id,
    }
    changed = {name: value for name, value in env.items() if name.upper() in kept or _stays(name)}
    inherited = {name.upper() for name in changed}
    for name, told in _SET.items():
        value = values[told] if isinstance(told, Session) else told
        if value is not None and name not in inherited:
            changed[name] = value
    for name, other in ((_NO_PROXY, _NO_PROXY.lower()), (_NO_PROXY.lower(), _NO_PROXY)):
        # Programs read one of the two: a new one must not hide what the other says.
        hosts = [host for host in env.get(name, env.get(other, "")).split(",") if host.strip()]
        if hosts == ["*"]:  # no proxy for anything, as long as it stands alone
            changed[name] = "*"
            continue
        changed[name] = ",".join([*hosts, *(h for h in LOOPBACK_HOSTS if h not in hosts)])
    return changed


def _stays(name: str) -> bool:
    upper = name.upper()
    if upper in _SET:
        return False
    return _HARMLESS.fullmatch(upper) is not None or _SET_ASIDE.fullmatch(upper) is None


def set_aside(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Return the inherited names whose values the client does not get, in order."""
    return tuple(
        sorted(
            name
            for name, value in before.items()
            if after.get(name) != value and name.upper() != _NO_PROXY
        )
    )


def unkeepable(names: Sequence[str]) -> tuple[str, ...]:
    """Return those of the names that hold the session's own address or key."""
    return tuple(name for name in names if name.upper() in _OF_THE_SESSION)

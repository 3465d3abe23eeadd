import pytest

from companion_core.decisions.client_environment import (
    HARMLESS,
    ROWS,
    Session,
    client_environment,
    set_aside,
    unkeepable,
)

pytestmark = pytest.mark.unit

ORIGIN = "http://127.0.0.1:4"
BASE = f"{ORIGIN}/v1"
TOKEN = "session-token"
ELSEWHERE = "http://elsewhere.example/v1"


def run(before, *, model="tiny", keep=()):
    return client_environment(before, BASE, TOKEN, model, keep=keep)


def sample(pattern):
    return pattern.replace("*", "X")


def test_what_leads_nowhere_stays_as_it_is():
    before = {
        "PATH": "/usr/bin",
        "HOME": "/home/a",
        "VITE_API_BASE": "a",
        "AWS_REGION": "here",
        "A*": "x",
    }
    before |= {sample(pattern): "as it was" for pattern in HARMLESS}
    after = run(before)
    assert {name: after[name] for name in before} == before
    assert set_aside(before, after) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, BASE) for name in ("OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_BASE_URL")),
        *((name, BASE) for name in ("OPENAI_API_ENDPOINT", "OLLAMA_BASE_URL")),
        *((name, ORIGIN) for name in ("OPENAI_HOST", "ANTHROPIC_BASE_URL", "OLLAMA_HOST")),
        ("OPENAI_API_KEY", TOKEN),
        ("ANTHROPIC_AUTH_TOKEN", TOKEN),
        *((name, "tiny") for name in ("OPENAI_MODEL", "ANTHROPIC_MODEL", "GOOSE_MODEL")),
        ("OPENAI_AGENTS_DISABLE_TRACING", "1"),
        ("CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST", "1"),
        ("GOOSE_PROVIDER", "openai"),
    ],
)
@pytest.mark.parametrize("before", [{}, "inherited", "in small letters"])
def test_a_name_that_clients_read_leads_to_the_session(name, value, before):
    spelt = {"inherited": name, "in small letters": name.lower()}
    before = {spelt[before]: ELSEWHERE} if before else {}
    after = run(before)
    assert after[name] == value
    assert ELSEWHERE not in after.values()
    assert set_aside(before, after) == tuple(before)


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_PROXY",
        "OPENAI_ORG_ID",
        "OPENAI_ORGANIZATION",
        "OPENAI_PROJECT",
        "OPENAI_PROJECT_ID",
        "OPENAI_ADMIN_KEY",
        "OPENAI_API_TYPE",
        "OPENAI_API_VERSION",
        "OPENAI_BASE_PATH",
        "OPENAI_WEBSOCKET_BASE_URL",
        "OPENAI_CUSTOM_HEADERS",
        "OPENAI_API_KEYS",
        "OPENAI_API_BASE_URLS",
        "OPENAI_API_CONFIGS",
        "OPENAI_A_NAME_OF_TOMORROW",
        "OPENAI_",
        "RAG_OPENAI_API_BASE_URL",
        "AIDER_OPENAI_API_BASE",
        "AIDER_MODEL",
        "AZURE_OPENAI_ENDPOINT",
        "AZURE_OPENAI_API_KEY",
        "AZURE_API_BASE",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_API_BASE",
        "ANTHROPIC_UNIX_SOCKET",
        "ANTHROPIC_CUSTOM_HEADERS",
        "ANTHROPIC_PROFILE",
        "ANTHROPIC_IDENTITY_TOKEN_FILE",
        "ANTHROPIC_BEDROCK_BASE_URL",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
        "CLAUDE_CODE_OAUTH_TOKEN",
        "CLAUDE_CODE_ENABLE_TELEMETRY",
        "AWS_BEARER_TOKEN_BEDROCK",
        "CODEX_API_KEY",
        "CODEX_OSS_BASE_URL",
        "OPENCODE_CONFIG_CONTENT",
        "CRUSH_OPENAI_API_KEY",
        "GOOSE_PROVIDER__HOST",
        "OLLAMA_API_KEY",
        "OLLAMA_API_BASE",
        "OLLAMA_BASE_URLS",
        "LITELLM_PROXY_API_BASE",
        "USE_LITELLM_PROXY",
        "LLM_MODEL",
        "LLM_BASE_URL",
        "LLM_API_KEY",
        "GROQ_API_KEY",
        "MISTRAL_API_KEY",
        "OPENROUTER_API_KEY",
        "GEMINI_API_KEY",
        "GOOGLE_API_KEY",
        "DEEPSEEK_API_KEY",
        "XAI_API_KEY",
        "CO_API_KEY",
        "TOGETHER_API_KEY",
        "HOSTED_VLLM_API_BASE",
        "LANGCHAIN_TRACING_V2",
        "LANGCHAIN_API_KEY",
        "LANGSMITH_TRACING",
        "LANGSMITH_GATEWAY",
        "LANGSMITH_ENDPOINT",
        "LANGFUSE_HOST",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_LOG_USER_PROMPTS",
        "TRACELOOP_BASE_URL",
        "GLOBAL_AGENT_HTTP_PROXY",
        "BASE_URL",
        "API_BASE",
        "MODEL",
        "MODEL_NAME",
        "npm_config_no_proxy",
        "no_grpc_proxy",
        "BETA_TRACING_ENDPOINT",
        "ENABLE_BETA_TRACING_DETAILED",
        "ANT_OTEL_EXPORTER_OTLP_ENDPOINT",
        "LITERAL_API_KEY",
        "OAI_CONFIG_LIST",
        "CO_BASE_URL",
        "VLLM_BASE_URL",
        "WANDB_API_KEY",
        "GITHUB_COPILOT_BASE_URL",
    ],
)
@pytest.mark.parametrize("spell", [str, str.lower, str.title])
def test_what_leads_elsewhere_is_removed(name, spell):
    before = {spell(name): ELSEWHERE}
    after = run(before)
    assert spell(name) not in after
    assert set_aside(before, after) == (spell(name),)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names[0])
def test_each_row_says_why_and_no_inherited_value_of_its_names_is_left(row):
    assert row.why
    assert row.read_by
    before = {sample(name): ELSEWHERE for name in row.names}
    after = run(before)
    facts = {Session.BASE_URL: BASE, Session.ORIGIN: ORIGIN, Session.TOKEN: TOKEN}
    expected = {**facts, Session.MODEL: "tiny"}.get(row.value, row.value)
    assert {after.get(name) for name in before} == {expected}


def test_no_name_stands_in_two_rows():
    names = [name for row in ROWS for name in row.names]
    assert len(names) == len(set(names))
    assert all(name == name.upper() for name in [*names, *HARMLESS])
    assert all("*" not in name for row in ROWS if row.value is not None for name in row.names)


def test_a_model_that_is_not_known_is_not_named():
    after = run({"OPENAI_MODEL": "a-model-of-a-vendor"}, model=None)
    assert "OPENAI_MODEL" not in after
    assert after["OPENAI_BASE_URL"] == BASE


def test_a_name_that_the_person_keeps_stays():
    before = {"GROQ_API_KEY": "k", "groq_api_key": "l", "OPENAI_MODEL": "mine", "XAI_API_KEY": "m"}
    after = run(before, keep=["Groq_Api_Key", "OPENAI_MODEL", "NOT_INHERITED"])
    assert {name: after.get(name) for name in before} == before | {"XAI_API_KEY": None}
    assert "NOT_INHERITED" not in after
    assert run({}, keep=["OPENAI_MODEL"])["OPENAI_MODEL"] == "tiny"


def test_the_sessions_own_address_and_key_cannot_be_kept_from():
    assert unkeepable(["OLLAMA_HOST", "ANTHROPIC_AUTH_TOKEN"]) == (
        "OLLAMA_HOST",
        "ANTHROPIC_AUTH_TOKEN",
    )
    asked = ["GROQ_API_KEY", "openai_base_url", "OPENAI_API_KEY", "OPENAI_MODEL", "no_proxy"]
    assert unkeepable(asked) == ("openai_base_url", "OPENAI_API_KEY", "no_proxy")
    before = dict.fromkeys(asked, ELSEWHERE)
    after = run(before, keep=asked)
    assert after["OPENAI_BASE_URL"] == BASE
    assert after["OPENAI_API_KEY"] == TOKEN
    assert "openai_base_url" not in after
    assert "127.0.0.1" in after["NO_PROXY"]


def test_a_session_inside_a_session_sets_nothing_aside():
    once = run({"PATH": "/usr/bin"})
    assert run(once) == once
    assert set_aside(once, run(once)) == ()


def test_names_of_any_bytes_pass():
    before = {"": "", "OPENAI_\x1b[2J\udcff\n": "x", "Ǆ": "y"}
    after = run(before)
    assert {"", "Ǆ"} <= set(after)
    assert set_aside(before, after) == ("OPENAI_\x1b[2J\udcff\n",)


def test_a_proxy_stays_for_what_is_not_loopback():
    proxies = dict.fromkeys(("HTTP_PROXY", "https_proxy"), "http://proxy.example:3128")
    after = run({**proxies, "ALL_PROXY": "socks5://proxy.example"})
    assert {name: after[name] for name in proxies} == proxies
    assert after["ALL_PROXY"] == "socks5://proxy.example"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "127.0.0.1,localhost,::1"),
        ("example.org", "example.org,127.0.0.1,localhost,::1"),
        ("localhost,example.org", "localhost,example.org,127.0.0.1,::1"),
    ],
)
def test_loopback_is_kept_from_any_proxy_and_what_stood_there_stays(given, expected):
    before = {"NO_PROXY": given, "no_proxy": given}
    after = run(before)
    assert after["NO_PROXY"] == after["no_proxy"] == expected
    assert set_aside(before, after) == ()


def test_one_of_the_two_names_does_not_hide_what_the_other_says():
    after = run({"NO_PROXY": "internal.example"})
    assert after["no_proxy"] == after["NO_PROXY"] == "internal.example,127.0.0.1,localhost,::1"


def test_a_star_keeps_its_meaning():
    after = run({"no_proxy": "*"})
    assert after["no_proxy"] == after["NO_PROXY"] == "*"


def test_a_star_in_one_name_leaves_the_other_its_hosts():
    after = run({"NO_PROXY": "*", "no_proxy": "internal.example"})
    assert after["NO_PROXY"] == "*"
    assert after["no_proxy"] == "internal.example,127.0.0.1,localhost,::1"


def test_loopback_alone_stands_there_when_nothing_was_inherited():
    after = run({})
    assert after["NO_PROXY"] == after["no_proxy"] == "127.0.0.1,localhost,::1"

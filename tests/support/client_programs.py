"""What people start with `companion exec`, each as the shortest program on the real package.

A program prints the answer or the error; it names the model, but no address and no key. Each is
also started without protection: a program that would go nowhere else anyway proves nothing.
"""

_QUESTION = '[{"role": "user", "content": "What are you?"}]'

# Each package's program, and the text in its output that shows that the gateway answered: the
# model's own word, or the gateway's reason for a request that it does not serve.
PROGRAMS = {
    "openai": (
        f"""
import openai, os
ask = openai.OpenAI(max_retries=0).chat.completions.create
model = os.environ.get("OPENAI_MODEL", "m")
print(ask(model=model, messages={_QUESTION}, max_tokens=64, temperature=0))
""",
        "companion",
    ),
    "openai, module-level": (
        f"""
import openai
openai.max_retries = 0
ask = openai.chat.completions.create
print(ask(model="tiny", messages={_QUESTION}, max_tokens=64, temperature=0))
""",
        "companion",
    ),
    "openai-agents": (
        """
import agents
agent = agents.Agent("a", model_settings=agents.ModelSettings(max_tokens=64, temperature=0))
with agents.trace("a"):
    print(agents.Runner.run_sync(agent, "What are you?").final_output)
""",
        "companion",
    ),
    "anthropic": (
        f"""
import anthropic, os
ask = anthropic.Anthropic(max_retries=0).messages.create
print(ask(model=os.environ.get("ANTHROPIC_MODEL", "m"), messages={_QUESTION}, max_tokens=64))
""",
        "companion",
    ),
    "langchain-openai": (
        """
from langchain_openai import ChatOpenAI
print(ChatOpenAI(model="tiny", max_retries=0, max_tokens=64).invoke("What are you?").content)
""",
        "companion",
    ),
    # Its class accepts only the names of its vendor's models.
    "llama-index": (
        """
from llama_index.llms.openai import OpenAI
print(OpenAI(model="gpt-4o-mini", max_retries=0).complete("What are you?"))
""",
        "model_not_served",
    ),
    "litellm": (
        f"""
import litellm
ask = litellm.completion
print(ask(model="openai/tiny", messages={_QUESTION}, max_tokens=64, num_retries=0))
""",
        "companion",
    ),
    "litellm, anthropic": (
        f"""
import litellm
ask = litellm.completion
print(ask(model="anthropic/tiny", messages={_QUESTION}, max_tokens=64, num_retries=0))
""",
        "companion",
    ),
    "llm": (
        """
import sys
from llm.cli import cli
sys.argv = ["llm", "--no-stream", "--no-log", "What are you?"]
cli()
""",
        "This gateway serves tiny",
    ),
    # Its own protocol is not served: the answer is the gateway's refusal.
    "ollama": (
        f"""
import ollama
print(ollama.chat(model="tiny", messages={_QUESTION}))
""",
        "path_not_allowed",
    ),
}


def hostile_environment(trap: str) -> dict[str, str]:
    """Return variables that lead each client to `trap` (`http://HOST:PORT`) in some way."""
    base = f"{trap}/v1"
    proxies = dict.fromkeys(
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"], trap
    )
    openai = dict.fromkeys(["OPENAI_BASE_URL", "OPENAI_API_BASE", "OPENAI_API_BASE_URL"], base)
    return {
        **proxies,
        **openai,
        "OPENAI_API_KEY": "sk-inherited",
        "OPENAI_ADMIN_KEY": "sk-inherited-admin",
        "OPENAI_PROXY": trap,
        "OPENAI_ORG_ID": "org-inherited",
        "OPENAI_ORGANIZATION": "org-inherited",
        "OPENAI_PROJECT_ID": "proj-inherited",
        "OPENAI_CUSTOM_HEADERS": "X-Inherited: yes",
        "OPENAI_WEBSOCKET_BASE_URL": trap.replace("http", "ws"),
        "OPENAI_MODEL": "of-a-vendor",
        "LANGSMITH_GATEWAY": base,
        "LANGSMITH_GATEWAY_API_KEY": "ls-inherited",
        "LANGSMITH_TRACING": "true",
        "LANGCHAIN_TRACING_V2": "true",
        "LANGSMITH_ENDPOINT": trap,
        "LANGSMITH_API_KEY": "ls-inherited",
        "OTEL_EXPORTER_OTLP_ENDPOINT": trap,
        "ANTHROPIC_BASE_URL": trap,
        "ANTHROPIC_API_BASE": trap,
        "ANTHROPIC_API_KEY": "sk-ant-inherited",
        "ANTHROPIC_CUSTOM_HEADERS": "X-Inherited: yes",
        "OLLAMA_HOST": trap,
        "OLLAMA_API_KEY": "ollama-inherited",
        "OLLAMA_API_BASE": trap,
        "LITELLM_PROXY_API_BASE": trap,
        "LITELLM_PROXY_API_KEY": "sk-inherited",
        "GROQ_API_KEY": "gsk-inherited",
    }


# Variables that point a client at another vendor, or at a proxy for all vendors.
OTHER_KINDS = {
    "openai, module-level": {
        "OPENAI_API_TYPE": "azure",
        "OPENAI_API_VERSION": "2024-06-01",
        "AZURE_OPENAI_ENDPOINT": "TRAP",
        "AZURE_OPENAI_API_KEY": "azure-inherited",
    },
    "litellm": {"USE_LITELLM_PROXY": "true"},
}

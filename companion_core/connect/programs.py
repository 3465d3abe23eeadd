"""Rules for this file: what each program's own settings have to say to reach the gateway.

A table: where the program keeps them, and which values lead it here. It describes and does
nothing; the formats are the programs' own, with their sources in docs/connect.md.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from companion_core.connect.changes import Entry
from companion_core.connect.changes import Path as Keys
from companion_core.connect.text import Form
from companion_core.system.secret import Secret

__all__ = ["PROGRAMS", "OwnFile", "Places", "Program", "SettingsFile", "Target"]

_NAME: Final = "companion"
_MODEL_TITLE: Final = "Companion"
_ASSUMED_CONTEXT: Final = 4096  # where the runtime chooses, and does not say
_ANSWER_SHARE: Final = 4  # a quarter of the context is the answer's, for programs that ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a program is led.

    Attributes:
        port: of the gateway.
        model: the id that the program asks for.
        context: tokens of each request; None where it is not known.
        key: the program's own, where it keeps one.
        token_command: prints the session token.
    """

    port: int
    model: str
    context: int | None
    key: Secret
    token_command: tuple[str, ...]

    @property
    def origin(self) -> str:
        """The gateway's address without a path, as Anthropic's clients take it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """The gateway's address as OpenAI's clients take it."""
        return f"{self.origin}/v1"

    @property
    def tokens(self) -> int:
        """The context, or a careful guess."""
        return self.context or _ASSUMED_CONTEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where this person's programs keep their settings.

    Attributes:
        home: the home folder.
        variables: of the environment; programs take other folders from them.
        own: the companion's folder for what programs read of it.
        system: as `sys.platform` has it.
    """

    home: Path
    variables: Mapping[str, str]
    own: Path
    system: str = sys.platform

    def folder(self, variable: str, *default: str) -> Path:
        """Return the folder that a variable names; else one in the home folder."""
        named = self.variables.get(variable, "")
        return Path(named) if os.path.isabs(named) else self.home.joinpath(*default)  # noqa: PTH117 - of a text

    def settings(self, name: str) -> Path:
        """Return the folder of a program that keeps its settings where the system has them."""
        if self.system == "win32":
            return self.folder("APPDATA", "AppData", "Roaming") / name
        return self.folder("XDG_CONFIG_HOME", ".config") / name


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFile:
    """A file of a program, and the values in it that lead it here.

    Attributes:
        values: by path; a `Secret` stands for the program's key.
        if_missing: values that are written only where the file has none.
        added: paths that only a connection has; found without one, they are someone else's.
        against: paths of values that would lead the program elsewhere, or with another key.
        key_at: the path whose value holds the program's key; () for none.
    """

    path: Path
    form: Form
    values: Mapping[Keys, Any]
    added: tuple[Keys, ...]
    if_missing: Mapping[Keys, Any] = field(default_factory=dict)
    against: tuple[Keys, ...] = ()
    key_at: Keys = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFile:
    """A file of the companion's own that a program reads.

    Attributes:
        lines: its content; the key stands at the end of the last one.
    """

    path: Path
    lines: tuple[str, ...]


Files = tuple[SettingsFile | OwnFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that can be led to the gateway by its own settings.

    Attributes:
        title: as people know it.
        commands: under which it is started.
        source: where its own documentation describes these settings.
        has_key: it keeps a key of its own; else it runs a command that prints the token.
        first_request: tokens of its first request, about; 0 where it is small.
        then: what is left for the person to do; {key} stands for the key and {file} for
            the first file.
    """

    title: str
    commands: tuple[str, ...]
    files: Callable[[Places, Target], Files]
    source: str
    has_key: bool
    first_request: int = 0
    then: str = ""


def _claude_code(places: Places, target: Target) -> Files:
    path = places.folder("CLAUDE_CONFIG_DIR", ".claude") / "settings.json"
    helper = _shell_line(target.token_command, places.system)
    environment = {
        "ANTHROPIC_BASE_URL": target.origin,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": target.model,  # what it does beside the conversation
    }
    against = (
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_MODEL",
        "CLAUDE_CODE_USE_BEDROCK",
        "CLAUDE_CODE_USE_VERTEX",
        "CLAUDE_CODE_USE_FOUNDRY",
    )
    return (
        SettingsFile(
            path=path,
            form=Form.JSON,
            values={
                ("apiKeyHelper",): helper,
                ("model",): target.model,
                **{("env", name): value for name, value in environment.items()},
            },
            added=(("apiKeyHelper",), ("env", "ANTHROPIC_BASE_URL")),
            against=tuple(("env", name) for name in against),
        ),
    )


def _codex(places: Places, target: Target) -> Files:
    provider = {
        "name": _MODEL_TITLE,
        "base_url": target.base_url,
        "wire_api": "responses",
        "auth": {"command": target.token_command[0], "args": [*target.token_command[1:]]},
    }
    return (
        SettingsFile(
            path=places.folder("CODEX_HOME", ".codex") / "config.toml",
            form=Form.TOML,
            values={
                ("model",): target.model,
                ("model_provider",): _NAME,
                ("model_context_window",): target.tokens,
                ("model_providers", _NAME): provider,
            },
            added=(("model_providers", _NAME),),
            against=(("profile",),),
        ),
    )


def _aider(places: Places, target: Target) -> Files:
    return (
        SettingsFile(
            path=places.home / ".aider.conf.yml",
            form=Form.YAML,
            values={
                ("model",): f"openai/{target.model}",
                ("openai-api-base",): target.base_url,
                ("openai-api-key",): target.key,
            },
            added=(("openai-api-base",), ("openai-api-key",)),
            key_at=("openai-api-key",),
        ),
    )


def _continue(places: Places, target: Target) -> Files:
    entry = Entry("name", _MODEL_TITLE)
    return (
        SettingsFile(
            path=places.folder("CONTINUE_GLOBAL_DIR", ".continue") / "config.yaml",
            form=Form.YAML,
            # What the program asks of any such file.
            if_missing={("name",): "Companion models", ("version",): "1.0.0", ("schema",): "v1"},
            values={
                ("models", entry): {
                    "name": _MODEL_TITLE,
                    "provider": "openai",
                    "model": target.model,
                    "apiBase": target.base_url,
                    "apiKey": target.key,
                    "roles": ["chat", "edit", "apply"],
                    "capabilities": ["tool_use"],
                    "defaultCompletionOptions": {"contextLength": target.tokens},
                },
            },
            added=(("models", entry),),
            key_at=("models", entry, "apiKey"),
        ),
    )


def _zed(places: Places, target: Target) -> Files:
    folder = "Zed" if places.system == "win32" else "zed"
    root = places.home / ".config" / "zed" if places.system == "darwin" else places.settings(folder)
    model = {
        "name": target.model,
        "display_name": f"{target.model} (companion)",
        "max_tokens": target.tokens,
        "capabilities": {"tools": True},
    }
    at = ("language_models", "openai_compatible", _NAME)
    return (
        SettingsFile(
            path=root / "settings.json",
            form=Form.JSON,
            values={at: {"api_url": target.base_url, "available_models": [model]}},
            added=(at,),
        ),
    )


def _open_webui(places: Places, target: Target) -> Files:
    lines = (
        f"OPENAI_API_BASE_URLS={target.base_url}",
        f"DEFAULT_MODELS={target.model}",
        "ENABLE_OLLAMA_API=False",
        "OPENAI_API_KEYS=",
    )
    return (OwnFile(path=places.own / "open-webui.env", lines=lines),)


def _llm(places: Places, target: Target) -> Files:
    named, folder = places.variables.get("LLM_USER_PATH", ""), "io.datasette.llm"
    if os.path.isabs(named):  # noqa: PTH117 - of a text
        root = Path(named)
    elif places.system == "darwin":
        root = places.home / "Library" / "Application Support" / folder
    else:
        root = places.settings(folder)
    entry = Entry("model_id", _NAME)
    return (
        SettingsFile(
            path=root / "extra-openai-models.yaml",
            form=Form.YAML,
            values={
                (entry,): {
                    "model_id": _NAME,
                    "model_name": target.model,
                    "api_base": target.base_url,
                    "api_key_name": _NAME,
                    "supports_tools": True,
                },
            },
            added=((entry,),),
        ),
        SettingsFile(
            path=root / "keys.json",
            form=Form.JSON,
            values={(_NAME,): target.key},
            added=((_NAME,),),
            key_at=(_NAME,),
        ),
    )


def _opencode(places: Places, target: Target) -> Files:
    key_file = places.own / "opencode.key"
    limit = {"context": target.tokens, "output": target.tokens // _ANSWER_SHARE}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": _MODEL_TITLE,
        "options": {"baseURL": target.base_url, "apiKey": f"{{file:{key_file}}}"},
        "models": {target.model: {"limit": limit}},
    }
    folder = places.folder("XDG_CONFIG_HOME", ".config") / "opencode"
    model = f"{_NAME}/{target.model}"
    return (
        SettingsFile(
            path=folder / "opencode.json",
            form=Form.JSON,
            values={
                ("model",): model,
                ("small_model",): model,
                ("provider", _NAME): provider,
            },
            added=(("provider", _NAME),),
        ),
        OwnFile(path=key_file, lines=("",)),
    )


def _cline(places: Places, target: Target) -> Files:
    root = places.folder("CLINE_DIR", ".cline")
    file = places.folder("CLINE_DATA_DIR", *root.parts, "data") / "settings" / "providers.json"
    provider = ("providers", "openai-compatible")
    settings = {
        "provider": "openai-compatible",
        "apiKey": target.key,
        "model": target.model,
        "baseUrl": target.base_url,
    }
    return (
        SettingsFile(
            path=file,
            form=Form.JSON,
            # Without these it takes an entry for damaged, and drops it.
            if_missing={
                ("version",): 1,
                ("modes",): {},
                (*provider, "updatedAt"): "2026-01-01T00:00:00.000Z",
                (*provider, "tokenSource"): "manual",
            },
            values={
                ("lastUsedProvider",): "openai-compatible",
                (*provider, "settings"): settings,
            },
            added=(provider,),
            key_at=(*provider, "settings", "apiKey"),
        ),
    )


def _shell_line(command: tuple[str, ...], system: str) -> str:
    if system == "win32":
        import subprocess  # noqa: PLC0415 - only its rule of quoting

        return subprocess.list2cmdline(command)
    return shlex.join(command)


# The size of a first request was recorded; four bytes count as a token.
PROGRAMS: Final[Mapping[str, Program]] = {
    "claude-code": Program(
        title="Claude Code",
        commands=("claude",),
        files=_claude_code,
        source="https://code.claude.com/docs/en/settings-reference",
        has_key=False,
        first_request=21_000,
    ),
    "codex": Program(
        title="Codex CLI",
        commands=("codex",),
        files=_codex,
        source="https://developers.openai.com/codex/config-reference",
        has_key=False,
        first_request=10_000,
    ),
    "aider": Program(
        title="aider",
        commands=("aider",),
        files=_aider,
        source="https://aider.chat/docs/config/aider_conf.html",
        has_key=True,
        first_request=800,
    ),
    "continue": Program(
        title="Continue",
        commands=("cn",),
        files=_continue,
        source="https://docs.continue.dev/reference",
        has_key=True,
        first_request=1_400,
    ),
    "zed": Program(
        title="Zed",
        commands=("zed", "zeditor"),
        files=_zed,
        source="https://zed.dev/docs/ai/use-api-access",
        has_key=True,
        then="enter this key once, in Zed's panel of language models (agent: open settings): {key}",
    ),
    "open-webui": Program(
        title="Open WebUI",
        commands=("open-webui",),
        files=_open_webui,
        source="https://docs.openwebui.com/reference/env-configuration",
        has_key=True,
        then="start it with these variables: set -a; . {file}; set +a; open-webui serve",
    ),
    "llm": Program(
        title="llm",
        commands=("llm",),
        files=_llm,
        source="https://llm.datasette.io/en/stable/other-models.html",
        has_key=True,
        then="ask it: llm -m companion 'Hello'",
    ),
    "opencode": Program(
        title="opencode",
        commands=("opencode",),
        files=_opencode,
        source="https://opencode.ai/docs/config/",
        has_key=True,
        first_request=8_000,
    ),
    "cline": Program(
        title="Cline CLI",
        commands=("cline",),
        files=_cline,
        source="https://docs.cline.bot/cline-cli",
        has_key=True,
        first_request=5_500,
    ),
}

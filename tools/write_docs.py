"""Write the documentation that is generated from tables in the code.

python tools/write_docs.py            write the pages of `PAGES`
python tools/write_docs.py --check    change nothing; exit 1 if one of them is out of date
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from companion_core.config.sections import SECTIONS
from companion_core.connect import PROGRAMS, Places
from companion_core.connect.changes import name_of
from companion_core.connect.programs import OwnFile, Target
from companion_core.decisions.client_environment import HARMLESS, ROWS, Row, Session
from companion_core.decisions.guard import GUARD_ORDER
from companion_core.decisions.lifecycle import TRANSITIONS, Event, State, can_serve_inference
from companion_core.decisions.request_gate import GATE_ORDER
from companion_core.errors import EXIT_CODES, REASONS
from companion_core.gateway.states import (
    CONNECTION_TABLE,
    EXCHANGE_TABLE,
    ConnectionState,
    ExchangeState,
    Moves,
)
from companion_core.system.secret import Secret

ROOT = Path(__file__).resolve().parent.parent
EVERY_FILE = "## Every file"
NOTE = "<!-- Written by tools/write_docs.py from the code; edit that. -->"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def reasons() -> Iterator[str]:
    """Yield the lines of docs/reasons.md."""
    yield "# Reasons"
    yield ""
    yield NOTE
    yield ""
    yield "Every refusal names one reason of this closed list. The values are stable: scripts may"
    yield "match on them. The exit code is that of the command line."
    yield ""
    yield from _table(
        ("reason", "who has to act", "exit code", "what to do"),
        [
            (
                f"`{reason}`",
                info.culprit.value.replace("_", " "),
                str(EXIT_CODES[info.culprit]),
                info.advice,
            )
            for reason, info in REASONS.items()
        ],
    )


def lifecycle() -> Iterator[str]:
    """Yield the lines of docs/lifecycle.md."""
    yield "# Lifecycle of the runtime"
    yield ""
    yield NOTE
    yield ""
    serving = " and ".join(f"`{state}`" for state in State if can_serve_inference(state))
    yield f"The runtime gets work in {serving} only. An event that a state's row does not list is"
    yield "refused with `invalid_transition` and changes nothing (invariant I-09)."
    yield ""
    yield from _state_diagram(
        State.STOPPED,
        [(state, event, target) for (state, event), target in TRANSITIONS.items()],
    )
    yield ""
    yield from _table(
        ("state", *(f"`{event}`" for event in Event)),
        [
            (f"`{state}`", *(str(TRANSITIONS.get((state, event), "")) for event in Event))
            for state in State
        ],
    )


def _state_diagram(start: str, moves: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Yield a diagram of moves: from which state, by which event, to which state."""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {start}"
    for state, event, target in moves:
        yield f"    {state} --> {target}: {event}"
    yield "```"


def guard() -> Iterator[str]:
    """Yield the lines of docs/guard.md."""
    yield "# The order of a request"
    yield ""
    yield NOTE
    yield ""
    yield "Every request passes these steps in this order. The first step that fails answers it,"
    yield "and no model work is done (invariant I-10). A request that reaches a counted step uses"
    yield "its sender's budget: the owner, who shows the token, has one, and all strangers share"
    yield f"one. The first {len(GUARD_ORDER)} steps are the guard (`decisions/guard.py`), the"
    yield "others the request gate (`decisions/request_gate.py`), which a health check skips."
    yield ""
    yield "```mermaid"
    yield "flowchart LR"
    steps = [step.name for step in GUARD_ORDER] + [step.name for step in GATE_ORDER]
    chain = ["request", *steps, "runtime"]
    for here, there in itertools.pairwise(chain):
        yield f"    {here} --> {there}"
    yield "```"
    yield ""
    yield "## The guard"
    yield ""
    yield from _table(
        ("step", "answers", "counted"),
        [
            (step.name, _named(step.reasons), "yes" if step.counted else "no")
            for step in GUARD_ORDER
        ],
    )
    yield ""
    yield "## The request gate"
    yield ""
    yield "`at_capacity` means that the request waits; every other answer refuses it."
    yield ""
    yield from _table(
        ("step", "answers"), [(step.name, _named(step.refusals)) for step in GATE_ORDER]
    )
    yield ""
    yield "## What a client's connection does"
    yield ""
    yield "A connection serves one request after the other; what it does at each moment is one"
    yield "state of this table (`gateway/states.py`). An event in a state that does not list it is"
    yield "an error and changes nothing."
    yield ""
    yield from _state_diagram(ConnectionState.READING_HEAD, _moves(CONNECTION_TABLE))
    yield ""
    yield "## What a request waits for"
    yield ""
    yield "Once a request has been read in full, the connection's exchange has it. A health check"
    yield "needs no place; one that prefers to wait is held until there is a backend."
    yield ""
    yield from _state_diagram(ExchangeState.IDLE, _moves(EXCHANGE_TABLE))


def _moves(table: Mapping[Any, Moves[Any]]) -> Iterator[tuple[str, str, str]]:
    for event, moves in table.items():
        for state, target in moves.items():
            yield state, event, target


def _named(reasons: Sequence[str]) -> str:
    return ", ".join(f"`{reason}`" for reason in reasons)


def rules() -> Iterator[str]:
    """Yield the lines of docs/rules.md."""
    yield "# The rules"
    yield ""
    yield NOTE
    yield ""
    yield "Every decision is a pure function in `companion_core/decisions/`, and every module there"
    yield "begins with its rules. This page collects them; `lanes.py` has those of consent too."
    yield ""
    folder = ROOT / "companion_core" / "decisions"
    rows = []
    for path in sorted(folder.rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        intent, _, rule = text.partition(": ")
        if intent in {"Rules", "Rules for this file"}:
            rule = " ".join(rule.split())
            rows.append((f"`{path.relative_to(folder).as_posix()}`", rule[0].upper() + rule[1:]))
    yield from _table(("module", "rules"), rows)


def configuration() -> Iterator[str]:
    """Yield the lines of docs/configuration.md."""
    yield "# Configuration"
    yield ""
    yield NOTE
    yield ""
    yield "The file is TOML. A key that is not listed here is refused, with its line and the"
    yield "nearest known key. Every value has the default below; a key that is *needed* is so once"
    yield "its section is there. No file is needed to serve a model of your own. `companion init`"
    yield "writes one with what this machine has; run again, it shows what it would add, and keeps"
    yield "what you wrote, with its order and its comments."
    for name, section in SECTIONS.items():
        yield ""
        yield f"## [{name}]"
        yield ""
        yield str(section.__doc__).partition(": ")[2].capitalize()
        yield ""
        yield from _table(
            ("key", "value", "default"),
            [
                (f"`{known.name}`", known.metadata["rule"], _default(known))
                for known in dataclasses.fields(section)
            ],
        )


def _default(known: dataclasses.Field[object]) -> str:
    if known.metadata["varies"]:
        return str(known.metadata["varies"])
    if known.default is not dataclasses.MISSING:
        return "none" if known.default is None else f"`{json.dumps(known.default)}`"
    return "none" if known.default_factory is not dataclasses.MISSING else "needed"


def scenarios() -> Iterator[str]:
    """Yield the lines of docs/scenarios.md."""
    vectors = ROOT / "tests" / "vectors"
    tests = json.loads((vectors / "scenarios.json").read_text(encoding="utf-8"))
    replaced = json.loads((vectors / "superseded.json").read_text(encoding="utf-8"))
    covered = [test for rows in tests.values() for test in rows.values()]
    yield "# Scenarios and the tests that cover them"
    yield ""
    yield NOTE
    yield ""
    yield "The scenario cases of `tests/vectors/stricter` need real parts. Each is covered by the"
    yield "test that `tests/vectors/scenarios.json` names for it; the others are open."
    yield f"Covered: {sum(test is not None for test in covered)} of {len(covered)}."
    for file, rows in tests.items():
        yield ""
        yield f"## {file}"
        yield ""
        yield from _table(
            ("scenario", "test"),
            [(f"`{id_}`", f"`{test}`" if test else "open") for id_, test in rows.items()],
        )
    yield ""
    yield "## Reference answers that a rule replaces"
    yield ""
    yield "Further answers than those that the vectors mark; from `tests/vectors/superseded.json`."
    yield ""
    if replaced:
        yield from _table(
            ("file", "case", "why"),
            [
                (f"`{file}`", f"`{row['id']}`", row["why"])
                for file, rows in replaced.items()
                for row in rows
            ],
        )
    else:
        yield "None."


def clients() -> Iterator[str]:
    """Yield the lines of docs/clients.md."""
    yield "# What a client inherits from `companion exec`"
    yield ""
    yield NOTE
    yield ""
    yield "`companion exec -- CMD` starts a program in your environment, with the session's"
    yield "address, key and model under every name that clients read, and without the inherited"
    yield "variables that could lead it, its prompts or the token elsewhere (invariant I-19). Names"
    yield "are compared without regard to case; `*` stands for any characters."
    yield ""
    yield "## Set, whether you had them or not"
    yield ""
    yield from _table(
        ("variables", "value", "otherwise", "read by"),
        [
            (_named(row.names), _client_value(row), row.why, row.read_by)
            for row in ROWS
            if row.value is not None
        ],
    )
    yield ""
    yield "A model is named only while one is served. Hosts of loopback are added to `NO_PROXY` and"
    yield "`no_proxy`; `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY` stay for the program's other"
    yield "connections."
    yield ""
    yield "## Set aside"
    yield ""
    yield from _table(
        ("variables", "what they could do", "read by"),
        [(_named(row.names), row.why, row.read_by) for row in ROWS if row.value is None],
    )
    yield ""
    yield "Of these families the following lead nowhere and stay as you have them:"
    yield f"{_named(HARMLESS)}."
    yield ""
    yield "stderr names the inherited variables whose values CMD does not get, never the values;"
    yield "`companion --quiet exec` does not. `exec --keep NAME` leaves one as it is, and may be"
    yield "repeated; the session's own address and key cannot be replaced that way."
    yield ""
    yield "## What `exec` does not reach"
    yield ""
    yield "* Files. aider's `.env` (in your home, the repository and the current folder),"
    yield "  opencode's `opencode.json`, a program's own `.env`: where such a file names another"
    yield "  address, the request goes there, and the token with it. Codex, Zed, crush, Continue,"
    yield "  Cline and the stored models of `llm` take their address from files alone. `exec` says"
    yield "  so before it starts one of them, and `companion connect` writes into those files."
    yield "* What the program's own text says: an address in the code, a tracer that it switches"
    yield "  on."
    yield "* Variables that run code (`PYTHONPATH`, `NODE_OPTIONS`, `LD_PRELOAD`) or that only your"
    yield "  program knows. They are yours, and stay."
    yield ""
    yield "`companion token` prints the token for a program that `exec` cannot start. Nothing is"
    yield "set aside there: look through the table above first."


def _client_value(row: Row) -> str:
    return row.value.value if isinstance(row.value, Session) else f"`{row.value}`"


def architecture() -> Iterator[str]:
    """Yield docs/architecture.md: its text by hand, then every file with its own first line."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    yield text.partition(EVERY_FILE)[0].rstrip()
    yield ""
    yield EVERY_FILE
    yield ""
    yield NOTE
    yield ""
    package = ROOT / "companion_core"
    abouts = {
        file.relative_to(package).as_posix(): ast.get_docstring(ast.parse(file.read_text("utf-8")))
        for file in sorted(package.rglob("*.py"))
    }
    yield from _table(
        ("file", "what it is"),
        [(f"`{name}`", about.split("\n")[0]) for name, about in abouts.items() if about],
    )


def connected_programs() -> Iterator[str]:
    """Yield the lines of docs/connect.md."""
    yield from _CONNECT_BEFORE.format(note=NOTE).splitlines()
    home, own = Path("/~"), Path("/STATE")
    places = Places(home=home, variables={}, own=own, system="linux")
    target = Target(
        port=1, model="MODEL", context=1, key=Secret(""), token_command=("companion", "token")
    )
    rows = []
    for name, program in PROGRAMS.items():
        files = program.files(places, target)
        values = [
            f"the variables {', '.join(line.partition('=')[0] for line in file.lines)}"
            if isinstance(file, OwnFile) and len(file.lines) > 1
            else "its key"
            if isinstance(file, OwnFile)
            else ", ".join(f"`{name_of(path)}`" for path in file.values)
            for file in files
        ]
        paths = [f"`{str(file.path)[1:]}`" for file in files]
        key = "keeps its own" if program.has_key else "runs `companion token`"
        title = f"[{program.title}]({program.source})"
        rows.append((f"`{name}`", title, "<br>".join(paths), "<br>".join(values), key))
    yield from _table(("name", "program", "file", "what is set there", "key"), rows)
    yield from _CONNECT_AFTER.splitlines()


_CONNECT_BEFORE = """\
# Programs that are led here by their own settings

{note}

`companion connect CLIENT` writes this gateway's address, a model and a key into the settings
of a program, so that it reaches the companion however it is started. `companion connect`
lists the programs and how each stands:

| state | means |
| --- | --- |
| `ok` | it is connected, and its settings lead here |
| `drift` | it is connected, and a value, the port, the model or the key is another one now |
| `absent` | it is not connected |
| `foreign` | its file is not understood, or has what only a connection writes; nothing is changed |

## What is written

STATE is `instances/NAME/connect` in the state folder. On macOS and Windows the programs keep
the same files where those systems have them; `CLAUDE_CONFIG_DIR`, `CODEX_HOME`,
`CONTINUE_GLOBAL_DIR`, `CLINE_DIR`, `CLINE_DATA_DIR`, `LLM_USER_PATH` and `XDG_CONFIG_HOME`
move them, as they do for the programs. Each program's name leads to its own documentation.
"""

_CONNECT_AFTER = """
## The key

A program that can run a command for its key runs `companion token` with each use, so that no
key lies in its file. Each other gets a key of its own, `connect-CLIENT` in
`companion keys list`; it stays until the connection is taken back, and its file is closed to
others. opencode reads the key from a file of the companion's own, so its `opencode.json` can
be shared. Zed keeps keys in the system's keychain alone: the key is shown once, to be entered
there. Open WebUI has no file: its variables stand in one, which is read before it is started.
It stores them at its first start, and later takes them from its settings alone, unless
`ENABLE_PERSISTENT_CONFIG=False` is set.

## What happens to a person's file

* Comments, order, indentation and line ends stay; only the values above change. A text is
  parsed again before it is written: it must say what it said before, and the change.
* What stood there is kept in the state folder, readable by you alone. `--remove` brings it
  back to the byte. If the file was changed since, only the values that are still as they were
  written are taken out, and the ones from before come back; a value that you changed stays,
  and is named.
* The file is replaced whole or not at all. A link to it stays, and the file behind it is
  changed; each link and folder on the way must belong to you or root and be closed to others.
* A value that would lead the program elsewhere (another key in Claude Code's `env`, Codex's
  `profile`) is refused and named; it is yours to take out.
* Without `--model`, a connection follows the model that is served: after a change of model or
  port `companion connect --check` exits 3 and says `drift`, and connecting again mends it.

## What settings cannot do

* A variable of the shell, a project's own file or an option of the command may still win:
  aider's `.env`, opencode's and Claude Code's project files.
* The extensions of VS Code (Cline, Roo Code) keep their settings in the editor's storage,
  which is no file for others: choose "OpenAI Compatible" in their panel, with the address of
  `companion status` and a key of `companion keys add`.
* A coding agent's first request is long where the model's template has tools: up to 21,000
  tokens for Claude Code, 10,000 for Codex, 8,000 for opencode. `companion connect` says so
  where the model takes fewer.

Tested with the programs themselves: `make test` asks llm; `make test-connect` asks Claude
Code 2.1.197, Codex CLI 0.171.0, Continue CLI 1.5.47 and opencode 1.18.33. aider 0.86.2 and
Cline CLI 3.0.65 were connected and asked by hand, and answered. Zed and Open WebUI were not
run: what is written for them follows their documentation.
"""


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "docs/architecture.md": architecture,
    "docs/reasons.md": reasons,
    "docs/lifecycle.md": lifecycle,
    "docs/configuration.md": configuration,
    "docs/guard.md": guard,
    "docs/rules.md": rules,
    "docs/scenarios.md": scenarios,
    "docs/clients.md": clients,
    "docs/connect.md": connected_programs,
}


def main(arguments: Sequence[str]) -> int:
    """Write or check every page; return the exit code."""
    check = "--check" in arguments
    stale = 0
    for name, page in PAGES.items():
        path = ROOT / name
        text = "\n".join(page()) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"{name} is out of date; run python tools/write_docs.py")
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"{name} written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

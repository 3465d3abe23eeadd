"""Attacker: a module that reaches the machine past the doorway (`companion_core.egress`).

Every file of the package is read as source. Only the doorway itself, and programs that run
as their own process, may start or signal processes or open outbound connections.
"""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.security

PACKAGE = Path(__file__).parents[2] / "companion_core"

# The doorway, what it makes connections with, and the children that run as their own programs.
EXEMPT = frozenset(
    {
        "egress/browser.py",
        "egress/gateway_client.py",
        "egress/http_transport.py",
        "egress/live.py",
        "egress/owner_pipe.py",
        "egress/process_identity.py",
        "egress/tunnel.py",
        "runtime/standalone/broker.py",
        "runtime/standalone/namespaces.py",
        "runtime/standalone/keeper.py",
        "testing/fake_runtime.py",
    }
)

# Nothing of these modules is needed elsewhere, not even a constant.
MODULES = frozenset(
    {
        "asyncio.subprocess",
        "multiprocessing",
        "concurrent.futures.process",
        "pty",
        "webbrowser",
        "ftplib",
        "smtplib",
        "poplib",
        "imaplib",
        "telnetlib",
        "xmlrpc.client",
        "httpcore2",
        "httpx",
        "httpx2",
        "requests",
        "aiohttp",
        "urllib3",
    }
)

# Any mention of these is a way out, except as the type in an annotation.
NAMES = (
    "os.kill",
    "os.killpg",
    "os.fork",
    "os.forkpty",
    "os.exec*",
    "os.spawn*",
    "os.posix_spawn*",
    "os.system",
    "os.popen",
    "os.startfile",
    "signal.pidfd_send_signal",
    "signal.raise_signal",
    "signal.pthread_kill",
    "subprocess.Popen",
    "subprocess.run",
    "subprocess.call",
    "subprocess.check_*",
    "subprocess.get*output",
    "asyncio.create_subprocess_*",
    "asyncio.open_connection",
    "asyncio.open_unix_connection",
    "socket.create_connection",
    "concurrent.futures.ProcessPoolExecutor",
    "http.client.HTTPConnection",
    "http.client.HTTPSConnection",
    "urllib.request.*open*",
    "urllib.request.*Open*",
    "urllib.request.urlretrieve",
)

# Methods of an event loop or a socket, on whatever object.
METHODS = frozenset(
    {
        "create_connection",
        "create_unix_connection",
        "create_datagram_endpoint",
        "subprocess_exec",
        "subprocess_shell",
        "sock_connect",
        "sendto",
    }
)
# Only a bare socket is told where to connect; a connection of the doorway is connected already.
METHODS_WITH_ADDRESS = frozenset({"connect", "connect_ex"})
# Methods of a `psutil.Process`, which takes any pid. (A child of the doorway is our own.)
METHODS_OF_PSUTIL = frozenset({"kill", "terminate", "suspend", "send_signal"})


class Finder(ast.NodeVisitor):
    """Collects `line: what` for each way past the doorway."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._names: dict[str, str] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._imported(node, alias.name)
            name = alias.asname or alias.name.partition(".")[0]
            self._names[name] = alias.name if alias.asname else name

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            dotted = f"{node.module}.{alias.name}"
            self._imported(node, node.module or "")
            self._imported(node, dotted)
            self._names[alias.asname or alias.name] = dotted
            self._mentioned(node, dotted)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._mentioned(node, self._dotted(node))
        self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> None:
        """An annotation starts nothing."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        for part in filter(None, (node.target, node.value)):
            self.visit(part)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - the visitor's protocol

    def visit_Call(self, node: ast.Call) -> None:
        called = self._dotted(node.func)
        if isinstance(node.func, ast.Attribute):
            method = node.func.attr
            if (
                method in METHODS
                or (method in METHODS_WITH_ADDRESS and node.args)
                or (method in METHODS_OF_PSUTIL and "psutil" in self._names)
            ):
                self._report(node, f".{method}()")
        first = node.args[0] if node.args else None
        if called in {"__import__", "importlib.import_module"} and isinstance(first, ast.Constant):
            self._imported(node, str(first.value))
        if called == "getattr" and len(node.args) > 1:
            owner, name = self._dotted(node.args[0]), node.args[1]
            if isinstance(name, ast.Constant):
                self._mentioned(node, f"{owner}.{name.value}")
            elif owner in {"os", "signal", "socket", "asyncio", "http.client"}:
                self._report(node, f"getattr({owner}, …)")
        self.generic_visit(node)

    def _dotted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self._names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self._dotted(node.value)}.{node.attr}"
        return ""

    def _imported(self, node: ast.AST, module: str) -> None:
        if any(module == name or module.startswith(f"{name}.") for name in MODULES):
            self._report(node, module)

    def _mentioned(self, node: ast.AST, dotted: str) -> None:
        if any(fnmatch.fnmatchcase(dotted, name) for name in NAMES):
            self._report(node, dotted)

    def _report(self, node: ast.AST, what: str) -> None:
        self.found.append(f"{node.lineno}: {what}")


def ways_out(source: str) -> list[str]:
    finder = Finder()
    finder.visit(ast.parse(source))
    return finder.found


def files() -> Iterator[Path]:
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.relative_to(PACKAGE).as_posix() not in EXEMPT:
            yield file


def test_only_the_doorway_reaches_the_machine():
    found = {
        file.relative_to(PACKAGE).as_posix(): ways
        for file in files()
        if (ways := ways_out(file.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_the_rules_would_accuse_the_doorway_itself():
    assert len(ways_out((PACKAGE / "egress" / "live.py").read_text(encoding="utf-8"))) > 5


@pytest.mark.parametrize(
    "snippet",
    [
        "import subprocess\nsubprocess.run([])",
        "from subprocess import Popen",
        "import subprocess\nstart = subprocess.Popen",
        "import subprocess\ndef f(start=subprocess.Popen): ...",
        "def f():\n    import subprocess as s\n    s.run([])",
        "import asyncio.subprocess",
        "__import__('multiprocessing').Process()",
        "import importlib\nimportlib.import_module('asyncio.subprocess')",
        "import os\nos.kill(1, 9)",
        "import os as system\nsystem.kill(1, 9)",
        "from os import kill as stop\nstop(1, 9)",
        "import os\nstop = os.killpg",
        "import os\nos.execvpe('x', [], {})",
        "import os\nos.posix_spawnp('x', [], {})",
        "import os\ngetattr(os, 'system')('x')",
        "import os\ngetattr(os, name)('x')",
        "import signal\nsignal.pidfd_send_signal(3, 9)",
        "import asyncio\nasyncio.create_subprocess_exec('x')",
        "from asyncio import open_connection",
        "import asyncio\nasyncio.get_running_loop().create_connection(x, 'h', 1)",
        "loop.create_unix_connection(x, 'p')",
        "import socket\nsocket.create_connection(('h', 1))",
        "import socket\nsocket.socket().connect(('h', 1))",
        "import http.client\nhttp.client.HTTPSConnection('h')",
        "from http.client import HTTPConnection as C\nC('h')",
        "import http.client\nclass C(http.client.HTTPConnection): pass",
        "from urllib.request import urlopen",
        "import urllib.request as r\nr.build_opener()",
        "import webbrowser",
        "import psutil\npsutil.Process(1).kill()",
    ],
)
def test_a_planted_way_out_is_found(snippet: str):
    assert ways_out(snippet)


@pytest.mark.parametrize(
    "snippet",
    [
        "import os\nos.getpid()\nos.open('x', os.O_RDONLY)\ngetattr(os, 'O_NOFOLLOW', 0)",
        "import urllib.parse\nurllib.parse.urlsplit('x')",
        "import http.client\ndef f(c: http.client.HTTPSConnection) -> None: ...",
        "import http.client\nasync def f() -> http.client.HTTPSConnection: ...",
        "import subprocess\nclass C:\n    child: subprocess.Popen[bytes]",
        "connection = egress.connect_https('h', 1)\nconnection.connect()",
        "egress.connect_https('h', 1)\negress.send_signal(who, 15)",
        "import signal\nsignal.SIGTERM",
        "import asyncio\nloop.create_server(x, '127.0.0.1', 0)",
    ],
)
def test_ordinary_code_is_not_accused(snippet: str):
    assert ways_out(snippet) == []

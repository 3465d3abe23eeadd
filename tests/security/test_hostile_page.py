"""A real Chromium on a hostile page: whatever it tries, no model works for it.

The page knows the address and even the token. What keeps it out is what the browser itself
says about its requests (Host, Origin, fetch metadata, preflights), or does not say.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import gateway_parts as parts
import pytest

pytestmark = [pytest.mark.security, pytest.mark.timeout(240)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
VISIT_SECONDS = 100

# Every way from a page to a port; BASE is the door as the page addresses it.
PAGE = """<!doctype html><title>x</title><body><script>
const base = "BASE", chat = base + "/v1/chat/completions", quiet = () => 0;
const body = JSON.stringify({model: "m", messages: [{role: "user", content: "hi"}]});
const token = {authorization: "Bearer TOKEN"};
const json = {...token, "content-type": "application/json"};
const ways = [
  [base + "/v1/models", {mode: "no-cors"}],
  [base + "/v1/models", {headers: token}],
  [chat, {method: "POST", headers: json, body}],
  [chat, {method: "POST", mode: "no-cors", headers: {"content-type": "text/plain"}, body}],
  [chat, {method: "POST", mode: "no-cors", body: new Blob([body], {type: "text/plain"})}],
  [chat + "?authorization=TOKEN", {method: "POST", mode: "no-cors", body}],
  [chat.replace("127.0.0.1", "localhost"), {method: "POST", headers: json, body}],
  [chat.replace("127.0.0.1", "0.0.0.0"), {method: "POST", mode: "no-cors", body}],
  [chat.replace("127.0.0.1", "[::1]"), {method: "POST", mode: "no-cors", body}],
];
for (const [url, options] of ways) fetch(url, options).catch(quiet);
navigator.sendBeacon(chat, body);
navigator.sendBeacon(chat, new Blob([body], {type: "application/json"}));
new Image().src = base + "/v1/models";
document.head.append(Object.assign(document.createElement("script"), {src: base + "/v1/models"}));
new EventSource(base + "/v1/models").onerror = quiet;
try { new WebSocket(base.replace("http", "ws") + "/v1/chat/completions"); } catch { quiet(); }
for (const html of [
  `<iframe src="${base}/-/health"></iframe>`,
  `<iframe name="f"></iframe><form method="POST" target="f" enctype="text/plain"
    action="${chat}"><input name='{"model":"m","x":"' value='"}'></form>`,
]) document.body.insertAdjacentHTML("beforeend", html);
document.forms[0].submit();
const boxed = Object.assign(document.createElement("iframe"), {sandbox: "allow-scripts"});
boxed.srcdoc = `<script>fetch("${chat}", {method: "POST", mode: "no-cors", body: "{}"})<\\/script>`;
document.body.append(boxed);
</script>"""


async def visit(url: str, *flags: str) -> str:
    """Let Chromium load a page, run its scripts, and return what the page became."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"),
            *("--virtual-time-budget=5000", "--dump-dom", *flags, url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            output, _ = await asyncio.wait_for(browser.communicate(), VISIT_SECONDS)
        finally:
            # The group is ours alone: the browser's helpers end with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
            await browser.wait()
        return output.decode(errors="replace")


@contextlib.asynccontextmanager
async def attacker(page: str, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """Serve a page at "/"; everything else goes, byte for byte, to 127.0.0.1 at the same port.

    That is what a name does which pointed at the attacker first and at loopback afterwards.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET / "):
                content = page.encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
                )
                await writer.drain()
            elif port:
                inner, outer = await asyncio.open_connection("127.0.0.1", port)
                outer.write(head)
                await asyncio.gather(splice(reader, outer), splice(inner, writer))
        writer.close()

    async def splice(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    server = await asyncio.start_server(serve, host, port)
    async with server:
        yield server.sockets[0].getsockname()[1]


def answers(door: Any) -> dict[str, int]:
    """Return how many requests the door has answered, by reason."""
    counts: dict[str, int] = {}
    pattern = r'companion_request_seconds_count\{path="[^"]*",reason="([^"]*)"\} (\d+)'
    for reason, number in re.findall(pattern, door.gateway.metrics_text()):
        counts[reason] = counts.get(reason, 0) + int(number)
    return counts


def write_page(base: str) -> str:
    return PAGE.replace("BASE", base).replace("TOKEN", parts.TOKEN)


@pytest.mark.parametrize("space", ["loopback", "public"])
def test_a_foreign_page_reaches_no_model(space: str, require_real: Any) -> None:
    require_real("Chromium", CHROMIUM is not None)

    async def main() -> None:
        async with parts.open_door(lifetime=VISIT_SECONDS + 60) as door:
            page = write_page(f"http://127.0.0.1:{door.gateway.port}")
            async with attacker(page) as port:
                dom = await visit(
                    f"http://evil.test:{port}/",
                    "--host-resolver-rules=MAP evil.test 127.0.0.1",
                    f"--ip-address-space-overrides=127.0.0.1:{port}={space}",
                )
            assert "<form" in dom, "the page's script has not run"
            seen = answers(door)
            if space == "loopback":
                # Another local program's page: the browser holds nothing back, the door does.
                assert seen.get("cross_site_forbidden", 0) >= 5, seen
            assert "ok" not in seen
            assert door.backend.requests == []

    asyncio.run(main())


def test_a_rebound_name_reaches_no_model(require_real: Any) -> None:
    require_real("Chromium", CHROMIUM is not None)

    async def main() -> None:
        async with parts.open_door(lifetime=VISIT_SECONDS + 60) as door:
            port = door.gateway.port
            page = write_page(f"http://evil.test:{port}")
            # Same name, same port: to the browser page and door are one origin.
            async with attacker(page, host="127.0.0.2", port=port):
                dom = await visit(
                    f"http://evil.test:{port}/",
                    "--host-resolver-rules=MAP evil.test 127.0.0.2",
                )
            assert "<form" in dom, "the page's script has not run"
            seen = answers(door)
            assert seen.get("host_not_allowed", 0) >= 5, seen
            assert "ok" not in seen
            assert door.backend.requests == []

    asyncio.run(main())

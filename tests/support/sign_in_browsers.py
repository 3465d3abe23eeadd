"""The person at the browser: as a script over HTTP, and as a real Chromium that clicks through."""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from http.cookies import SimpleCookie
from typing import Any, Self
from urllib.parse import urlencode, urljoin, urlsplit

_FORM = re.compile(r"<form(?P<attributes>[^>]*)>(?P<fields>.*?)</form>", re.DOTALL)
_FIELD = re.compile(r'name="(?P<name>[^"]+)"[^>]*value="(?P<value>[^"]*)"')


class ScriptedBrowser:
    """Follows redirects and fills in the forms of a service as a person would.

    Args:
        context: that trusts the service.
        typed: further fields, such as the code of another device.
    """

    def __init__(self, context: ssl.SSLContext, **typed: str) -> None:
        self._context = context
        self._typed = typed
        self._cookies: dict[str, str] = {}

    def visit(self, url: str) -> tuple[int, str]:
        """Open an address and go on to the end; return the status and the text of the last page."""
        status, page, where = self._ask("GET", url)
        for _ in range(20):
            if 300 <= status < 400:
                status, page, where = self._ask("GET", where)
                continue
            form = _FORM.search(page)
            if status >= 400 or form is None:
                return status, page
            fields = dict(_FIELD.findall(form["fields"]))
            if 'name="login"' in form["fields"]:
                fields |= {"login": "alice", "password": "x"}
            fields |= {k: v for k, v in self._typed.items() if f'name="{k}"' in form["fields"]}
            action = re.search(r'action="([^"]*)"', form["attributes"])
            target = urljoin(where, html.unescape(action[1])) if action else where
            status, page, where = self._ask("POST", target, fields)
        raise AssertionError("the service never comes to an end")

    def _ask(
        self, method: str, url: str, fields: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        parts = urlsplit(url)
        assert parts.hostname is not None
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, context=self._context, timeout=20
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
        headers = {"Cookie": "; ".join(f"{k}={v}" for k, v in self._cookies.items())}
        if fields is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        with contextlib.closing(connection):
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(method, target, urlencode(fields or {}) or None, headers)
            answer = connection.getresponse()
            page = answer.read().decode(errors="replace")
        for line in answer.headers.get_all("Set-Cookie") or []:
            self._cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return answer.status, page, urljoin(url, answer.headers.get("Location") or url)


# Fills in what is empty and clicks; each page of the service needs one click.
_CLICK = """
for (const field of document.querySelectorAll("input"))
  if (["text", "password"].includes(field.type)) field.value = "alice";
const button = document.querySelector("button[type=submit], input[type=submit], button");
if (button && location.protocol === "https:") button.click();
location.protocol + location.pathname
"""


class Chromium:
    """A real one, driven over a pipe (`--remote-debugging-pipe`: JSON that ends with NUL)."""

    def __init__(self, program: str, profile: str) -> None:
        ours, theirs = os.pipe(), os.pipe()
        # The browser reads descriptor 3 and writes descriptor 4, whichever ours have.
        shell = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        self._browser = subprocess.Popen(
            [
                *("/bin/bash", "-c", shell, program),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--no-first-run", "--disable-background-networking"),
                *("--ignore-certificate-errors", f"--user-data-dir={profile}"),
                *("--remote-debugging-pipe", "about:blank"),
            ],
            pass_fds=(ours[0], theirs[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._out, self._in = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._browser.pid, signal.SIGKILL)  # the group is ours alone
        self._browser.wait()
        for pipe in (self._out, self._in):
            with contextlib.suppress(OSError):
                pipe.close()

    def click_through(self, url: str, pages: int = 40) -> str:
        """Open an address and click on each page; return where it ended, without its query."""
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self._call("Page.navigate", session, url=url)
        where, pause = "", threading.Event()
        for _ in range(pages):
            pause.wait(0.5)
            with contextlib.suppress(KeyError):  # between two pages
                told = self._call("Runtime.evaluate", session, expression=_CLICK)
                where = told["result"]["value"]
            if where.startswith("http:"):
                break
        return where

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            raw = bytearray()
            while (byte := self._in.read(1)) != b"\0":
                assert byte, "the browser ended"
                raw += byte
            answer: dict[str, Any] = json.loads(raw)
            if answer.get("id") == self._number:
                return dict(answer.get("result", {}))


if __name__ == "__main__":  # a person's own browser, as `xdg-open` starts it: CA-FILE URL
    trusting = ssl.create_default_context(cafile=sys.argv[1])
    ScriptedBrowser(trusting).visit(sys.argv[2])

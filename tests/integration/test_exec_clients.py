"""Real clients that `companion exec` starts among hostile variables reach the gateway alone."""

import contextlib
import http.server
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from client_programs import OTHER_KINDS, PROGRAMS, hostile_environment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CLIENT_SECONDS = 90
PYTHON = Path(sys.prefix, "clients", "bin", "python")


class Trap:
    """A listener on loopback, as an address, a proxy or a tracer's, that keeps what it hears."""

    def __init__(self):
        self.heard = []
        heard = self.heard

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                heard.append((self.command, self.path, str(self.headers)))
                self.send_response(400)
                self.send_header("Content-Length", "0")
                self.send_header("Connection", "close")
                self.end_headers()

            def log_message(self, *_arguments):
                pass

        for method in ("GET", "POST", "PUT", "PATCH", "HEAD", "CONNECT"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_error):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def hostile(name, trap, home):
    more = {k: v.replace("TRAP", trap.url) for k, v in OTHER_KINDS.get(name, {}).items()}
    clean = {k: os.environ[k] for k in ("PATH", "XDG_RUNTIME_DIR", "LANG") if k in os.environ}
    return {**clean, "HOME": str(home), **hostile_environment(trap.url), **more}


@pytest.fixture
def started(world, require_real):
    require_real("the clients (make .venv/.clients)", PYTHON.exists())
    world.publish()
    world.configure()
    up = world.companion("up", "--detach")
    assert up.returncode == 0, up.stderr
    return world


def what_is_wrong(name, started, home, token):
    """Start one client without protection and with it; return what should not have happened."""
    program, answer = PROGRAMS[name]
    command = [str(PYTHON), "-c", program]
    with Trap() as trap:
        env = hostile(name, trap, home)
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command, env=env, capture_output=True, timeout=CLIENT_SECONDS, check=False
            )
        if not trap.heard:  # a client that never reaches the trap proves nothing
            yield "the trap is no trap for it"
        trap.heard.clear()
        ran = subprocess.run(
            started.argv("exec", "--", *command),
            env=env,
            capture_output=True,
            text=True,
            timeout=CLIENT_SECONDS,
            check=False,
        )
    told, _, said = ran.stderr.partition("\n")
    if answer not in ran.stdout + said:
        yield f"no answer of the gateway: {ran.stdout}{ran.stderr[-1500:]}"
    if trap.heard:
        yield f"the trap heard {trap.heard}"
    if not told.startswith("companion: set aside") or "inherited" in told or trap.url in told:
        yield f"stderr begins with {told!r}"
    if token in ran.stderr:
        yield "the token is shown"


def test_every_client_reaches_the_gateway_and_no_other_server(started, tmp_path):
    token = started.companion("token").stdout.strip()
    with ThreadPoolExecutor(2) as pool:
        wrong = pool.map(
            lambda name: [f"{name}: {w}" for w in what_is_wrong(name, started, tmp_path, token)],
            PROGRAMS,
        )
        found = [line for lines in wrong for line in lines]
    assert found == [], "\n\n".join(found)


def test_a_person_is_told_once_and_can_keep_a_variable(started):
    show = "import os; print({k: v for k, v in os.environ.items() if '_API_KEY' in k})"
    argv = ("exec", "--keep", "GROQ_API_KEY", "--", sys.executable, "-c", show)
    env = os.environ | {"GROQ_API_KEY": "gsk-theirs", "XAI_API_KEY": "xai-theirs"}
    ran = started.companion(*argv, env=env)
    assert ran.returncode == 0
    assert "gsk-theirs" in ran.stdout
    assert "xai-theirs" not in ran.stdout + ran.stderr
    assert [line for line in ran.stderr.splitlines() if "XAI_API_KEY" in line]
    assert "GROQ_API_KEY" not in ran.stderr
    assert "XAI" not in started.companion("--quiet", *argv, env=env).stderr
    inside = started.companion("exec", "--", *started.argv("exec", "--", "true"), env=env)
    assert inside.stderr.count("companion: set aside") == 1

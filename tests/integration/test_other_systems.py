"""Every module can be imported where Windows or macOS lack what Linux has.

In a child process: what those systems do not have is hidden, then everything of the package
is imported anew. That shows no more than this: the modules load there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="shows other systems what Linux has"),
]

ROOT = Path(__file__).parents[2]
# Programs of their own, which the core starts by their path on the systems they are for.
NOT_IMPORTED = {
    "win32": {
        "companion_core.runtime.standalone.keeper",
        "companion_core.runtime.standalone.broker",
        "companion_core.runtime.standalone.namespaces",
    },
    "darwin": {
        "companion_core.runtime.standalone.broker",
        "companion_core.runtime.standalone.namespaces",
    },
}
PLUGINS = {
    "win32": ("runtime_llamacpp", "runtime_ollama", "keychain_windows"),
    "darwin": ("runtime_llamacpp", "runtime_ollama", "keychain_macos"),
}

CHILD = """
import importlib, importlib.abc, json, os, pkgutil, select, signal, socket, sys, time

platform, not_imported, folders = sys.argv[1], set(json.loads(sys.argv[2])), sys.argv[3:]
sys.path[:0] = folders

def names():
    import companion_core
    found = ["companion_core"]
    found += [m.name for m in pkgutil.walk_packages(companion_core.__path__, "companion_core.")]
    for folder in folders:
        for module in pkgutil.walk_packages([folder]):
            if module.name.startswith("companion_") and "embedded" not in module.name:
                found.append(module.name)
    # A hook of PyInstaller, whose name no import statement can have, is run by that tool alone.
    apart = ("__main__", "hook-companion_core")
    return [name for name in found if name not in not_imported and not name.endswith(apart)]

def ours(name):
    return name.partition(".")[0].startswith("companion_")

wanted = names()
for name in wanted:  # what they need of others is loaded as this system has it
    importlib.import_module(name)
for name in [name for name in sys.modules if ours(name)]:
    del sys.modules[name]

LINUX = {
    os: "pidfd_open O_PATH sched_getaffinity memfd_create getxattr eventfd splice posix_fadvise",
    signal: "pidfd_send_signal SIGIO SIGPOLL SIGPWR SIGSTKFLT",
    socket: "SO_PEERCRED AF_NETLINK AF_PACKET AF_VSOCK SOCK_CLOEXEC SOCK_NONBLOCK",
    time: "CLOCK_BOOTTIME",
    select: "epoll",
}
POSIX = {
    os: "fork forkpty getuid geteuid getgid getegid getgroups getsid setsid getpgid setpgid killpg "
    "pread pwrite preadv fchmod fchown chown lchown chroot mkfifo mknod nice sysconf uname wait "
    "waitid wait3 wait4 WNOHANG O_CLOEXEC O_NOFOLLOW O_NONBLOCK O_DIRECTORY O_SYNC sync fdatasync "
    "set_blocking openpty ttyname posix_spawn initgroups setuid setgid statvfs fstatvfs lockf",
    signal: "SIGKILL SIGSTOP SIGCONT SIGHUP SIGQUIT SIGCHLD SIGUSR1 SIGUSR2 SIGPIPE SIGXFSZ "
    "SIGALRM pthread_sigmask pthread_kill SIG_SETMASK SIG_BLOCK setitimer alarm sigwait",
    socket: "AF_UNIX send_fds recv_fds SCM_RIGHTS CMSG_LEN",
    select: "poll",
    time: "clock_gettime",
}
hidden = {"spwd"} if platform == "darwin" else {
    "fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "spwd", "readline",
}
for missing in [LINUX] if platform == "darwin" else [LINUX, POSIX]:
    for module, attributes in missing.items():
        for attribute in attributes.split():
            if hasattr(module, attribute):
                delattr(module, attribute)

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            raise ModuleNotFoundError(name, name=name)

for name in hidden:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hide())
sys.platform = platform
failed = {}
for name in wanted:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = repr(error)
sys.stdout.write(json.dumps([len(wanted), failed]))
sys.stdout.flush()
os._exit(0)
"""


def run_child(platform: str, hidden: set[str], *folders: str) -> tuple[int, dict[str, str]]:
    """Return how many modules were tried there, and the error of each that was not imported."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, platform, json.dumps(sorted(hidden)), *folders],
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        env={"PATH": os.defpath, "HOME": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=100,
    )
    count, failed = json.loads(child.stdout)
    return count, failed


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_every_module_is_imported_without_what_only_linux_has(platform) -> None:
    folders = [str(ROOT / "plugins" / name) for name in PLUGINS[platform]]
    count, failed = run_child(platform, NOT_IMPORTED[platform], *folders)
    assert failed == {}
    assert count > 150


def test_a_module_that_the_other_system_lacks_fails_to_import() -> None:
    """The keeper is no module of Windows: its import fails there."""
    _, failed = run_child("win32", set())
    assert set(failed) == NOT_IMPORTED["win32"]
    assert "resource" in failed["companion_core.runtime.standalone.keeper"]

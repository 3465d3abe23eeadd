"""Run a command beside a real systemd user manager, in namespaces of its own.

    unshare -pfm --mount-proc python user_manager.py CMD…

Everything that is started ends with the namespace. Needs root, and Debian's `systemd`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

SYSTEMD = "/usr/lib/systemd/systemd"
SECONDS = 30.0


def main() -> int:
    """Start the manager, run the command, and return its exit code."""
    run = Path("/run/user") / str(os.geteuid())
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    subprocess.run(["umount", "-l", "/sys/fs/cgroup"], check=False, capture_output=True)
    subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)
    own = Path("/sys/fs/cgroup") / f"companion-tests-{os.getpid()}-{time.monotonic_ns()}"
    own.mkdir()
    (own / "cgroup.procs").write_text(str(os.getpid()))
    run.mkdir(parents=True, mode=0o700)
    Path("/run/systemd/system").mkdir(parents=True)  # the manager asks whether systemd booted
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(run)}
    with subprocess.Popen([SYSTEMD, "--user"], env=environ, stdin=subprocess.DEVNULL) as manager:
        try:
            until = time.monotonic() + SECONDS
            while not (run / "systemd" / "private").exists():
                if manager.poll() is not None or time.monotonic() > until:
                    print("the user manager did not start", file=sys.stderr)
                    return 70
                time.sleep(0.05)
            return subprocess.run(sys.argv[1:], env=environ, check=False).returncode
        finally:
            manager.terminate()


if __name__ == "__main__":
    sys.exit(main())

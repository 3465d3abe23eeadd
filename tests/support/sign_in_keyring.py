"""Run commands on this session bus with an unlocked keyring: a JSON list of them on stdin.

stdout has one JSON list: exit status, stdout and stderr of each.
"""

import json
import subprocess
import sys

from unlocked_keyring import unlock

SECONDS = 90


def run(argv: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


if __name__ == "__main__":
    unlock("a password")
    print(json.dumps([run(argv) for argv in json.load(sys.stdin)]))

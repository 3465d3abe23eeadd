"""Texts of plugins that print what they are given; `SAY` goes before the plugin itself."""

SAY = """
import asyncio, contextlib, logging, sys, traceback

def say(text):
    print(text)
    print(text, file=sys.stderr)
    sys.stdout.write(text)
    sys.stderr.writelines([text])
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
    logging.getLogger("chatty").error(text)
    asyncio.run(asyncio.to_thread(print, text))
    with contextlib.redirect_stderr(sys.stdout):
        print(text, file=sys.stderr)
    try:
        raise ValueError(text)
    except ValueError:
        traceback.print_exc()
"""
# These reach the descriptors themselves, past Python's streams.
SAY_NATIVELY = """
import os, subprocess, threading

def say(text, softly=say):
    softly(text)
    os.write(1, text.encode())
    os.write(2, text.encode())
    print(text, file=sys.__stdout__, flush=True)
    print(text, file=sys.__stderr__, flush=True)
    subprocess.run(["/bin/echo", text])
    thread = threading.Thread(target=print, args=(text,), kwargs={"file": sys.stderr})
    thread.start()
    thread.join()
"""
KEYCHAIN = """
from companion_core import hookimpl
from companion_core.errors import Reason
from companion_core.providers import KeychainStatus

class Chatty:
    items = {}
    def status(self):
        say("STATUS")
        return KeychainStatus(ok=True, reason=Reason.OK)
    def get(self, account):
        say(f"GOT {self.items.get(account)}")
        return self.items.get(account)
    def set(self, account, secret):
        say(f"SET {secret}")
        self.items[account] = secret
    def delete(self, account):
        say("DELETED")
        self.items.pop(account, None)

say("IMPORTED")

@hookimpl
def companion_keychain():
    say("ASKED")
    return Chatty()
"""

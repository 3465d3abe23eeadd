"""A tiny product, to be frozen: opens a companion, asks it, has its runtime end, and prints.

product CONFIG STATE INTERPRETER
"""

import asyncio
import os
import signal
import sys

from companion_core import Companion, CompanionError, EventKind

QUESTION = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "What are you?"}],
    "temperature": 0,
    "max_tokens": 64,
}


async def main(config: str, state: str, interpreter: str) -> None:
    """Print an answer, how the runtime is confined, and what is told when it ends."""
    try:
        async with Companion.open(
            config, state_dir=state, interpreter=interpreter or None
        ) as companion:
            answer = await companion.http_client().post("/chat/completions", json=QUESTION)
            print(answer.json()["choices"][0]["message"]["content"].replace("\n", " "))
            runtime, stream = companion.status().runtime, companion.events()
            assert runtime is not None
            print(runtime.isolation)
            os.kill(runtime.pid, signal.SIGKILL)
            heard = []
            async for event in stream:
                if event.kind is not EventKind.STEP:
                    heard.append(event.kind.value)
                if event.kind is EventKind.RUNTIME_RESTORED:
                    break
            print(" ".join(heard))
    except CompanionError as error:
        print(error.reason, error.detail)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""A product that starts and stops its own companion, without the command line.

python examples/embed.py companion.toml
"""

import asyncio
import sys

import openai

from companion_core import Companion


async def main(config: str) -> None:
    """Start the companion, ask it something, and stop it again."""
    async with (
        Companion.open(config) as companion,
        openai.AsyncOpenAI(
            base_url=companion.base_url,
            api_key=companion.token,
            http_client=companion.http_client(),  # obeys no proxy of the environment
        ) as client,
    ):
        models = await client.models.list()
        answer = await client.chat.completions.create(
            model=models.data[0].id, messages=[{"role": "user", "content": "What are you?"}]
        )
        print(answer.choices[0].message.content)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

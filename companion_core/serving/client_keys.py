"""Brings the keys of programs into the gateway, and what they used back to the file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from companion_core.authority.client_keys import ClientKeyFile
from companion_core.errors import CompanionError
from companion_core.gateway import Gateway
from companion_core.serving.step import OnStep, Step
from companion_core.system.clock import wall_now

__all__ = ["ServedKeys"]


class ServedKeys:
    """The keys that one gateway lets in.

    Args:
        file: of the keys.
        gateway: that lets them in.
    """

    def __init__(self, file: ClientKeyFile, gateway: Gateway) -> None:
        self._file = file
        self._gateway = gateway

    async def open(self, on_step: OnStep) -> None:
        """Let the keys in; a file that cannot be read lets none in, and is told."""
        try:
            count = await self.reload()
        except CompanionError as error:
            on_step(Step("keys", f"no client key opens anything: {error.reason.value}"))
        else:
            if count:
                on_step(Step("keys", f"{count} client keys"))

    async def reload(self) -> int:
        """Let in what the file has now, and nothing else; return how many keys that are.

        Raises:
            CompanionError: the file cannot be read; from then on no key opens anything.
        """
        try:
            keys = await asyncio.to_thread(self._file.read)
        except CompanionError:
            self._gateway.set_clients(())
            raise
        self._gateway.set_clients(keys)
        return len(keys)

    async def close(self) -> None:
        """Note when each key was used last."""
        try:
            await self._note()
        except CompanionError:
            return  # it is not worth a failed end

    async def answer_reload(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take the file as it is now; for the control socket."""
        return {"keys": await self.reload()}

    async def answer_used(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Note when keys were used; for the control socket."""
        await self._note()
        return {}

    async def _note(self) -> None:
        now = wall_now()
        moments = {name: now - ago for name, ago in self._gateway.clients_last_used().items()}
        await asyncio.to_thread(self._file.note_used, moments)

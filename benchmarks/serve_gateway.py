"""Serve the real gateway in front of any backend, with every limit raised out of the way.

    python benchmarks/serve_gateway.py --port P --backend unix:/path|host:port --token T
        [--model m] [--loop auto|asyncio|uvloop] [--second-parser auto|on|off]
        [--in-flight N] [--queue N]

The classes, the guard, admission and the deadlines are the companion's own. One rule is
relaxed because benchmark clients bring their own token: a short one is accepted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import signal
from collections.abc import Callable

from companion_core.cli.foreground import run_event_loop
from companion_core.decisions.verdict import OK, Verdict
from companion_core.egress.live import LiveEgress
from companion_core.gateway import Backend, Gateway, GatewaySettings
from companion_core.providers import TcpChannel, UnixChannel
from companion_core.system.secret import Secret


class AlwaysServing:
    """A runtime that is ready and within its limits."""

    def lifecycle(self) -> Verdict:
        """See `ServingConditions`."""
        return OK

    def resources(self) -> Verdict:
        """See `ServingConditions`."""
        return OK

    def when_observed(self, call: Callable[[], None]) -> None:
        """See `ServingConditions`; never asked, as the answer above is never too old."""


def parse_channel(text: str) -> UnixChannel | TcpChannel:
    """Read "unix:/path" or "host:port"."""
    if text.startswith("unix:"):
        return UnixChannel(path=text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    return TcpChannel(host=host, port=int(port))


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    settings = GatewaySettings(
        token=Secret(options.token),
        minimum_token_length=1,
        model_id=options.model,
        port=options.port,
        requests_per_minute=10**9,
        strangers_per_minute=10**9,
        max_in_flight=options.in_flight,
        queue_bound=options.queue,
        max_connections=65536,
        second_parser=options.second_parser != "off",
    )
    gateway = Gateway(settings, AlwaysServing(), egress=LiveEgress())
    await gateway.start()
    gateway.attach(
        Backend(
            channel=parse_channel(options.backend),
            served_model=options.model,
            health_path="/health",
        )
    )
    gc.collect()
    gc.freeze()  # start-up objects are never garbage; do not walk them again
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    print(gateway.base_url, flush=True)
    await stop.wait()
    await gateway.close()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--backend", required=True, help="unix:/path or host:port")
    parser.add_argument("--token", required=True)
    parser.add_argument("--model", default="m")
    parser.add_argument("--loop", choices=("auto", "asyncio", "uvloop"), default="auto")
    parser.add_argument(
        "--second-parser",
        choices=("auto", "on", "off"),
        default="auto",
        help="let httptools read each new head too; auto: if it is installed",
    )
    parser.add_argument("--in-flight", type=int, default=4096)
    parser.add_argument("--queue", type=int, default=4096)
    options = parser.parse_args()
    for name, wanted in (
        ("uvloop", options.loop == "uvloop"),
        ("httptools", options.second_parser == "on"),
    ):
        if wanted:
            importlib.import_module(name)  # raises if it is missing
    if options.loop == "asyncio":
        asyncio.run(serve(options))
        return
    run_event_loop(serve(options))


if __name__ == "__main__":
    main()

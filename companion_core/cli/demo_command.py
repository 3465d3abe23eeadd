"""`companion demo`: the whole job once, on what ships in the package."""

from __future__ import annotations

import asyncio
import dataclasses

import click

from companion_core.cli import Settings, echo_result
from companion_core.cli.foreground import harden_process, run_interruptible
from companion_core.cli.progress import StepPrinter
from companion_core.demo.run import DemoReport, run_demo
from companion_core.errors import CompanionError, Reason


@click.command("demo")
@click.option("--json", "as_json", is_flag=True, help="One JSON document at the end.")
@click.pass_obj
def command(settings: Settings, *, as_json: bool) -> None:
    """Run the whole job once on what ships in the package.

    Two TLS hosts on loopback, a signed manifest, the bundled model, a real llama.cpp and a
    streamed answer through the gateway. Secrets stay in this process (the "memory" keychain).
    No process and no file is left, also when interrupted.
    """
    harden_process()
    report = asyncio.run(_run(settings, as_json=as_json))
    text = (
        f"{report.chunks} pieces, the first after {report.first_chunk_seconds * 1000:.0f} ms; "
        f"everything in {report.seconds:.1f} s"
    )
    echo_result({"ok": True, **dataclasses.asdict(report)}, text, as_json=as_json)


async def _run(settings: Settings, *, as_json: bool) -> DemoReport:
    task = asyncio.current_task()

    def on_interrupt(_number: int, _count: int) -> None:
        if task is not None:
            task.cancel()

    def on_text(piece: str) -> None:
        if not as_json:
            click.echo(piece, nl=False)

    demo = run_demo(settings.egress, on_step=StepPrinter(quiet=settings.quiet), on_text=on_text)
    try:
        return await run_interruptible(demo, on_interrupt=on_interrupt)
    except asyncio.CancelledError:
        raise CompanionError(Reason.INTERRUPTED) from None

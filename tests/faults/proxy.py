"""A network that can be broken: a TCP proxy on loopback that cuts, resets or delays what goes through it."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

_PIECE_BYTES = 2**16


class Wires:
    """The thread on which every proxy of a run lives."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="wires", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something on the thread and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=20)

    def close(self) -> None:
        """End the thread."""
        self.run(_cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Proxy:
    """One way from one node to one server.

    Args:
        wires: where it lives.
        port: of the server, on 127.0.0.1.
    """

    def __init__(self, wires: Wires, port: int) -> None:
        self._wires = wires
        self._target = port
        self._open = asyncio.Event()
        self._delay_seconds = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server = wires.run(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Let nothing through, as a network does that loses every packet: nobody is told."""
        self._wires.loop.call_soon_threadsafe(self._open.clear)

    def delay(self, seconds: float) -> None:
        """Let everything through later."""
        self._delay_seconds = seconds

    def reset(self) -> None:
        """End every connection at once, as a firewall does that forgets them."""

        async def abort() -> None:
            for writer in tuple(self._writers):
                writer.transport.abort()

        self._wires.run(abort())

    def restore(self) -> None:
        """Let everything through again; what was held back arrives now."""
        self._delay_seconds = 0.0
        self._wires.loop.call_soon_threadsafe(self._open.set)

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._wires.loop.call_soon_threadsafe(self._server.close)
        self.reset()

    async def _listen(self) -> asyncio.Server:
        self._open.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            # A connection is made by the first bytes, so that a cut network answers nobody, but for the handshake.
            await self._open.wait()
            behind, ahead = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(ahead)
        try:
            await asyncio.gather(self._pump(reader, ahead), self._pump(behind, writer))
        finally:
            for each in (writer, ahead):
                each.transport.abort()
                self._writers.discard(each)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                await self._open.wait()
                writer.write(piece)
                await writer.drain()
        with suppress(OSError, RuntimeError):
            writer.write_eof()


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

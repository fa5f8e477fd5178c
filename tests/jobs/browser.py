"""A real browser for tests: Chromium, headless, driven through its own debugging protocol."""

import asyncio
import json
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--mute-audio", "--window-size=1280,900"),
    *("--autoplay-policy=no-user-gesture-required", "--remote-debugging-port=0"),
)


@contextmanager
def browser(profile: Path) -> Iterator["Browser"]:
    """Chromium with a profile of its own, ended with the context."""
    assert CHROMIUM
    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not port_file.exists() or not port_file.read_text().strip():
            assert process.poll() is None, "the browser ended"
            assert time.monotonic() < deadline, "the browser does not answer"
            time.sleep(0.1)
        yield Browser(int(port_file.read_text().split()[0]))
    finally:
        process.terminate()
        process.wait(30)


class Browser:
    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def run(self, url: str, script: str, screenshot: Path | None = None) -> Any:
        """The value of an async JavaScript expression on a page, once it is loaded."""
        return asyncio.run(asyncio.wait_for(self._run(url, script, screenshot), 60))

    def accessibility(self, url: str) -> list[tuple[str, str]]:
        """(role, name) of everything a screen reader meets on a page, in order."""
        return asyncio.run(asyncio.wait_for(self._accessibility(url), 60))

    async def _run(self, url: str, script: str, screenshot: Path | None) -> Any:
        async with self._page(url) as socket:
            arguments = {"expression": script, "awaitPromise": True, "returnByValue": True}
            result = await _call(socket, "Runtime.evaluate", arguments)
            assert "exceptionDetails" not in result, result
            if screenshot:
                picture = await _call(socket, "Page.captureScreenshot", {"format": "png"})
                screenshot.write_bytes(b64decode(picture["data"]))
            return result["result"].get("value")

    async def _accessibility(self, url: str) -> list[tuple[str, str]]:
        async with self._page(url) as socket:
            nodes = (await _call(socket, "Accessibility.getFullAXTree", {}))["nodes"]
            return [
                (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]
            ]

    @asynccontextmanager
    async def _page(self, url: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """The socket of a new tab in which a page is loaded."""
        async with aiohttp.ClientSession() as session:
            async with session.put(f"{self._address}/json/new?about:blank") as response:
                target = json.loads(await response.text())
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                await _call(socket, "Page.enable", {})
                await _call(socket, "Page.navigate", {"url": url})
                while json.loads((await socket.receive()).data).get("method") != "Page.loadEventFired":
                    pass
                yield socket


async def _call(socket: aiohttp.ClientWebSocketResponse, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    await socket.send_json({"id": 1, "method": method, "params": parameters})
    while True:
        message = json.loads((await socket.receive()).data)
        if message.get("id") == 1:
            return message["result"]

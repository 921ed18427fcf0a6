"""A headless Chromium, driven through chromedriver's own interface (W3C WebDriver: JSON over HTTP on this machine)."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip


def installed():
    """True if Chromium and its driver are on this machine."""
    return all(map(shutil.which, ("chromium", "chromedriver")))


class Browser:
    def __init__(self, port, profile):
        self._base = f"http://127.0.0.1:{port}"
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        self._base += f"/session/{session}"
        self.open("about:blank")
        self.log("performance")

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        # A proxy named in the environment must not be asked for an address on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error

    def open(self, address):
        self._call("POST", "/url", {"url": address})

    def run(self, script, *arguments):
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def click(self, selector):
        element = self._call("POST", "/element", {"using": "css selector", "value": selector})
        self._call("POST", f"/element/{next(iter(element.values()))}/click", {})

    def log(self, kind):
        return self._call("POST", "/se/log", {"type": kind})

    def requests(self):
        """The addresses asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def wait(self, script, *arguments):
        """Waits until the script returns something true."""
        for _ in range(100):
            if self.run(script, *arguments):
                return
            time.sleep(0.1)
        raise TimeoutError(script)

    def look(self, width, height, theme):
        """Sets the window's size and the colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        features = [{"name": "prefers-color-scheme", "value": theme}]
        for cmd, params in (
            ("Emulation.setDeviceMetricsOverride", size),
            ("Emulation.setEmulatedMedia", {"features": features}),
        ):
            self._call("POST", "/goog/cdp/execute", {"cmd": cmd, "params": params})

    def close(self):
        self._call("DELETE", "")


@contextlib.contextmanager
def open_browser(folder):
    """A browser with an empty profile in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([shutil.which("chromedriver"), f"--port={port}"], **silent) as driver:
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                time.sleep(0.1)
            browser = Browser(port, folder)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()

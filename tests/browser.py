"""A headless Chromium, driven through chromedriver's own interface (W3C WebDriver: JSON over HTTP on this machine)."""

import base64
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

# Every text with its contrast against the background that its ancestors paint: the WCAG's ratio.
CONTRASTS = """
const luminance = (colour) => {
  const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
};
const ratios = [];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement, style = getComputedStyle(element);
  if (!texts.currentNode.textContent.trim() || !element.getClientRects().length || element.closest("title")) continue;
  const one = luminance(element instanceof SVGElement ? style.fill : style.color), other = luminance(behind(element));
  ratios.push([(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), texts.currentNode.textContent]);
}
return ratios;
"""


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
            with opener.open(request, timeout=600) as answer:
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

    def press(self, *keys):
        """Presses keys one after the other on the element that has the focus; "Shift" is held down for the next key."""
        names = {"Shift": "\ue008", "Enter": "\ue007", "ArrowLeft": "\ue012", "ArrowUp": "\ue013",
                 "ArrowRight": "\ue014", "ArrowDown": "\ue015"}  # fmt: skip
        actions, held = [], []
        for key in keys:
            actions.append({"type": "keyDown", "value": names.get(key, key)})
            held.insert(0, key)
            if key != "Shift":
                actions += [{"type": "keyUp", "value": names.get(one, one)} for one in held]
                held = []
        self._perform({"type": "key", "id": "keyboard", "actions": actions})

    def point(self, x, y):
        """Moves the mouse to a place in the window."""
        move = {"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}
        self._perform({"type": "pointer", "id": "mouse", "actions": [move]})

    def drag(self, x, y, right, down):
        """Moves the mouse with its button pressed."""
        start = {"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}
        end = start | {"x": round(x + right), "y": round(y + down)}
        actions = [start, {"type": "pointerDown", "button": 0}, end, {"type": "pointerUp", "button": 0}]
        self._perform({"type": "pointer", "id": "mouse", "actions": actions})

    def wheel(self, x, y, down):
        """Turns the wheel at a place in the window."""
        turn = {"type": "scroll", "x": round(x), "y": round(y), "deltaX": 0, "deltaY": down, "duration": 0}
        self._perform({"type": "wheel", "id": "wheel", "actions": [turn]})

    def _perform(self, source):
        self._call("POST", "/actions", {"actions": [source]})

    def print(self):
        """The page on paper as a PDF; the style sheet chooses the paper."""
        command = {"cmd": "Page.printToPDF", "params": {"preferCSSPageSize": True}}
        return base64.b64decode(self._call("POST", "/goog/cdp/execute", command)["data"])

    def paper_text(self):
        """The text that the page shows on paper."""
        self._call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"media": "print"}})
        try:
            return self.run("return document.body.innerText")
        finally:
            self._call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"media": ""}})

    def log(self, kind):
        return self._call("POST", "/se/log", {"type": kind})

    def requests(self):
        """The addresses asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def wait(self, script, *arguments):
        """Waits until the script returns something true."""
        for _ in range(600):
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
            for _ in range(600):
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

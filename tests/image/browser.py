"""A page in a real browser: headless Chromium, without a network, driven by a script that the test adds."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

_POLICY: Final = re.compile(rb'<meta http-equiv="Content-Security-Policy" content="[^"]*">')
_OUTCOME: Final = re.compile(r'<pre id="outcome">(.*?)</pre>', re.DOTALL)
_FRAME: Final = """<!doctype html><meta charset="utf-8"><pre id="outcome"></pre>
<iframe src="driven.html" style="border:0;width:{width}px;height:{height}px"></iframe>
<script>onmessage = (event) => {{ document.getElementById("outcome").textContent = event.data; }}</script>"""
_DRIVER: Final = """<script>(async () => {
let outcome;
try { outcome = await (async () => { %s })(); } catch (error) { outcome = "failed: " + error.stack; }
parent.postMessage(JSON.stringify(outcome), "*");
})();</script></body>"""


def document_after_load(page: Path) -> str:
    """The document, as HTML, that Chromium makes of the page as it is."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--virtual-time-budget=5000", "--timeout=60000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True).stdout


def drive(page: bytes, script: str, directory: Path, width: int = 1100, height: int = 900) -> Any:
    """What the body `script` of an async function, run at the end of the page, returns.

    The page lies in a frame of the given size, in CSS pixels, and its policy is left out, which forbids such scripts.
    """
    driven, found = _POLICY.subn(b"", page)
    assert found == 1
    driven = driven.replace(b"</body>", (_DRIVER % script).encode())
    (directory / "driven.html").write_bytes(driven)
    frame = directory / "frame.html"
    frame.write_text(_FRAME.format(width=width, height=height))
    shown = _OUTCOME.search(document_after_load(frame))
    assert shown is not None and shown[1], "the script came to no end"
    outcome = json.loads(html.unescape(shown[1]))
    assert not str(outcome).startswith("failed: "), outcome
    return outcome

"""Pages in a real browser: headless Chromium, without a network, driven by scripts that the test adds."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_POLICY: Final = re.compile(rb'<meta http-equiv="Content-Security-Policy" content="[^"]*">')
_OUTCOMES: Final = re.compile(r'<pre id="outcomes">(.*?)</pre>', re.DOTALL)
_COLLECTOR: Final = """<!doctype html><meta charset="utf-8"><pre id="outcomes"></pre>
<script>
const outcomes = {};
onmessage = (event) => {
  outcomes[event.data[0]] = event.data[1];
  document.getElementById("outcomes").textContent = JSON.stringify(outcomes);
};
</script>
"""
_FRAME: Final = '<iframe src="{name}.html" style="border:0;width:{width}px;height:{height}px"></iframe>\n'
_DRIVER: Final = """<script>(async () => {
let outcome;
try { outcome = await (async () => { %s })(); } catch (error) { outcome = "failed: " + error.stack; }
parent.postMessage(["%s", outcome], "*");
})();</script></body>"""


@dataclass(frozen=True, slots=True)
class Visit:
    """A page, and the body of an async function that is run at its end; width and height are in CSS pixels."""

    page: bytes
    script: str
    width: int = 1100
    height: int = 900


def document_after_load(page: Path) -> str:
    """The document, as HTML, that Chromium makes of the page as it is."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--window-size=1600,4000", "--virtual-time-budget=5000", "--timeout=60000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, encoding="utf-8", timeout=120, check=True)
    return done.stdout


def outcomes(visits: Mapping[str, Visit], directory: Path) -> dict[str, Any]:
    """What the scripts return, by the visits' names (plain words); the browser is started once.

    The pages' policy, which forbids such scripts, is left out.
    """
    frames = [_COLLECTOR]
    for name, visit in visits.items():
        driven, found = _POLICY.subn(b"", visit.page)
        assert found == 1
        driver = _DRIVER % (visit.script, name)
        (directory / f"{name}.html").write_bytes(driven.replace(b"</body>", driver.encode()))
        frames.append(_FRAME.format(name=name, width=visit.width, height=visit.height))
    collector = directory / "collector.html"
    collector.write_text("".join(frames))
    shown = _OUTCOMES.search(document_after_load(collector))
    assert shown is not None
    found_outcomes: dict[str, Any] = json.loads(html.unescape(shown[1]) or "{}")
    assert found_outcomes.keys() == visits.keys(), "a script came to no end"
    assert not any(str(outcome).startswith("failed: ") for outcome in found_outcomes.values()), found_outcomes
    return found_outcomes

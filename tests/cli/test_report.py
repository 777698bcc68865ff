"""`gpuplan report`: pages of every kind of plan, and what a browser makes of one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

Invoke = Callable[..., Result]
INSTANCES = Path(__file__).resolve().parents[2] / "instances"
KINDS = {
    "experts": "experts/four_experts.yaml",
    "fleet": "fleet/two_offers.yaml",
    "parallel": "parallel/given_table.yaml",
    "layers": "parallel/layers_mixed_pool.yaml",
    "windows": "parallel/windows_home.yaml",
    "training": "parallel/train_70b_rails.yaml",
    "pods": "pods/two_nodes.yaml",
}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def planned(gpuplan: Invoke, name: str) -> tuple[str, str]:
    instance = str(INSTANCES / name)
    result = gpuplan("plan", instance, "-o", "plan.json", "--quiet", "--time-limit", "10")
    assert result.exit_code == 0, result.output
    return "plan.json", instance


@pytest.mark.parametrize("name", KINDS.values(), ids=KINDS)
def test_every_kind_has_a_page(gpuplan: Invoke, folder: Path, name: str) -> None:
    plan, instance = planned(gpuplan, name)
    assert gpuplan("report", plan, "--instance", instance, "-o", "page.html").exit_code == 0
    assert gpuplan("report", plan, "--instance", instance, "-o", "page.md").exit_code == 0
    page, text = (folder / "page.html").read_text(), (folder / "page.md").read_text()
    document = json.loads((folder / plan).read_text())
    for heading in ("The answer", "How good it is proven to be", "To look at", "To make it again"):
        assert f"<h2>{heading}</h2>" in page
        assert f"## {heading}" in text
    assert "<svg" in page
    assert document["instance"]["sha256"] in page
    order = [page.index(f"<h2>{heading}</h2>") for heading in ("The answer", "To look at", "To make it again")]
    assert order == sorted(order)


def test_without_its_instance_a_plan_still_has_a_page(gpuplan: Invoke, folder: Path) -> None:
    plan, _ = planned(gpuplan, KINDS["fleet"])
    assert gpuplan("report", plan, "-o", "page.md").exit_code == 0
    assert "USD/hour" in (folder / "page.md").read_text()


def test_an_instance_without_a_plan_tells_why(gpuplan: Invoke, folder: Path) -> None:
    instance = {
        "problem": "fleet", "name": "none", "models": [{"name": "m"}],
        "offers": [{"name": "a", "device": "l4", "price_usd_per_hour": 1, "max_count": 1}],
        "demand": [{"model": "m", "input_tokens": 100, "output_tokens": 100, "rate_per_s": 9}],
        "profiles": [{"offer": "a", "model": "m", "input_tokens": 100, "output_tokens": 100, "max_rate_per_s": 2}],
    }  # fmt: skip
    (folder / "none.json").write_text(json.dumps(instance))
    assert gpuplan("plan", "none.json", "-o", "plan.json", "--quiet").exit_code == 3
    assert gpuplan("report", "plan.json", "--instance", "none.json", "-o", "page.html").exit_code == 0
    page = (folder / "page.html").read_text()
    assert "Why there is no plan" in page
    assert 'class="answer bad"' in page


def test_a_broken_plan_is_written_and_says_so(gpuplan: Invoke, folder: Path) -> None:
    plan, instance = planned(gpuplan, KINDS["fleet"])
    document = json.loads((folder / plan).read_text())
    document["plan"]["periods"][0]["allocation"][0]["count"] -= 1
    document["plan"]["allocation"][0]["count"] -= 1
    (folder / plan).write_text(json.dumps(document))
    result = gpuplan("report", plan, "--instance", instance, "-o", "page.html")
    assert result.exit_code == 6, result.output
    assert "but it breaks a rule or a budget" in (folder / "page.html").read_text()


def test_bad_requests(gpuplan: Invoke, folder: Path) -> None:
    plan, _ = planned(gpuplan, KINDS["fleet"])
    assert gpuplan("report", plan, "-o", "page.pdf").exit_code == 2
    other = gpuplan("report", plan, "--instance", str(INSTANCES / KINDS["experts"]), "-o", "page.html")
    assert other.exit_code == 7
    assert "answers another instance" in other.stderr
    assert not (folder / "page.html").exists()


#: What a page asks of itself: elements that stick out of it, unless they scroll in a box of their own.
MEASURE = """<script>
addEventListener("load", () => {
  const out = [];
  for (const one of document.querySelectorAll("body *")) {
    if (one.closest(".scroll, svg, script") && !one.matches("svg")) continue;
    const box = one.getBoundingClientRect();
    if (box.right > innerWidth + 1 || box.left < -1) out.push(one.tagName + " " + Math.round(box.right));
  }
  const colours = getComputedStyle(document.body);
  const said = document.createElement("p");
  said.id = "measured";
  said.textContent = JSON.stringify({out, width: innerWidth, ink: colours.color, paper: colours.backgroundColor});
  document.body.append(said);
});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(("width", "dark"), [(1000, False), (500, True)])
def test_a_browser_shows_a_page_whole(gpuplan: Invoke, folder: Path, width: int, dark: bool) -> None:
    plan, instance = planned(gpuplan, KINDS["parallel"])
    assert gpuplan("report", plan, "--instance", instance, "-o", "page.html").exit_code == 0
    page = (folder / "page.html").read_text().replace("</body>", f"{MEASURE}</body>")
    (folder / "measured.html").write_text(page)
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000", "--dump-dom",
            "--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            (folder / "measured.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<p id="measured">(.*?)</p>', done.stdout)
    assert found is not None
    measured = json.loads(found.group(1))
    assert measured["out"] == []
    assert "CONSOLE" not in done.stderr
    bright = [sum(map(int, re.findall(r"\d+", measured[name])[:3])) for name in ("paper", "ink")]
    assert (bright[0] < bright[1]) == dark

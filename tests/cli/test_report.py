"""`gpuplan report`: pages of every kind of plan, and what a browser makes of one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

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
    "deploy": "deploy/three_services.yaml",
}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def planned(gpuplan: Invoke, name: str) -> tuple[str, str]:
    instance = str(INSTANCES / name)
    result = gpuplan("plan", instance, "-o", "plan.json", "--quiet", "--time-limit", "5")
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


def test_a_fleet_is_solved_at_other_demands(gpuplan: Invoke, folder: Path) -> None:
    """Two offers serve 0.5, 0.75, 1.25, 1.5 and 2 times the demand, beside the plan: six marks of cost."""
    plan, instance = planned(gpuplan, KINDS["fleet"])
    assert gpuplan("report", plan, "--instance", instance, "-o", "page.html").exit_code == 0
    page = (folder / "page.html").read_text()
    assert "each mark is a fleet that was solved anew" in page
    assert "no fleet costs less" in page
    assert gpuplan("report", plan, "--instance", instance, "-o", "page.html", "--no-studies").exit_code == 0
    assert "solved anew" not in (folder / "page.html").read_text()


def test_hours_are_drawn_with_their_cost(gpuplan: Invoke, folder: Path) -> None:
    plan, instance = planned(gpuplan, "fleet/day.yaml")
    assert gpuplan("report", plan, "--instance", instance, "-o", "page.md", "--no-studies").exit_code == 0
    text = (folder / "page.md").read_text()
    assert "Instances that run in each hour" in text
    assert "What they cost in each hour" in text


#: What a page asks of the pages in its frames: elements that stick out, unless they scroll in a box of their own, and
#: letters that are too small to read.
MEASURE = """<script>
addEventListener("load", () => setTimeout(() => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow, out = [], small = new Set();
    for (const one of page.querySelectorAll("body *")) {
      if (one.closest(".scroll table, .chart > svg, .box svg")) continue;
      const box = one.getBoundingClientRect();
      if (box.right > view.innerWidth + 1 || box.left < -1) out.push(`${one.tagName} ${Math.round(box.right)}`);
    }
    for (const text of page.querySelectorAll("figure text, figcaption, .box span, .box small, td, dd")) {
      const box = text.getBoundingClientRect();
      if (box.height && box.height < 6.5) small.add(`${text.textContent} ${box.height}`);
    }
    const colours = view.getComputedStyle(page.body);
    found.push({
      out, small: [...small], width: view.innerWidth, ink: colours.color, paper: colours.backgroundColor,
      drawn: page.querySelectorAll("svg").length,
    });
  }
  const said = document.createElement("p");
  said.id = "measured";
  said.textContent = JSON.stringify(found);
  document.body.append(said);
}, 0));
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_every_page_whole(gpuplan: Invoke, folder: Path) -> None:
    """All kinds on a phone, 360 pixels wide, and on a screen, light and dark: nothing cut off or small, no errors."""
    pages = []
    for name in KINDS.values():
        plan, instance = planned(gpuplan, name)
        result = gpuplan("report", plan, "--instance", instance, "-o", "page.html", "--time-limit", "3")
        assert result.exit_code == 0
        pages.append((folder / "page.html").read_text())
    frames = [
        f'<iframe srcdoc="{escape(page)}" style="border:0; width:{width}px; height:900px"></iframe>'
        for page in pages
        for width in (360, 1000)
    ]
    (folder / "frames.html").write_text(f"<!doctype html><body>{''.join(frames)}{MEASURE}</body>")
    for dark in (False, True):
        for one in seen_by_chromium(folder, dark):
            assert one["drawn"] >= 1
            assert one["out"] == []
            assert one["small"] == []
            bright = [sum(map(int, re.findall(r"\d+", one[name])[:3])) for name in ("paper", "ink")]
            assert (bright[0] < bright[1]) == dark


def seen_by_chromium(folder: Path, dark: bool) -> list[dict[str, Any]]:
    """What every page in frames.html measured of itself."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000", "--dump-dom",
            "--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            (folder / "frames.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    found = re.search(r'<p id="measured">(.*?)</p>', done.stdout)
    assert found is not None
    measured: list[dict[str, Any]] = json.loads(unescape(found.group(1)))
    assert [one["width"] for one in measured] == [360, 1000] * len(KINDS)
    return measured

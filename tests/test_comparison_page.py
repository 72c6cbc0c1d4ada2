"""The page of a comparison, in a real browser where there is one."""

import html
import json
import re
import shutil
import subprocess

import pytest

from kdtoolkit.comparison import ComparisonTable
from kdtoolkit.comparison.picture import picture

HOSTILE = "</td><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

# Runs before and after the page's own script, and writes what it finds into the page.
BEFORE = """<script>
window.problems = [];
addEventListener("error", event => problems.push(String(event.message)), true);
addEventListener("securitypolicyviolation", event => problems.push(event.blockedURI));
</script>"""
AFTER = """<script>
const rows = () => [...document.querySelectorAll(".results tbody tr")];
const names = () => rows().map(row => row.cells[0].textContent);
const click = key => document.querySelector(`[data-key=${key}] button`).click();
const found = {atFirst: names()};
click("latency_ms"); found.fastestFirst = names();
click("latency_ms"); found.slowestFirst = names();
click("model"); found.byName = names();
found.sorted = [...document.querySelectorAll("[aria-sort]")].map(head => head.dataset.key);
location.hash = "#sort=-bytes"; dispatchEvent(new HashChangeEvent("hashchange"));
found.largestFirst = names();
found.pictures = [...document.querySelectorAll("svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  return [box.width, box.height, svg.querySelectorAll("circle").length];
});
found.width = [document.documentElement.scrollWidth, innerWidth];
found.loaded = performance.getEntriesByType("resource").map(entry => entry.name);
found.hacked = window.hacked ?? null;
found.foreign = document.querySelectorAll("img, iframe, link:not([rel=icon])").length;
found.scripts = document.scripts.length;
found.problems = problems;
const probe = document.createElement("pre");
probe.id = "probe"; probe.textContent = JSON.stringify(found);
document.body.append(probe);
</script>"""


def row(name, accuracy, size, milliseconds):
    """A row with made-up numbers; without a size there is no file."""
    times = {"ms": milliseconds, "min_ms": milliseconds, "p95_ms": milliseconds}
    return {
        "model": name,
        "source": f"{name}.tflite",
        "measured": "the file",
        "examples": 100,
        "from_logits": True,
        "test_accuracy": accuracy,
        "accuracy_low": accuracy - 0.05,
        "accuracy_high": accuracy + 0.02,
        "nll": float("inf") if name == "b" else 0.5,
        "ece": 0.01,
        "agreement": accuracy,
        "worst_class": HOSTILE,
        "worst_change": -0.1,
        "worst_classes": [],
        "class_changes": [accuracy - 0.9, None, -0.02],
        "parameters": 1000,
        "macs": None,
        "bytes": size,
        "gzip_bytes": size,
        "sparsity": 0.0,
        "full_integer": False,
        "batch_size": 1,
        **{f"latency_{key}": value for key, value in times.items()},
        **{f"latency_2_threads_{key}": value for key, value in times.items()},
        "memory_bytes": size,
    }


@pytest.fixture
def table():
    rows = [
        row("c", 0.90, 4000, 0.5),
        row(HOSTILE, 0.92, 90_000, 0.02),
        row("b", 0.60, 9000, 0.1),
        row("no file", 0.95, None, None),
    ]
    setting = {
        "date": "2020-01-01", "processor": HOSTILE, "cores": 2, "system": "s", "python": "3",
        "backend": "tensorflow", "versions": {"keras": "3"}, "reference": HOSTILE, "bins": 15,
        "rounds": 5, "runs_per_round": 1, "memory": "m",
    }  # fmt: skip
    return ComparisonTable(rows, "c", ["0", "1", HOSTILE], [50, 0, 50], setting)


@pytest.mark.core
def test_names_stay_text_and_nothing_comes_from_elsewhere(table, tmp_path):
    table.write_html(tmp_path / "page.html", title=HOSTILE)
    text = (tmp_path / "page.html").read_text()
    assert text.count("<script>") == 1 and "<img" not in text
    assert html.escape(HOSTILE) in text
    assert not re.search(r"""(src|href)=["'](?!data:,)|url\(|@import|https?://""", text)


@pytest.mark.core
def test_the_front_is_marked(table):
    drawn = picture(table.rows[:3], "bytes", "test_accuracy")
    assert drawn.count('<g class="best">') == 2 and drawn.count('<g class="rest">') == 1
    (rest,) = re.findall(r'<g class="rest">.*?</g>', drawn)
    assert "<title>b: 60.0 %" in rest


@pytest.mark.core
@pytest.mark.parametrize("count", [1, 12])
def test_names_in_the_picture_keep_apart(count):
    rows = [row(f"candidate {n}", 0.9, 1000, 1.0) for n in range(count)]
    heights = re.findall(r'<text class="best[^"]*" x="[\d.]+" y="([\d.]+)"', picture(
        rows, "bytes", "test_accuracy"))  # fmt: skip
    heights = sorted(map(float, heights))
    assert len(heights) == count
    assert all(high - low >= 13.9 for low, high in zip(heights, heights[1:], strict=False))


@pytest.mark.core
@pytest.mark.parametrize("scale", [(1, 1.001), (3, 900), (50, 51), (1e-6, 1)])
def test_axes_have_a_few_round_numbers(scale):
    rows = [row(str(n), 0.5 + 0.1 * n, 1000, cost) for n, cost in enumerate(scale)]
    labels = re.findall(r'class="across"[^>]*>([^<]+)<', picture(rows, "latency_ms", "agreement"))
    assert 2 <= len(labels) <= 7


@pytest.mark.core
@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_the_page_works_in_a_browser(table, tmp_path):
    table.write_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    text = text.replace("<head>", "<head>" + BEFORE).replace("</body>", AFTER + "</body>")
    (tmp_path / "probed.html").write_text(text)
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=400,800",
         "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=2000", "--dump-dom", (tmp_path / "probed.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (probe,) = re.findall(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    found = json.loads(html.unescape(probe))
    assert found["atFirst"] == ["c", HOSTILE, "b", "no file"]
    assert found["fastestFirst"] == [HOSTILE, "b", "c", "no file"]
    assert found["slowestFirst"] == ["c", "b", HOSTILE, "no file"]
    assert found["byName"][1:] == ["b", "c", "no file"]
    assert found["largestFirst"] == [HOSTILE, "b", "c", "no file"]
    assert found["sorted"] == ["model"]
    assert len(found["pictures"]) == 2
    assert all(w > 300 and h > 200 and points == 3 for w, h, points in found["pictures"])
    assert found["width"][0] <= found["width"][1] <= 500
    assert found["loaded"] == found["problems"] == []
    assert found["hacked"] is None and found["foreign"] == 0 and found["scripts"] == 3
    assert "CONSOLE" not in done.stderr

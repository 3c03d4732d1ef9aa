"""The report is one page that needs nothing else, and works in a browser of the size of a phone."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch
from torch import nn

import stepgraph
from stepgraph.report import page
from stepgraph.report.boxes import boxes

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


class Pair:
    """Two models, two optimizers, and a second loss that depends on the first update."""

    def __init__(self):
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 1)
        self.first = torch.optim.SGD(self.one.parameters(), lr=0.1)
        self.second = torch.optim.SGD(self.two.parameters(), lr=0.1)

    def train(self, x):
        self.first.zero_grad()
        self.one(x).square().mean().backward()
        self.first.step()
        self.second.zero_grad()
        self.two(self.one(x).detach()).square().mean().backward()
        self.second.step()


@pytest.fixture(scope="module")
def explained():
    step = stepgraph.compile(Pair().train, on_fallback="error")
    for _ in range(3):
        step(torch.ones(2, 4))
    return step, step.explain()


def test_boxes_below_one_another_are_in_the_order_they_must_run(explained):
    step, _ = explained
    (graph,) = step.graphs
    drawn, arrows = boxes(graph)

    kinds = [box.kind for box in drawn]
    assert kinds == ["zero_grad", "forward", "backward", "accumulate", "step"] * 2
    for arrow in arrows:
        assert arrow.source < arrow.target
        assert drawn[arrow.source].layer < drawn[arrow.target].layer
    number = {node: box.number for box in drawn for node in graph.nodes if node.name == box.name}
    layer_of = {node: drawn[i].layer for node, i in number.items()}
    for source, target in graph.dependencies().edges:  # of those that are first in their box
        if source in layer_of and target in layer_of:
            assert layer_of[source] < layer_of[target]
    assert drawn[0].layer == drawn[1].layer == 0  # clearing and forward may run in any order


def test_the_page_says_what_the_explanation_says_and_draws_every_box(explained):
    step, explanation = explained

    written = page(explanation)

    assert html.escape(explanation.verdict) in written
    assert "SGD(first)" in written
    assert written.count('class="node ') == len(boxes(step.graphs[0])[0])
    facts = json.loads(re.search(r'id="data">(.*?)</script>', written).group(1))
    (backward, _) = [f for f in facts.values() if f["kind"] == "backward"]
    assert "param:one.weight" not in backward["reads"]  # no gradient of the input is computed
    assert "batch:x" in backward["reads"]
    assert any("mm" in operator for operator in backward["operators"])
    assert "test_page.py:" in backward["at"]


def test_the_page_asks_the_network_for_nothing(explained):
    written = page(explained[1])

    assert not re.search(
        r"(https?:|//|@import|url\()", re.sub(r'id="data">.*?</script>', "", written)
    )
    assert not re.search(r"<(link|img|iframe)|\bsrc=|\bhref=", written)


def test_a_fallback_is_on_the_page_as_text(tmp_path):
    net = nn.Linear(2, 1)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)

    def step(x):
        loss = net(x).mean()
        if loss < 1e9:
            loss = loss * 2
        loss.backward()
        opt.step()

    compiled = stepgraph.compile(step, on_fallback="silent")
    for _ in range(2):
        compiled(torch.ones(3, 2))

    compiled.explain().to_html(tmp_path / "report.html")

    written = (tmp_path / "report.html").read_text()
    (fallback,) = compiled.explain().fallbacks
    assert html.escape(fallback.reason) in written
    assert html.escape(fallback.at) in written
    assert 'class="verdict bad"' in written
    assert "<locals>" not in written  # the name of the step is text, too


def test_a_step_that_a_pass_has_changed_is_drawn_before_and_after():
    world = Pair()

    def step(x):
        world.second.zero_grad()
        world.two(world.one(x).detach()).square().mean().backward()
        world.second.step()
        world.first.zero_grad()
        world.two(world.one(x)).mean().backward()  # gradients of `two` are cleared unread
        world.first.step()

    compiled = stepgraph.compile(step, keep_grads=False)
    for _ in range(2):
        compiled(torch.ones(2, 4))
    records = compiled.explain().variants[0].passes

    written = page(compiled.explain())

    assert any(record.acted for record in records)
    assert written.count('<svg class="graph"') == 2
    assert "before the passes" in written


def test_a_step_that_has_not_been_captured_has_a_page():
    step = stepgraph.compile(Pair().train)

    assert "not captured yet" in page(step.explain())


CLICK = """
<script>
const seen = {errors: []};
window.onerror = message => { seen.errors.push(message); };
window.addEventListener("load", () => {
  const node = document.querySelector(".is-backward");
  seen.hidden = document.getElementById("facts").hidden;
  node.dispatchEvent(new MouseEvent("click", {bubbles: true}));
  seen.facts = document.getElementById("facts").innerText;
  seen.chosen = document.querySelectorAll(".chosen").length;
  seen.width = [document.documentElement.scrollWidth, window.innerWidth];
  const box = document.querySelector("svg.graph").getBoundingClientRect();
  seen.drawing = [box.width, box.height];
  document.body.setAttribute("data-seen", JSON.stringify(seen));
});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium and no chrome is installed")
def test_a_click_on_a_node_shows_its_facts_in_a_browser(explained, tmp_path):
    (tmp_path / "report.html").write_text(page(explained[1]).replace("<body>", f"<body>{CLICK}"))

    ran = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--window-size=500,800", "--dump-dom"),
            f"--user-data-dir={tmp_path}/profile",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    seen = json.loads(html.unescape(re.search(r'data-seen="(.*?)"', ran.stdout).group(1)))
    assert seen["errors"] == []
    assert "CONSOLE" not in ran.stderr
    assert seen["hidden"]
    assert seen["facts"].startswith("kind")
    assert "backward" in seen["facts"]
    assert "batch:x" in seen["facts"]
    assert seen["chosen"] == 1
    width, window = seen["width"]
    assert width <= window  # nothing to scroll sideways but tables
    assert min(seen["drawing"]) > 100

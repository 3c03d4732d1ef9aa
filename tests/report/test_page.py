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
from stepgraph.ir import readable
from stepgraph.report import page
from stepgraph.report.html.boxes import boxes

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


@pytest.fixture(scope="module")
def profiled(explained):
    step, explanation = explained
    return step, explanation, step.profile(torch.ones(2, 4), steps=2)


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
    assert html.escape(explanation.variants[0].sentence) in written
    assert "SGD(first)" in written
    assert all(html.escape(one.hint) in written for one in explanation.advice)
    assert written.count('<g class="node ') == len(boxes(step.graphs[0])[0])
    details = embedded(written)["details"]
    (backward, _) = [f for f in details.values() if f["kind"] == "backward"]
    assert "param:one.weight" not in backward["reads"]  # no gradient of the input is computed
    assert "batch:x" in backward["reads"]
    assert any("mm" in operator for operator in backward["operators"])
    assert "test_page.py:" in backward["at"]
    assert backward["code"] == "self.one(x).square().mean().backward()"


def embedded(written):
    return json.loads(re.search(r'id="data">(.*?)</script>', written).group(1))


def test_a_box_counts_the_work_of_its_operators(explained):
    drawn, _ = boxes(explained[0].graphs[0])
    forward = next(box for box in drawn if box.kind == "forward")

    batch, features = 2, 4
    assert forward.load.flops == 2 * batch * features * features
    assert forward.load.launches == sum(
        count for name, count in forward.operators if name not in ("t", "detach")
    )
    product = 4 * (2 * batch * features + features * features + features)
    assert forward.load.bytes > product  # and the square, and its mean


def test_a_page_with_a_profile_has_times_at_its_boxes_a_timeline_and_tables(profiled):
    _, explanation, profile = profiled

    written = page(explanation, profile)

    details = embedded(written)["details"]
    boxes_of = {f["name"]: f for key, f in details.items() if re.fullmatch(r"s0a-\d+", key)}
    for node in profile.nodes:
        if node.kind != "accumulate":  # a run of them is called by its kind
            assert boxes_of[node.name]["time"].startswith(f"{node.time.median_ms:.3f} ms")
    assert len([f for f in boxes_of.values() if f["kind"] == "accumulate" and "time" in f]) == 2
    operators = [f for key, f in details.items() if key.startswith("s0o")]
    assert [f["name"] for f in operators] == [one.name for one in profile.operators]
    assert written.count('class="span"') >= 4 + len(profile.nodes) + len(profile.operators)
    assert f"{profile.speedup:.2f} x" in written
    keys = set(re.findall(r'data-details="([^"]+)"', written))
    assert keys <= details.keys()


def test_the_memory_chart_marks_the_peak_that_the_profile_reports(profiled):
    _, explanation, profile = profiled

    written = page(explanation)

    assert f"peak {readable(profile.peak_bytes)} in {profile.peak_at}" in written
    (live,) = embedded(written)["memory"].values()
    assert [profile.peak_at, readable(profile.peak_bytes)] in [[a, c] for a, _, c in live]


def test_a_profile_stands_at_the_variant_that_was_measured():
    world = Pair()

    def step(x):
        world.first.zero_grad()
        world.one(x).square().mean().backward()
        world.first.step()

    compiled = stepgraph.compile(step, accumulate=2, on_fallback="error")
    for _ in range(6):
        compiled(torch.ones(2, 4))
    profile = compiled.profile(torch.ones(2, 4), steps=1)

    details = embedded(page(compiled.explain(), profile))["details"]

    timed = {key.partition("a-")[0] for key, f in details.items() if "a-" in key and "time" in f}
    assert timed == {f"s{profile.variant}"}
    place = compiled.explain().variants[profile.variant].place
    assert place == "the first call of a window of 2"
    assert profile.place == "1 of 2"


def test_the_page_asks_the_network_for_nothing(explained):
    written = page(explained[1])

    assert not re.search(
        r"(https?:|//|@import|url\((?!#))", re.sub(r'id="data">.*?</script>', "", written)
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
    assert 'class="edge before"' in written


def test_a_step_that_has_not_been_captured_has_a_page():
    step = stepgraph.compile(Pair().train)

    assert "not captured yet" in page(step.explain())


LOOK = """
<script>
const seen = {errors: []};
window.onerror = message => { seen.errors.push(message); };
window.addEventListener("load", () => {
  const click = node => node.dispatchEvent(new MouseEvent("click", {bubbles: true}));
  const details = document.getElementById("details");
  const graph = document.querySelector("svg.graph");
  seen.hidden = details.hidden;
  click(document.querySelector(".node.is-backward"));
  seen.details = details.innerText;
  seen.chosen = document.querySelectorAll(".node.chosen").length;
  click(details.querySelector(".close"));
  seen.closed = details.hidden;
  const box = graph.getBoundingClientRect();
  seen.drawing = [box.width, box.height];
  const before = graph.viewBox.baseVal.width;
  click(document.querySelector("[data-zoom=in]"));
  seen.zoomed = graph.viewBox.baseVal.width / before;
  click([...document.querySelectorAll(".span[data-details]")].find(
    span => span.textContent.startsWith("backward_0")));
  seen.span = details.innerText;
  const head = [...document.querySelectorAll("th[data-sort]")].filter(
    head => head.textContent === "launches")[1];
  click(head);
  const column = [...head.parentElement.cells].indexOf(head);
  seen.sorted = [...head.closest("table").tBodies[0].rows].map(
    row => Number(row.cells[column].textContent));
  const chart = document.querySelector(".memory svg").getBoundingClientRect();
  document.querySelector(".memory svg").dispatchEvent(new PointerEvent("pointermove",
    {clientX: chart.left + chart.width / 2, clientY: chart.top + 20}));
  seen.alive = document.getElementById("tip").innerText;
  seen.width = [document.documentElement.scrollWidth, window.innerWidth];
  parent.postMessage(JSON.stringify(seen), "*");
});
</script>
"""
PHONE = """<!doctype html><body>
<script>
window.addEventListener("message", message => {
  document.body.setAttribute("data-seen", message.data);
});
</script>
<iframe src="report.html" style="width: 390px; height: 844px; border: 0"></iframe>
"""


@pytest.fixture(scope="module")
def seen(profiled, tmp_path_factory):
    """What a script in the page, in a browser on a screen of 390 pixels, has seen."""
    if BROWSER is None:
        pytest.skip("no chromium and no chrome is installed")
    folder = tmp_path_factory.mktemp("browser")
    written = page(*profiled[1:]).replace("<body>", f"<body>{LOOK}")
    (folder / "report.html").write_text(written)
    (folder / "phone.html").write_text(PHONE)
    ran = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--window-size=500,900", "--virtual-time-budget=4000"),
            *("--dump-dom", f"--user-data-dir={folder}/profile"),
            (folder / "phone.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(html.unescape(re.search(r'data-seen="(.*?)"', ran.stdout).group(1)))
    return found | {"console": [line for line in ran.stderr.splitlines() if "CONSOLE" in line]}


def test_the_page_opens_in_a_browser_without_errors(seen):
    assert seen["errors"] == []
    assert seen["console"] == []
    assert min(seen["drawing"]) > 100


def test_a_click_on_a_node_shows_its_facts_until_it_is_closed(seen):
    assert seen["hidden"]
    assert seen["details"].startswith("backward_0")
    for word in ("kind", "batch:x", "time", "GB/s", "test_page.py:", "mm"):
        assert word in seen["details"]
    assert seen["chosen"] == 1
    assert seen["closed"]


def test_a_span_of_the_timeline_shows_the_facts_of_its_node(seen):
    assert seen["span"] == seen["details"]


def test_nothing_on_a_phone_has_to_be_scrolled_sideways_but_tables_and_charts(seen):
    width, window = seen["width"]
    assert window == 390
    assert width <= window


def test_a_drawing_can_be_zoomed_and_a_table_sorted(seen):
    assert 0.5 < seen["zoomed"] < 0.9
    assert seen["sorted"] == sorted(seen["sorted"], reverse=True)
    assert seen["sorted"][0] > 1


def test_the_memory_chart_says_what_is_alive_under_the_pointer(seen):
    assert re.match(r"[\d.]+ (B|KiB) alive\n", seen["alive"])

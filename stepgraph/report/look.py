"""How a report looks and what a click does: the style sheet and the script of its page."""

STYLE = """
:root { --ink: #1b1f24; --paper: #ffffff; --soft: #57606a; --line: #d0d7de; }
body { margin: 0; font: 16px/1.45 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
main { max-width: 60rem; margin: auto; padding: 1rem 1rem 45vh; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin-top: 1.5rem; }
.verdict { padding: .6rem .8rem; border-radius: 6px; font-weight: 600; }
.good { background: #d8f3dc; } .bad { background: #ffe3d8; } .open { background: #eceff3; }
.wide, .drawing { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; }
svg.graph, svg.memory { width: 100%; display: block; margin: auto; }
svg text { font: 10.5px system-ui, sans-serif; fill: var(--ink); pointer-events: none; }
svg text.kind { font-weight: 700; }
.node { cursor: pointer; outline: none; }
.node rect { fill: #f5f5dc; stroke: #8c959f; }
.node:hover rect, .node:focus rect { stroke: #0550ae; stroke-width: 2; }
.node.chosen rect { stroke: #0550ae; stroke-width: 3; }
.is-forward rect { fill: #cfe8ff; } .is-backward rect { fill: #ffd9cc; }
.is-accumulate rect { fill: #ffe9b8; } .is-zero_grad rect { fill: #eeeeee; }
.is-step rect { fill: #c9efc9; } .is-lr_step rect { fill: #e3d6f5; } .is-log rect { fill: #ffffff; }
path { fill: none; stroke: #57606a; stroke-width: 1.2; }
path.anti { stroke: #cc3333; stroke-dasharray: 5 3; }
path.output { stroke: #3366cc; stroke-dasharray: 2 3; }
svg.memory polygon { fill: #cfe8ff; stroke: #0550ae; }
svg.memory circle { fill: #cc3333; }
#facts { position: fixed; inset: auto 0 0 0; max-height: 40vh; overflow: auto;
  background: #f6f8fa; border-top: 2px solid #0550ae; padding: .6rem 1rem; font-size: .9rem; }
#facts p { margin: .3rem 0; overflow-wrap: anywhere; }
#facts b { color: var(--soft); font-weight: 500; margin-right: .5rem; }
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("facts");
function line(name, value) {
  const row = document.createElement("p"), title = document.createElement("b");
  title.textContent = name;
  row.append(title, Array.isArray(value) ? value.join(", ") : value);
  return row;
}
function show(node) {
  const facts = data[node.dataset.facts];
  document.querySelectorAll(".chosen").forEach(other => other.classList.remove("chosen"));
  node.classList.add("chosen");
  panel.replaceChildren();
  for (const [name, value] of Object.entries(facts))
    if (value.length) panel.append(line(name, value));
  panel.hidden = false;
}
document.querySelectorAll(".node").forEach(node => {
  node.addEventListener("click", () => show(node));
  node.addEventListener("keydown", event => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); show(node); }
  });
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") panel.hidden = true;
});
"""

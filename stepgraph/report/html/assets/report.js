"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("details");
const tip = document.getElementById("tip");
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

/* What a click shows: all details of a node, of an operator or of a span. */
function show(key) {
  const details = data.details[key];
  if (!details) return;
  panel.replaceChildren();
  element("h4", details.name, panel);
  const list = element("dl", "", panel);
  for (const [name, value] of Object.entries(details)) {
    if (name === "name" || !value.length) continue;
    element("dt", name, list);
    element("dd", Array.isArray(value) ? value.join(", ") : value, list);
  }
  const close = element("button", "×", panel);
  close.className = "close";
  close.setAttribute("aria-label", "close");
  close.addEventListener("click", hide);
  panel.hidden = false;
  panel.scrollTop = 0;
  all(".chosen").forEach(other => other.classList.remove("chosen"));
  all("[data-details]").filter(other => other.dataset.details === key)
    .forEach(other => other.classList.add("chosen"));
}

function hide() {
  panel.hidden = true;
  all(".chosen").forEach(other => other.classList.remove("chosen"));
}

/* What hovering shows: the few details that matter most, beside the pointer. */
function hint(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  const below = event.clientY + 18;
  const y = below + box.height > window.innerHeight ? event.clientY - box.height - 12 : below;
  tip.style.left = `${Math.max(x, 4)}px`;
  tip.style.top = `${y}px`;
}

function brief(details) {
  const kept = ["code", "does", "time", "share", "bytes", "GB/s", "reads", "writes"];
  const lines = kept.filter(name => details[name] && details[name].length).map(name => {
    const value = Array.isArray(details[name]) ? details[name].join(", ") : details[name];
    return `${name} ${value.length > 90 ? value.slice(0, 87) + "..." : value}`;
  });
  return [details.name, ...lines].join("\n");
}

function light(node, on) {
  const figure = node.closest(".figure");
  figure.classList.toggle("dimmed", on);
  if (!on) return all(".near", figure).forEach(one => one.classList.remove("near"));
  const own = node.dataset.number, near = new Set([own]);
  for (const arrow of all(".arrow", figure)) {
    const ends = [arrow.dataset.from, arrow.dataset.to];
    if (!ends.includes(own)) continue;
    arrow.classList.add("near");
    ends.forEach(end => near.add(end));
  }
  all(".node", figure).filter(one => near.has(one.dataset.number))
    .forEach(one => one.classList.add("near"));
}

for (const item of all("[data-details]")) {
  const details = data.details[item.dataset.details];
  item.addEventListener("click", event => {
    if (item.closest(".moved")) return;
    event.stopPropagation();
    show(item.dataset.details);
  });
  item.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    show(item.dataset.details);
  });
  item.addEventListener("pointermove", event => {
    if (event.pointerType === "mouse" && details) hint(brief(details), event);
  });
  item.addEventListener("pointerleave", () => { tip.hidden = true; });
  if (item.classList.contains("node")) {
    item.addEventListener("pointerenter", event => {
      if (event.pointerType === "mouse") light(item, true);
    });
    item.addEventListener("pointerleave", () => light(item, false));
  }
}
document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });

/* A kind in the legend lights up its nodes. */
for (const chip of all(".chip[data-kind]")) {
  const nodes = () => all(`.node[data-kind="${chip.dataset.kind}"]`, chip.closest("section"));
  const set = on => {
    chip.classList.toggle("lit", on);
    nodes().forEach(node => {
      node.closest(".figure").classList.toggle("dimmed", on);
      node.classList.toggle("near", on);
    });
  };
  chip.addEventListener("pointerenter", () => set(true));
  chip.addEventListener("pointerleave", () => set(false));
}

/* Drawings can be dragged and zoomed: two fingers, ctrl and the wheel, or the buttons. */
class Zoom {
  constructor(figure) {
    this.figure = figure;
    this.svg = figure.querySelector("svg");
    this.whole = this.svg.getAttribute("viewBox").split(" ").map(Number);
    this.sideways = figure.dataset.zoom === "x";
    this.pointers = new Map();
    this.reset();
    for (const [name, act] of Object.entries({
      pointerdown: e => this.down(e), pointermove: e => this.move(e),
      pointerup: e => this.up(e), pointercancel: e => this.up(e),
      wheel: e => this.wheel(e),
    })) this.svg.addEventListener(name, act, {passive: false});
    all(".tools button", figure).forEach(button => button.addEventListener("click", () => {
      const factor = {in: 0.7, out: 1 / 0.7}[button.dataset.zoom];
      if (factor) this.zoom(factor, 0.5, 0.5); else this.fit();
    }));
  }
  get width() { return this.svg.getBoundingClientRect().width || 1; }
  reset() { /* legible and from the top */
    const [x, y, w, h] = this.whole;
    if (this.sideways) return this.set([...this.whole]);
    const limit = window.innerHeight * 0.74;
    const least = window.innerWidth < 640 ? 0.72 : 0.5;
    const scale = Math.max(Math.min(this.width / w, 1.25), least);
    const height = Math.min(h * scale, limit);
    this.svg.style.height = `${height}px`;
    const seen = this.width / scale;
    this.set([x - (seen - w) / 2, y, seen, height / scale]);
  }
  fit() {
    const [x, y, w, h] = this.whole;
    this.set(this.view[2] < w * 0.999 || this.view[3] < h * 0.999 ? [x, y, w, h] : null);
  }
  set(view) {
    if (view === null) return this.reset();
    this.view = view;
    this.svg.setAttribute("viewBox", view.join(" "));
    const inside = view[2] < this.whole[2] * 0.98 || view[3] < this.whole[3] * 0.98;
    this.svg.style.touchAction = inside && this.zoomed ? "none" : "pan-y";
  }
  zoom(factor, atX, atY) {
    const [x, y, w, h] = this.view;
    const next = Math.min(Math.max(w * factor, this.whole[2] / 60), this.whole[2] * 3);
    const real = next / w;
    this.zoomed = true;
    if (this.sideways) {
      const width = Math.min(next, this.whole[2]);
      const left = Math.min(Math.max(x + w * atX - width * atX, this.whole[0]),
        this.whole[0] + this.whole[2] - width);
      return this.set([left, y, width, h]);
    }
    this.set([x + w * atX * (1 - real), y + h * atY * (1 - real), w * real, h * real]);
  }
  place(event) {
    const box = this.svg.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }
  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    this.zoom(Math.exp(event.deltaY * 0.004), ...this.place(event));
  }
  down(event) {
    this.pointers.set(event.pointerId, this.place(event));
    this.figure.classList.remove("moved");
    if (this.pointers.size > 1) this.svg.style.touchAction = "none";
  }
  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.place(event);
    const [x, y, w, h] = this.view;
    if (this.pointers.size === 1) {
      const far = Math.hypot(now[0] - before[0], now[1] - before[1]) * this.width;
      if (far < 4 && !this.figure.classList.contains("moved")) return;
      const only = event.pointerType === "touch" && !this.zoomed; /* the page scrolls up and down */
      this.figure.classList.add("moving", "moved");
      this.svg.setPointerCapture(event.pointerId);
      const left = x - (now[0] - before[0]) * w;
      const last = this.whole[0] + this.whole[2] - w;
      this.set(this.sideways
        ? [Math.min(Math.max(left, this.whole[0]), Math.max(last, this.whole[0])), y, w, h]
        : [left, only ? y : y - (now[1] - before[1]) * h, w, h]);
      tip.hidden = true;
    } else {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId)[0].slice(1);
      const distance = p => Math.hypot(p[0] - other[0], (p[1] - other[1]) * h / w) || 1e-6;
      this.zoom(distance(before) / distance(now), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    }
    this.pointers.set(event.pointerId, now);
  }
  up(event) {
    this.pointers.delete(event.pointerId);
    this.figure.classList.remove("moving");
    setTimeout(() => this.figure.classList.remove("moved"), 0);
  }
}
const zooms = new Map(all(".figure.zoomable").map(figure => [figure, new Zoom(figure)]));

/* Before and after the passes. */
for (const tabs of all(".tabs")) {
  const buttons = all("button", tabs);
  buttons.forEach(button => button.addEventListener("click", () => {
    for (const other of buttons) {
      const on = other === button, shown = document.getElementById(other.dataset.shows);
      other.setAttribute("aria-selected", on);
      shown.hidden = !on;
      if (on) all(".figure.zoomable", shown).forEach(figure => zooms.get(figure).reset());
    }
  }));
}

/* The memory chart says what is alive where the pointer is. */
for (const chart of all(".memory[data-memory]")) {
  const svg = chart.querySelector("svg"), cursor = chart.querySelector(".cursor");
  const live = data.memory[chart.dataset.memory];
  const [left, right] = [Number(chart.dataset.left), Number(chart.dataset.right)];
  const follow = event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const part = (x - left) / (right - left);
    if (part < 0 || part > 1) return leave();
    const place = Math.round(part * (live.length - 1));
    const [where, operator, bytes] = live[place];
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x);
    cursor.style.visibility = "visible";
    hint(`${bytes} alive\n${operator}\nin ${where}`, event);
  };
  const leave = () => { tip.hidden = true; cursor.style.visibility = "hidden"; };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", leave);
}
tip.style.whiteSpace = "pre-line";

/* Tables are sorted by the column that is clicked. */
for (const head of all("th[data-sort]")) {
  head.addEventListener("click", () => {
    const row = head.parentElement, body = row.closest("table").tBodies[0];
    const column = [...row.cells].indexOf(head);
    const up = head.getAttribute("aria-sort") === "descending";
    all("th", row).forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = line => {
      const cell = line.cells[column];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const compare = (a, b) => typeof value(a) === "number"
      ? value(a) - value(b) : String(value(a)).localeCompare(String(value(b)));
    const lines = [...body.rows].sort((a, b) => up ? compare(a, b) : compare(b, a));
    body.append(...lines);
  });
}
window.addEventListener("resize", () => zooms.forEach((zoom, figure) => {
  if (!zoom.zoomed && figure.offsetParent) zoom.reset();
}));

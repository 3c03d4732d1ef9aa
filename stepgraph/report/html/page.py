"""The page of an explanation: one HTML file with its style and script, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from stepgraph.compiler import Explanation
from stepgraph.compiler.explain import Advice, FallbackReport, count_of
from stepgraph.ir import readable
from stepgraph.profiling import Profile
from stepgraph.report.html.details import Embedded
from stepgraph.report.html.profile_section import measured_sections
from stepgraph.report.html.variant_section import variant_section
from stepgraph.report.palette import COLOURS, OTHER
from stepgraph.report.status import status_of


def to_html(explanation: Explanation, path: str | Path, profile: Profile | None = None) -> None:
    """Write the page of an explanation to a file; see `Explanation.to_html`."""
    Path(path).write_text(page(explanation, profile), encoding="utf-8")


def page(explanation: Explanation, profile: Profile | None = None) -> str:
    """Return the page of an explanation, with the profile of one of its variants if given."""
    embedded = Embedded()
    body = [*_explanation(explanation, profile, embedded, "s")]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(explanation.name)}: stepgraph</title>",
            f"<style>{_asset('report.css')}{_kinds()}</style></head><body><main>",
            *body,
            "</main>",
            '<aside id="details" aria-live="polite" hidden></aside><div id="tip" hidden></div>',
            f'<script type="application/json" id="data">{_json(embedded.as_dict())}</script>',
            f"<script>{_asset('report.js')}</script></body></html>",
        ]
    )


def _explanation(
    found: Explanation, profile: Profile | None, embedded: Embedded, key: str
) -> Iterator[str]:
    yield f"<header><h1>{escape(found.name)}</h1>"
    yield f'<div class="verdict {status_of(found)}">{escape(found.verdict)}</div>'
    calls = f"{count_of(found.calls, 'call')}, of which {found.replays} replayed"
    options = ", ".join(f"{name}={value!r}" for name, value in found.options.items())
    yield f'<p class="soft">{calls}{f"; <code>{escape(options)}</code>" if options else ""}</p>'
    yield f"{_cards(found, profile)}</header>"
    yield from _fallbacks(found.fallbacks)
    yield from _advice(found.advice)
    for number, (variant, graphs) in enumerate(zip(found.variants, found.graphs, strict=True)):
        own = profile if profile is not None and profile.variant == number else None
        title = f"Variant {number}" if len(found.variants) > 1 else "The step"
        yield from variant_section(variant, graphs, own, embedded, title, f"{key}{number}")
        if own is not None:
            yield from measured_sections(own, embedded, f"{key}{number}")
    for number, closure in enumerate(found.closures):
        yield from _explanation(closure, None, embedded, f"{key}c{number}")


def _cards(found: Explanation, profile: Profile | None) -> str:
    """Return the most important numbers, as large cards."""
    cards = list(_measured_cards(profile) if profile else _captured_cards(found))
    items = (f"<li><b>{escape(big)}</b><span>{escape(small)}</span></li>" for big, small in cards)
    return f'<ul class="cards">{"".join(items)}</ul>' if cards else ""


def _measured_cards(profile: Profile) -> Iterator[tuple[str, str]]:
    yield f"{profile.speedup:.2f} x", f"the speed of eager, on {profile.device}"
    yield (
        f"{profile.compiled.median_ms:.2f} ms",
        f"a replay; eager {profile.eager.median_ms:.2f} ms",
    )
    eager = "" if profile.eager_launches is None else f"; eager {profile.eager_launches}"
    yield str(profile.launches), f"launches{eager}"
    yield f"{profile.host.median_ms * 1e3:.0f} µs", "host: guards, inputs, results"
    yield readable(profile.peak_bytes), "alive at the peak"
    if profile.copy_gbps:
        yield f"{profile.copy_gbps:.1f} GB/s", "a copy of memory, measured"


def _captured_cards(found: Explanation) -> Iterator[tuple[str, str]]:
    if not found.variants:
        return
    times = [v.replay_ms for v in found.variants if v.replay_ms is not None]
    yield str(found.captures), "variant" if found.captures == 1 else "variants"
    yield str(max(v.launches for v in found.variants)), "launches in a call"
    yield f"{sum(v.capture_ms for v in found.variants) / 1e3:.1f} s", "to capture"
    if times:
        yield f"{min(times):.2f} ms", "shortest of the first replays"


def _fallbacks(found: Sequence[FallbackReport]) -> Iterator[str]:
    if not found:
        return
    yield '<h2>Why it ran eagerly</h2><ul class="notes bad">'
    for one in found:
        at = f'<div class="at">{escape(one.at)}</div>' if one.at else ""
        hint = f'<div class="hint">{escape(one.hint)}</div>' if one.hint else ""
        times = count_of(one.count, "call")
        yield f'<li>{escape(one.reason)} <span class="soft">({times})</span>{at}{hint}</li>'
    yield "</ul>"


def _advice(found: Sequence[Advice]) -> Iterator[str]:
    if not found:
        return
    yield '<h2>To get more</h2><ul class="notes">'
    for one in found:
        yield f'<li>{escape(one.what)}<div class="hint">{escape(one.hint)}</div></li>'
    yield "</ul>"


def _kinds() -> str:
    """Return the CSS rules for the colours of the kinds."""
    rules = [f".is-{kind}{{--kind:{colour}}}" for kind, colour in COLOURS.items()]
    return f":root{{--kind:{OTHER}}}" + "".join(rules)


def _asset(name: str) -> str:
    return files("stepgraph.report.html").joinpath(f"assets/{name}").read_text(encoding="utf-8")


def _json(value: object) -> str:
    """Return JSON for a script element: without `<`, so that it cannot end the element."""
    return json.dumps(value).replace("<", "\\u003c")

"""Differences between two explanations, profiles or benches that were written as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stepgraph.errors import ConfigurationError

_NAMES = ("name", "label", "reason")
"""Keys that identify an item of a list; an item without any of them is identified by its index."""

_COUNTS = ("calls", "replays", "count", "warm_up_calls", "threads", "copy_gbps")
"""Counts of calls and properties of the machine; they are not compared."""


@dataclass(frozen=True)
class Difference:
    """The differences between two files; prints itself.

    Attributes:
        facts: Values other than times that differ: `(path, before, after)`; None for a value that
            is missing.
        times: Every time that both files have, in milliseconds: `(path, before, after,
            certainty)`. The certainty is `clear` if the spreads do not overlap, `within the
            spread` if they do, `single times` if there is no spread.
    """

    facts: tuple[tuple[str, Any, Any], ...]
    times: tuple[tuple[str, float, float, str], ...]

    def __str__(self) -> str:
        if not self.facts and not self.times:
            return "no difference"
        lines = [] if self.facts else ["the same but for times"]
        lines += [f"{path}: {_shown(a)} -> {_shown(b)}" for path, a, b in self.facts]
        width = max((len(path) for path, *_ in self.times), default=0)
        for path, before, after, certainty in self.times:
            ratio = f"{after / before:.2f} x" if before else ""
            note = "" if certainty == "clear" else f"  {certainty}"
            lines.append(f"{path:<{width}}  {before:9.3f} -> {after:9.3f} ms  {ratio}{note}")
        return "\n".join(lines)


def diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> Difference:
    """Compare two results of `to_dict()`.

    Raises:
        ConfigurationError: The two are not of the same kind.
    """
    kinds = _kind_of(before), _kind_of(after)
    if None in kinds or kinds[0] != kinds[1]:
        found = " and ".join(kind or "something else" for kind in kinds)
        raise ConfigurationError(
            "only two explanations or two profiles can be compared, or two comparisons",
            found=found,
            hint="write them with --json of stepgraph explain, profile or bench",
        )
    left, right = dict(_facts(before)), dict(_facts(after))
    paths = dict.fromkeys([*left, *right])
    facts = ((path, left.get(path), right.get(path)) for path in paths)
    slow, fast = dict(_times(before)), dict(_times(after))
    return Difference(
        facts=tuple(fact for fact in facts if fact[1] != fact[2]),
        times=tuple(
            (path, time[0], fast[path][0], _certainty(time, fast[path]))
            for path, time in slow.items()
            if path in fast
        ),
    )


def _kind_of(found: Mapping[str, Any]) -> str | None:
    if not isinstance(found, Mapping):
        return None
    if {"captures", "variants", "fallbacks"} <= found.keys():
        return "an explanation"
    if {"eager", "compiled", "nodes"} <= found.keys():
        return "a profile"
    return "a comparison" if {"device", "ways"} <= found.keys() else None


def _facts(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is neither a time nor a count of calls, with its path."""
    if _is_timing(value):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not key.endswith("_ms") and key != "ms" and key not in _COUNTS:
                yield from _facts(item, _joined(path, key))
    elif isinstance(value, list):
        for name, item in _named(value):
            yield from _facts(item, _joined(path, name))
    elif value is not None:
        yield path, value


def _times(value: Any, path: str = "") -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield every time with its path: the median, and the spread if there is one."""
    if _is_timing(value):
        yield path, (value["median_ms"], value["low_ms"], value["high_ms"])
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key.endswith("_ms") and isinstance(item, int | float):
                yield _joined(path, key.removesuffix("_ms")), (item,)
            else:
                yield from _times(item, path if key == "time" else _joined(path, key))
    elif isinstance(value, list):
        for name, item in _named(value):
            yield from _times(item, _joined(path, name))


def _is_timing(value: Any) -> bool:
    return isinstance(value, Mapping) and {"median_ms", "low_ms", "high_ms"} <= value.keys()


def _certainty(one: tuple[float, ...], other: tuple[float, ...]) -> str:
    if len(one) == 1:
        return "single times"
    return "clear" if one[2] < other[1] or other[2] < one[1] else "within the spread"


def _named(items: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the items of a list with unique names."""
    seen: dict[str, int] = {}
    for place, item in enumerate(items):
        keys = (key for key in _NAMES if isinstance(item, Mapping) and item.get(key))
        key = next(keys, None)
        name = str(place) if key is None else str(item[key])
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name} ({seen[name]})"), item


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)

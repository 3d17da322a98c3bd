"""Part `throughput`: tokens per second from a fixed memory for keys and values, `full` against budgets."""

from __future__ import annotations

from typing import Any

from leanthink.engine.bench.decode import summary
from leanthink.engine.bench.eviction import gathered
from leanthink.engine.bench.fixture import Fixture, attempt
from leanthink.engine.bench.measure import timed_serving, timed_steps
from leanthink.engine.bench.warm_start import Place, warm_start
from leanthink.utils.errors import UsageError

METHOD = (
    "rows are put into the middle of their lives, then real steps are timed. full: held slots uniform between prompt "
    "and prompt + output. Budgets: past their first eviction, evictions spread evenly. Prefill of the requests that "
    "replace finished ones is not counted, but with --seconds, when they are really served"
)
EXTRAPOLATION = "extrapolated, not measured: requests x output / tokens_per_second, without prefill and without a tail"


def throughput(fixture: Fixture) -> dict[str, Any]:
    """`full` and every budget in the same memory."""
    rows = [_policy(fixture, slots) for slots in (None, *fixture.options.budgets)]
    full = rows[0].get("tokens_per_second")
    for row in rows:
        if full and "tokens_per_second" in row:
            row["ratio_to_full"] = row["tokens_per_second"] / full
    return {"kv_gib": fixture.options.kv_gib, "method": METHOD, "extrapolation": EXTRAPOLATION, "policies": rows}


def _policy(fixture: Fixture, slots: int | None) -> dict[str, Any]:
    name = "full" if slots is None else "horizon"
    return {"policy": name, "budget": slots} | attempt(lambda: _measure(fixture, slots))


def _measure(fixture: Fixture, slots: int | None) -> dict[str, Any]:
    options = fixture.options
    kv_slots = int(options.kv_gib * 2**30) // fixture.bytes_per_slot
    bound = fixture.request(0, prompt=options.prompt, output=options.output, slots=slots).bound
    fit = kv_slots // bound
    if not fit:
        raise UsageError(f"one request can hold {bound} slots, and --kv-gib {options.kv_gib} has {kv_slots}: give more")
    rows = min(fit, options.requests)
    warm_up = options.warm_up if slots is None else options.interval
    steps = options.steps if slots is None else options.whole_intervals
    places = places_of(fixture, rows, slots, steps + warm_up)
    engine = fixture.engine([bound] * rows, slots=kv_slots)
    warm_start(engine, places)
    if options.seconds is None:
        measured = timed_steps(engine, warm_up=warm_up, steps=steps)
    else:
        for index in range(rows, options.requests):
            engine.add_request(fixture.request(index, prompt=options.prompt, output=options.output, slots=slots))
        measured = timed_serving(engine, warm_up=warm_up, seconds=options.seconds)
    result = summary(fixture, measured)
    seconds = options.requests * options.output / result["tokens_per_second"]
    return {"bound_slots": bound, "bounds_that_fit": fit} | result | {"seconds_for_all_requests_extrapolated": seconds}


def places_of(fixture: Fixture, rows: int, slots: int | None, steps: int) -> list[Place]:
    """Rows evenly staggered over their lives, each with `steps` more before it ends."""
    options, places = fixture.options, []
    if slots is not None and slots + options.interval + steps + 2 > options.output:
        raise UsageError(f"a budget of {slots} is not full before the end of --output {options.output}: leave it out")
    for index, extra in enumerate(gathered(rows, options.interval)):
        request = fixture.request(index, prompt=options.prompt, output=options.output, slots=slots)
        first = 1 if slots is None else slots + extra + 1  # a row with a budget has filled it
        latest = options.output - steps - 1
        generated = first + int((latest - first) * (index + 0.5) / rows)
        thought = generated - 1 if slots is None else slots + extra
        places.append(Place(request=request, held=options.prompt + thought, generated=generated))
    return places

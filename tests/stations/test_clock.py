"""The time that an evaluation still takes."""

import types

from dat_jax.stations import clock as clock_lib


def test_the_clock_knows_attacks_that_search_from_plain_text(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock_lib, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    plain, slow = False, True
    clock = clock_lib.Clock([(plain, 4), (slow, 2)])
    assert clock.left() == "time left not known yet"
    now[0] += 4.0
    clock.note(plain, 2)
    assert clock.left() == "more than 4 s left"  # two plain ones at two seconds each, and nobody knows of the slow ones
    now[0] += 30.0
    clock.note(slow, 1)
    assert clock.left() == "about 34 s left"
    assert not clock.quiet_for(10.0)
    now[0] += 11.0
    assert clock.quiet_for(10.0) and not clock.quiet_for(10.0)
    clock.note(plain, 2)
    clock.note(slow, 1)
    assert clock.left() == "finished"

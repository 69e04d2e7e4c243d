from contextlib import contextmanager

import pytest

from sonde.progress import track, watching


class Watch:
    def __init__(self):
        self.seen = []

    @contextmanager
    def __call__(self, stage, total, unit):
        self.seen.append(("open", stage, total, unit))
        try:
            yield lambda n: self.seen.append(n)
        finally:
            self.seen.append("close")


def work():
    with track("reading", 3, "rows") as advance:
        advance(1)
        advance(2)


def test_nobody_watches_and_nothing_happens(capsys):
    work()
    assert capsys.readouterr() == ("", "")


def test_a_watcher_is_told_each_step():
    watch = Watch()
    with watching(watch):
        work()
    assert watch.seen == [("open", "reading", 3, "rows"), 1, 2, "close"]


def test_the_watcher_is_gone_afterwards_even_after_an_error():
    outer, inner = Watch(), Watch()
    with watching(outer):
        with pytest.raises(RuntimeError, match="stop"), watching(inner), track("fitting", None, "steps"):
            raise RuntimeError("stop")
        work()
    work()
    assert inner.seen == [("open", "fitting", None, "steps"), "close"]
    assert outer.seen == [("open", "reading", 3, "rows"), 1, 2, "close"]

from __future__ import annotations

from dynftrace_emu.ftrace.events import Observers, PageAdded, SiteRecorded, TracingSwitched

PAGE, SWITCH = PageAdded(1.0, 145), TracingSwitched(2.0, True, 3)


def test_each_observer_hears_of_the_kinds_it_asked_for_in_the_order_they_came() -> None:
    observers, heard = Observers(), []
    observers.append(lambda event: heard.append(("all", event)))
    observers.append(lambda event: heard.append(("pages", event)), PageAdded)
    observers.append(lambda event: heard.append(("both", event)), PageAdded, TracingSwitched)
    observers.notify(PAGE)
    observers.notify(SWITCH)
    assert heard == [
        ("all", PAGE), ("pages", PAGE), ("both", PAGE), ("all", SWITCH), ("both", SWITCH),
    ]  # fmt: skip


def test_it_is_known_whether_anybody_hears_of_a_kind() -> None:
    observers = Observers()
    assert not observers.hear(SiteRecorded)
    observers.append(lambda _: None, PageAdded)
    assert observers.hear(PageAdded)
    assert not observers.hear(SiteRecorded)
    observers.append(lambda _: None)
    assert observers.hear(SiteRecorded)

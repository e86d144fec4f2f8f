"""Names for generated functions, in the manner of a kernel's: ``ext3_alloc_inode``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["function_names"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_SUBSYSTEMS = _words("""
    ext3 nfs xfs proc sysfs fat isofs udf reiserfs jbd tcp udp ip icmp arp unix netlink bridge vlan
    xfrm scsi ata usb pci acpi i2c hid input snd drm fb tty kbd mmc md dm loop nbd sched timer
""")
_VERBS = _words("""
    alloc free get put init exit add del find insert remove lookup read write open close start stop
    enable disable lock unlock attach detach map unmap flush sync wait wake queue dequeue submit
    complete register unregister update check parse build
""")
_OBJECTS = _words("""
    inode page block buffer entry node list table cache queue ring slot desc header packet frame
    route device port channel irq dma timer work event state stats param attr name path group mask
    range extent segment region window request response command context session record log journal
    handle index key
""")
_STRIDE = 787  # coprime with the number of pairs: neighbours differ in both words


def function_names(parents: Sequence[int], calls: Sequence[int], tree: int) -> list[str]:
    """A name for each function, all different: a tree's share a subsystem.

    :param parents: the caller of each, -1 of a root, which is named like a system call.
    :param calls: how many others each calls; one that calls none begins with ``__``.
    :param tree: functions in a tree.
    """
    pairs = len(_VERBS) * len(_OBJECTS)
    names = []
    for number, (parent, called) in enumerate(zip(parents, calls, strict=True)):
        which, place = divmod(number, tree)
        turn, subsystem = divmod(which, len(_SUBSYSTEMS))
        pair = (turn * tree + place) * _STRIDE % pairs
        verb, thing = divmod(pair, len(_OBJECTS))
        name = f"{_SUBSYSTEMS[subsystem]}_{_VERBS[verb]}_{_OBJECTS[thing]}"
        names.append(f"sys_{name}" if parent < 0 else name if called else f"__{name}")
    return names

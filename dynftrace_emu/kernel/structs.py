"""The structures that guest and host share, declared once.

Python reads and writes them through NumPy dtypes; assembly gets their offsets from
:func:`asm_offsets`, the prelude of every unit, as Linux's ``asm-offsets.c`` gives them to its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np

from dynftrace_emu.machine.hypercalls import PVCLOCK_FIELDS, Port, Request

__all__ = [
    "BOOT_PARAMS",
    "DYN_FTRACE",
    "ENTRIES_PER_PAGE",
    "FTRACE_HASHBITS",
    "FTRACE_HASHSIZE",
    "FTRACE_PAGE",
    "PAGE_SIZE",
    "PCPU",
    "TASK",
    "GuestStruct",
    "Skip",
    "asm_offsets",
]

PAGE_SIZE = 4096


@dataclass(frozen=True)
class GuestStruct:
    """A structure in guest memory: ``fields`` are (name, NumPy type, meaning), unpadded."""

    name: str
    fields: tuple[tuple[str, str | np.dtype[Any], str], ...]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The structure as a packed NumPy dtype."""
        return np.dtype([(name, kind) for name, kind, _ in self.fields])

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.dtype.itemsize

    def offset(self, field: str) -> int:
        """Where ``field`` begins, in bytes."""
        offsets = self.dtype.fields
        assert offsets is not None
        return int(offsets[field][1])

    def constants(self) -> dict[str, int]:
        """``NAME_FIELD`` for each field and ``NAME_SIZE``: what assembly calls them."""
        prefix = self.name.upper()
        offsets = {f"{prefix}_{name.upper()}": self.offset(name) for name, *_ in self.fields}
        return {**offsets, f"{prefix}_SIZE": self.size}


DYN_FTRACE = GuestStruct(
    "dyn_ftrace",
    (
        ("next", "<u8", "hlist_node.next"),
        ("pprev", "<u8", "hlist_node.pprev: where the pointer to this node lies"),
        ("ip", "<u8", "return address of the call to mcount: site + 5"),
        ("failed", "<u4", "the arch's: the bytes were not what they should be; never tried again"),
    ),
)
"""``struct dyn_ftrace``: one recorded call site, 28 bytes (S2, S3)."""

FTRACE_PAGE = GuestStruct(
    "ftrace_page",
    (
        ("next", "<u8", "the next page, or 0"),
        ("index", "<u4", "records in use"),
    ),
)
"""``struct ftrace_page``: the header of a page of records."""

ENTRIES_PER_PAGE = (PAGE_SIZE - FTRACE_PAGE.size) // DYN_FTRACE.size
FTRACE_HASHBITS = 10
FTRACE_HASHSIZE = 1 << FTRACE_HASHBITS

PVCLOCK = GuestStruct("pvclock", PVCLOCK_FIELDS)
"""``struct pvclock_vcpu_time_info``: how a vCPU makes time of what it counts."""

TRACE_BITS = 32
STACK_TRACE_ENTRIES = 64


class TraceBit(IntEnum):
    """Bits of a word of ``ftrace_map``: who wants a call site, and what else is known of it.

    From INSTANCE on each bit is the function tracer of an instance.
    """

    FUNCTION = 0
    GRAPH = 1
    PROFILE = 2
    STACK = 3
    PROBE = 4
    GRAPH_FUNCTION = 5  # it is in set_graph_function
    GRAPH_NOTRACE = 6  # ... in set_graph_notrace
    KNOWN = 7  # recorded, and dealt with; in pcpu.trace_mask: not the plain case that is fast
    COUNT = 8  # somebody who only wants calls counted, in pcpu.traced_calls
    INSTANCE = 9


RB = GuestStruct(
    "rb",
    (
        ("page", "<u8", "the page being written"),
        ("page_no", "<u8", "its number: pages are counted and never reused"),
        ("nr_pages", "<u8", "how many there are in memory"),
        ("base", "<u8", "the first"),
        ("end", "<u8", "the address behind the last"),
        ("table", "<u8", "a struct rb_page for each"),
        ("dropped", "<u8", "events dropped for want of room, or out of an NMI"),
        ("overwrite", "<u8", "not 0: the oldest page makes room; the host writes"),
        ("reader_page", "<u8", "number of the page the reader is at; the host writes"),
        ("counter", "<u8", "the counter that is this buffer's clock, or 0; the host writes"),
        ("stack", "<u8", "not 0: a stack trace follows each function event; the host writes"),
        ("busy", "<u8", "1 while the next page is made, where only an NMI can come in between"),
    ),
)
"""``struct ring_buffer_per_cpu``: who writes and reads it is said in ``ftrace/ring_buffer.py``."""

RB_PAGE = GuestStruct(
    "rb_page",
    (
        ("number", "<u8", "which page lies here, counted as rb.page_no"),
        ("first", "<u8", "events written before it"),
    ),
)
"""What the reader must know of a page beyond its own header."""

BUFFER_PAGE = GuestStruct(
    "buffer_page",
    (
        ("time_stamp", "<u8", "time of its first event, in ns"),
        ("commit", "<u8", "bytes of whole events in it, while its write word says that it is open"),
    ),
)
"""``struct buffer_data_page``: the header of a page of events, as Linux lays it out."""

PAGE_WRITE = PAGE_SIZE - 8
"""Where a page keeps its write word, behind its events: what the next event goes by.

Its parts, from the lowest bit: words of events reserved, whether the page is closed, whether it is
open (events behind ``commit`` may not be whole; else all are), events reserved, time of the last
(ns, modulo 2^44: events may be 2 hours apart).
"""
WRITE_CLOSED = 1 << 10
WRITE_OPEN = 1 << 11
WRITE_COUNT_SHIFT, WRITE_COUNT_MASK = 12, 0xFF
WRITE_TIME_SHIFT = 20

RET_STACK = GuestStruct(
    "ret_stack",
    (
        ("depth", "<u4", "entries in use"),
        ("graph_depth", "<u4", "those of them that function_graph shows"),
        (
            "session",
            "<u4",
            "the run of the graph tracer that these two belong to: the one before, and",
        ),
        ("notrace_depth", "<u4", "those inside a function of set_graph_notrace, that one included"),
        ("unused", "(4,)<u8", "in front of the first entry: no entry"),
    ),
)
"""The header of a shadow stack: return addresses that ``return_to_handler`` stands for."""

RET_ENTRY = GuestStruct(
    "ret_entry",
    (
        ("ret", "<u8", "where the function returns to"),
        ("func", "<u8", "its ip: the return address of its call to mcount"),
        ("calltime", "<u8", "when it was entered, in ns"),
        ("flags", "<u4", "RetFlag"),
        ("session", "<u4", "the run of the graph tracer that it was entered in"),
        ("frame", "<u8", "where the return address was"),
    ),
)
"""``struct ftrace_ret_stack``."""


RET_NODE = GuestStruct(
    "ret_node",
    (
        ("stack", RET_STACK.dtype, "its depths are those of the call it is in, and its own"),
        ("entry", RET_ENTRY.dtype, "the one it ever has"),
        ("frame", "<u8", "entry.frame from the beginning, its key; 0: free, 1: hidden"),
        ("up", "<u8", "the node of the call it is in, or 0"),
        ("cpu", "<u8", "where it was entered"),
        ("hides", "<u8", "the node that had this frame before, and will again: a tail call; or 0"),
        ("unused", "<u8", "to make it a power of two"),
    ),
)
"""A shadow stack for one call, where stacks are unknown (firmware/runtime/ret_nodes.S)."""
RET_NODE_BITS = 12
RET_NODE_PROBES = 16
RET_NODES = (1 << RET_NODE_BITS) + RET_NODE_PROBES


class RetFlag(IntEnum):
    """What is to be done when the function returns."""

    GRAPH = 1  # an exit event
    DROPPED = 2  # ... that is dropped, as its entry was
    NOTRACE = 4  # the end of a function of set_graph_notrace
    PROFILE = 8
    DEPTH = 16  # it counts in graph_depth


PROFILE = GuestStruct(
    "profile",
    (
        ("hits", "<u8", "calls"),
        ("time", "<u8", "ns in it and what it called"),
        ("time_squared", "<u8", "sum of the squares"),
        ("ip", "<u8", "which function"),
    ),
)
"""``struct ftrace_profile``: of one function on one CPU."""

PROBE = GuestStruct(
    "probe",
    (
        ("next", "<u8", "the next of this hash chain, or 0"),
        ("ip", "<u8", "the function it waits for"),
        ("kind", "<u8", "ProbeKind"),
        ("count", "<u8", "how often it may still act; 2^64 - 1: without end"),
        ("bit", "<u8", "the TraceBit whose tracing_on and buffer it acts on"),
        ("mask", "<u8", "that bit, as in trace_mask"),
    ),
)
"""``struct ftrace_func_probe``, for one function."""

FTRACE_MAP_OFFSET = 0x2008_0000
"""How far behind each call site its word of ``ftrace_map`` lies, in bytes.

Not a multiple of 256 pages: an engine's TLB has one place for all pages that are such a multiple
apart, and the first stacks and the per-CPU areas begin at one.
"""

PROBE_HASHBITS = 8
PROBE_HASHSIZE = 1 << PROBE_HASHBITS


class ProbeKind(IntEnum):
    """What a trigger of set_ftrace_filter does (kernel/trace/trace_functions.c)."""

    TRACEON = 1
    TRACEOFF = 2
    STACKTRACE = 3
    SNAPSHOT = 4
    DUMP = 5
    CPUDUMP = 6


class EventId(IntEnum):
    """``enum trace_type`` of Linux (kernel/trace/trace.h): ids of the built-in events."""

    FUNCTION = 1
    KERNEL_STACK = 4
    PRINT = 5
    GRAPH_EXIT = 10
    GRAPH_ENTRY = 11
    RAW_DATA = 18


PCPU = GuestStruct(
    "pcpu",
    (
        ("self", "<u8", "this area's own address"),
        ("cpu", "<u8", "smp_processor_id()"),
        ("requests", "<u8", "pending requests (Request); the host writes, safepoints poll"),
        ("clock_ns", "<u8", "time since boot; the host writes"),
        ("pvclock", PVCLOCK.dtype, "what the finer clock is read by; the host writes"),
        ("current", "<u8", "the running task"),
        # What each event says of its context; tracers read these four at once.
        ("need_resched", "u1", "set by the tick, cleared by schedule()"),
        ("irqs_off", "u1", "1 while interrupts are off, as percpu.inc's macros and entries say"),
        ("pid", "<u2", "the running task's; the loader writes that of the idle task"),
        ("preempt_count", "<u8", "above 0: no preemption, no parking; its parts as in Linux"),
        ("unused", "<u4", ""),
        ("jiffies", "<u8", "the guest's own time, in ticks"),
        ("timer_interrupts", "<u8", "ticks this CPU handled"),
        ("nmi_count", "<u8", "NMIs this CPU handled"),
        ("mcount_calls", "<u8", "entries to mcount"),
        ("traced_calls", "<u8", "calls a tracer got"),
        ("skipped_no_slot", "<u8", "calls not recorded: no record slot"),
        ("skipped_nested", "<u8", "... the recorder was interrupted on this CPU"),
        ("skipped_suspended", "<u8", "... a pass is going on"),
        ("skipped_patched", "<u8", "... the site reads as patched already"),
        ("iterations", "<u8", "workload iterations done"),
        ("checksum", "<u8", "the workload's result after so many iterations"),
        ("tasks", "<u8", "first of this CPU's tasks, linked by task.sibling"),
        ("zone_start", "<u8", "this CPU's free memory: first byte; the loader writes"),
        ("zone_end", "<u8", "... and the byte behind it"),
        ("online", "<u8", "1 while this CPU takes part"),
        ("trace_mask", "<u8", "bits (TraceBit) of the tracers that listen here; the host writes"),
        ("trace_buffers", f"({TRACE_BITS},)<u8", "ring buffer of each bit; the host writes"),
        ("profile", "<u8", "this CPU's profile, less where its text begins; the host writes"),
        ("stack_max", "<u8", "deepest stack seen here, in bytes"),
        ("stack_seq", "<u8", "odd while the trace of it is being written"),
        ("stack_nr", "<u8", "entries in that trace"),
        ("stack_ips", f"({STACK_TRACE_ENTRIES},)<u8", "its return addresses, innermost first"),
        ("stack_sizes", f"({STACK_TRACE_ENTRIES},)<u8", "bytes of stack from each to the top"),
    ),
)
"""The part of a per-CPU area that the host reads or writes; GS points to it (S1, S4)."""

TASK = GuestStruct(
    "task",
    (
        ("thread_sp", "<u8", "saved rsp while switched out"),
        ("stack", "<u8", "lowest address of its stack"),
        ("state", "<u8", "0 running or runnable, 1 sleeping, 2 dead"),
        ("pid", "<u8", "process id"),
        ("on_cpu", "<u8", "1 while it is the running task"),
        ("sibling", "<u8", "the next task of this CPU, or 0"),
        ("run_next", "<u8", "the next task in the runqueue, or 0"),
        ("on_rq", "<u8", "1 while it is queued"),
        ("timeout", "<u8", "jiffies at which schedule_timeout wakes it"),
        ("function", "<u8", "what the thread runs"),
        ("data", "<u8", "its argument"),
        ("quota", "<u8", "steps of work left in this iteration"),
        ("checksum", "<u8", "the fold of its own results"),
        ("rng", "<u8", "state of its own pseudo-random numbers"),
        ("memory_steps", "<u8", "steps done, counted by one inc in memory"),
        ("register_steps", "<u8", "the same, kept in a register and stored at times"),
        ("files", "<u8", "its file descriptor table"),
        ("waiting_on", "<u8", "the wait queue it sleeps on, or 0"),
        ("comm", "S16", "name"),
    ),
)
"""``struct task_struct``, what there is of it."""

BOOT_PARAMS = GuestStruct(
    "boot_params",
    (
        ("nr_cpus", "<u8", "vCPUs to bring up"),
        ("hz", "<u8", "timer interrupts a second"),
        ("workload", "<u8", "address of a workload description, workload_NAME"),
        ("iteration_limit", "<u8", "iterations until a CPU goes offline; 0: none"),
    ),
)
"""What the loader tells the kernel, at the symbol ``boot_params``."""


IMAGE_START = GuestStruct(
    "image_start",
    (
        ("entry", "<u8", "what the boot CPU calls"),
        ("arguments", "(6,)<u8", "with these"),
        ("secondary", "<u8", "what the other CPUs call, with their number"),
        ("nr_cpus", "<u8", "CPUs to start"),
        ("init", "<u8", "the first word of .init_array"),
        ("init_end", "<u8", "... and the byte behind its last"),
        ("result", "<u8", "what the entry returned"),
        ("returned", "<u8", "1 once it has"),
    ),
)
"""How an ELF image is started: the loader writes it, the runtime (firmware/runtime) follows it."""

FTRACE_RECORD_PORT = 0xF5
"""``in eax, dx`` with RDI = ip: the recorder's hook. EAX is a :class:`Skip`."""
FTRACE_PROBE_PORT = 0xF6
"""``in eax, dx`` with RCX = a struct probe: a trigger that has something to change."""


class Skip(IntEnum):
    """Why the recorder's hook did not record: what it returns to guest code."""

    NONE = 0  # recorded now, or by another vCPU meanwhile
    NO_SLOT = 1
    PATCHED = 2
    SUSPENDED = 3


TRACER_SHIFT = 28
TRACER_OFFSET = 1 << TRACER_SHIFT
"""In ``pcpu.preempt_count``: a tracer has asked who wants a call and is telling them."""

TASK_RUNNING, TASK_SLEEPING, TASK_DEAD = 0, 1, 2

# hash_long() of 2008: multiply by a prime near the golden ratio, keep the top bits (linux/hash.h).
GOLDEN_RATIO_PRIME_64 = 0x9E37_FFFF_FFFC_0001

# Task stacks: slot n of a CPU is STACK_SLOT bytes, its upper THREAD_SIZE bytes are mapped; what
# lies below is the guard. Slot 0 is the boot (later idle) task's.
STACK_AREA = 0xFFFF_C900_0000_0000
STACK_SLOT = 0x4000
THREAD_SIZE = 0x2000
STACKS_PER_CPU = 16
NMI_STACK_SLOT = 15
RET_STACK_BYTES = STACK_SLOT // 2
RET_STACK_AREA = (STACK_AREA >> 1) + (1 << 63)
"""Each stack's shadow lies at half its address: so guest code finds it by a shift."""
RET_STACK_ENTRIES = (RET_STACK_BYTES - RET_STACK.size) // RET_ENTRY.size
PID_MAX = 2048
TIMER_VECTOR = 0xEF  # LOCAL_TIMER_VECTOR
NMI_VECTOR = 2


_SHARED = (
    DYN_FTRACE, FTRACE_PAGE, PVCLOCK, PCPU, TASK, BOOT_PARAMS, RB, RB_PAGE, BUFFER_PAGE, RET_STACK,
    RET_ENTRY, PROFILE, PROBE, IMAGE_START,
    RET_NODE,
)  # fmt: skip
_ENUMS = (
    ("PORT", Port), ("SKIP", Skip), ("REQUEST", Request), ("RET", RetFlag), ("PROBE", ProbeKind),
    ("EVENT", EventId), ("TRACE_BIT", TraceBit),
)  # fmt: skip


def asm_offsets() -> dict[str, int]:
    """Every constant that assembly shares with Python, by its assembly name."""
    constants: dict[str, int] = {
        "PAGE_SIZE": PAGE_SIZE,
        "ENTRIES_PER_PAGE": ENTRIES_PER_PAGE,
        "FTRACE_HASHBITS": FTRACE_HASHBITS,
        "FTRACE_HASHSIZE": FTRACE_HASHSIZE,
        "GOLDEN_RATIO_PRIME_64": GOLDEN_RATIO_PRIME_64,
        "TASK_BYTES": TASK.size * STACKS_PER_CPU,
        "TASK_RUNNING": TASK_RUNNING,
        "TASK_SLEEPING": TASK_SLEEPING,
        "TASK_DEAD": TASK_DEAD,
        "STACK_AREA": STACK_AREA,
        "STACK_SLOT": STACK_SLOT,
        "THREAD_SIZE": THREAD_SIZE,
        "STACKS_PER_CPU": STACKS_PER_CPU,
        "NMI_STACK_SLOT": NMI_STACK_SLOT,
        "PORT_FTRACE_RECORD": FTRACE_RECORD_PORT,
        "PORT_FTRACE_PROBE": FTRACE_PROBE_PORT,
        "TRACER_OFFSET": TRACER_OFFSET,
        "FTRACE_MAP_OFFSET": FTRACE_MAP_OFFSET,
        "PAGE_WRITE": PAGE_WRITE,
        "WRITE_CLOSED": WRITE_CLOSED,
        "WRITE_OPEN": WRITE_OPEN,
        "WRITE_COUNT_SHIFT": WRITE_COUNT_SHIFT,
        "WRITE_COUNT_MASK": WRITE_COUNT_MASK,
        "WRITE_TIME_SHIFT": WRITE_TIME_SHIFT,
        "RET_STACK_BYTES": RET_STACK_BYTES,
        "RET_STACK_ENTRIES": RET_STACK_ENTRIES,
        "RET_NODE_BITS": RET_NODE_BITS,
        "RET_NODE_PROBES": RET_NODE_PROBES,
        "STACK_TRACE_ENTRIES": STACK_TRACE_ENTRIES,
        "PROBE_HASHBITS": PROBE_HASHBITS,
        "PROBE_HASHSIZE": PROBE_HASHSIZE,
        "PID_MAX": PID_MAX,
        "TIMER_VECTOR": TIMER_VECTOR,
        "NMI_VECTOR": NMI_VECTOR,
    }
    for struct in _SHARED:
        constants |= struct.constants()
    for prefix, group in _ENUMS:
        constants |= {f"{prefix}_{member.name}": int(member) for member in group}
    constants |= {f"TRACE_{bit.name}": 1 << bit for bit in TraceBit}
    return constants

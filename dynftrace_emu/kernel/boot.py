"""The boot loader: puts an image into memory and the vCPUs at its entry points.

It leaves long mode with paging, a flat GDT, a TSS with an NMI stack and a per-CPU area at GS for
each vCPU, stacks with a guard below each, and the ``boot_params``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.elf.boot import prepare_start
from dynftrace_emu.kernel.guest import GuestKernel
from dynftrace_emu.kernel.structs import (
    BOOT_PARAMS,
    FTRACE_MAP_OFFSET,
    NMI_STACK_SLOT,
    PAGE_SIZE,
    PCPU,
    PROFILE,
    PVCLOCK,
    RET_STACK_AREA,
    RET_STACK_BYTES,
    STACK_AREA,
    STACK_SLOT,
    STACKS_PER_CPU,
    THREAD_SIZE,
    TIMER_VECTOR,
)
from dynftrace_emu.machine.descriptors import (
    GDT_SIZE,
    KERNEL_CS,
    KERNEL_DS,
    TSS_LIMIT,
    TSS_SELECTOR,
    TSS_SIZE,
    build_gdt,
    build_tss,
)
from dynftrace_emu.machine.engine import CpuWords, Engine
from dynftrace_emu.machine.machine import Machine
from dynftrace_emu.machine.memory import GuestMemory
from dynftrace_emu.machine.vcpu import Reg, VCpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynftrace_emu.kernel.elf.start import Start
    from dynftrace_emu.kernel.image import KernelImage

__all__ = ["DEFAULT_HZ", "boot", "enter_long_mode"]

DEFAULT_HZ = 100
ZONE_SIZE = 512 << 10
"""Free memory of each CPU's page allocator, in bytes."""

_PERCPU_AREA = 0xFFFF_E000_0000_0000
_DESCRIPTORS = 0xFFFF_FE00_0000_0000
_ZONE_AREA = 0xFFFF_C800_0000_0000
_SPARE_RAM = 512 << 20  # page tables, record pages, what tracers allocate; committed when touched
_PROFILE_PER_TEXT = PROFILE.size // 4  # the function profiler's table
_RAM_PER_VCPU = 64 << 20  # likewise
_MSR_EFER, _EFER = 0xC000_0080, 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11  # SCE, LME, LMA, NXE
_CR0 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1  # PG, WP, NE, ET, MP, PE
_CR4 = 1 << 5 | 1 << 9 | 1 << 10  # PAE, OSFXSR, OSXMMEXCPT


def boot(
    image: KernelImage,
    nr_vcpus: int,
    engine: Callable[[Machine], Engine],
    *,
    hz: int = DEFAULT_HZ,
    nmi_rate: float = 0.0,
    workload: int = 0,
    iterations: int = 0,
    start: Start | None = None,
) -> GuestKernel:
    """Make a machine with ``image`` in it, vCPU 0 ready to run.

    :param workload: address of a workload list in the image (:func:`.mini_kernel.workloads`).
    :param iterations: after so many a CPU goes offline; 0: never.
    :param start: how an ELF image is started.
    :raises AddressSpaceError: the host gives no address space for so many vCPUs.
    :raises ImageError: the image does not fit, or overlaps something.
    """
    percpu = -(-max(image.percpu_size, PCPU.size) // PAGE_SIZE) * PAGE_SIZE
    per_vcpu = percpu + ZONE_SIZE + STACKS_PER_CPU * (THREAD_SIZE + RET_STACK_BYTES) + _RAM_PER_VCPU
    text = image.text_range[1] - image.text_range[0]
    per_vcpu += _PROFILE_PER_TEXT * text
    loaded = sum(segment.size for segment in image.segments)
    if start is not None:
        loaded += start.ram
        per_vcpu += start.stack
    memory = GuestMemory(_SPARE_RAM + loaded + 4 * text + nr_vcpus * per_vcpu)
    _load_segments(memory, image)
    if image.mcount is not None:
        _map_sites(memory, image)
        if image.elf is None:
            _map_ret_stacks(memory, nr_vcpus)
    for cpu in range(nr_vcpus):
        _map_cpu(memory, cpu, percpu)
    if "boot_params" in image.symbols:
        _write_boot_params(memory, image, nr_vcpus, hz, workload, iterations)
    machine = Machine(memory, nr_vcpus, engine, timer_vector=TIMER_VECTOR, hz=hz, nmi_rate=nmi_rate)
    for cpu in range(nr_vcpus):
        _set_up_vcpu(machine, image, cpu, percpu)
    kernel = GuestKernel(machine, image)
    machine.saved_ips.append(kernel.saved_ips)
    machine.engine.start_vcpu(0, None)
    if start is not None:
        prepare_start(machine, image, start)
    return kernel


def _load_segments(memory: GuestMemory, image: KernelImage) -> None:
    for segment in image.segments:
        memory.map(
            segment.name,
            segment.address,
            max(segment.size, PAGE_SIZE),
            writable=segment.writable,
            executable=segment.executable,
            purpose=f"{image.name}'s {segment.name}",
        )
        memory.write(segment.address, segment.data)


def _map_sites(memory: GuestMemory, image: KernelImage) -> None:
    """Keep room for ``ftrace_map``, which guest code looks into whenever a call site runs."""
    start, end = image.text_range
    if end - start > FTRACE_MAP_OFFSET:
        raise ImageError(
            f"{image.name} has {(end - start) >> 20} MiB of text; calls can be traced in "
            f"{FTRACE_MAP_OFFSET >> 20} MiB"
        )
    first = start // PAGE_SIZE * PAGE_SIZE
    memory.map(
        "ftrace map",
        first + FTRACE_MAP_OFFSET,
        end - first,
        writable=True,
        purpose="who wants which call site",
    )


def _map_ret_stacks(memory: GuestMemory, nr_vcpus: int) -> None:
    memory.map(
        "return addresses",
        RET_STACK_AREA,
        nr_vcpus * STACKS_PER_CPU * RET_STACK_BYTES,
        writable=True,
        purpose="shadow stacks: what return_to_handler stands for",
    )


def percpu_address(cpu: int, size: int) -> int:
    """Where a CPU's area is; ``size`` is that of each, in whole pages."""
    return _PERCPU_AREA + cpu * size


def _map_cpu(memory: GuestMemory, cpu: int, percpu: int) -> None:
    memory.map(
        f"percpu{cpu}",
        percpu_address(cpu, percpu),
        percpu,
        writable=True,
        purpose="per-CPU area, GS",
    )
    memory.map(
        f"descriptors{cpu}", _descriptors(cpu), PAGE_SIZE, writable=True, purpose="GDT and TSS"
    )
    memory.map(
        f"zone{cpu}", _ZONE_AREA + cpu * ZONE_SIZE, ZONE_SIZE, writable=True,
        purpose="pages of this CPU's allocator",
    )  # fmt: skip
    for slot in range(STACKS_PER_CPU):
        name = f"nmi stack {cpu}" if slot == NMI_STACK_SLOT else f"stack {cpu}/{slot}"
        memory.map(
            name, _stack_top(cpu, slot) - THREAD_SIZE, THREAD_SIZE, writable=True,
            purpose="the pages below are not mapped: the guard",
        )  # fmt: skip


def _descriptors(cpu: int) -> int:
    return _DESCRIPTORS + cpu * PAGE_SIZE


def _stack_top(cpu: int, slot: int) -> int:
    return STACK_AREA + (cpu * STACKS_PER_CPU + slot + 1) * STACK_SLOT


def _write_boot_params(
    memory: GuestMemory, image: KernelImage, nr_cpus: int, hz: int, workload: int, iterations: int
) -> None:
    params = memory.view(image.address("boot_params"), BOOT_PARAMS.dtype)[0]
    params["nr_cpus"], params["hz"] = nr_cpus, hz
    params["workload"], params["iteration_limit"] = workload, iterations


def enter_long_mode(vcpu: VCpu, root: int) -> None:
    """Turn paging on, with the page tables at physical ``root``, and load the flat segments."""
    vcpu[Reg.CR3] = root
    vcpu[Reg.CR4] = _CR4
    vcpu.write_msr(_MSR_EFER, _EFER)
    vcpu[Reg.CR0] = _CR0
    vcpu[Reg.CS] = KERNEL_CS
    for segment in (Reg.SS, Reg.DS, Reg.ES):
        vcpu[segment] = KERNEL_DS


def _set_up_vcpu(machine: Machine, image: KernelImage, cpu: int, percpu: int) -> None:
    memory, vcpu = machine.memory, machine.vcpus[cpu]
    tables, area = _descriptors(cpu), percpu_address(cpu, percpu)
    tss = tables + GDT_SIZE
    memory.write(tables, build_gdt(tss))
    top = _stack_top(cpu, 0)
    memory.write(tss, build_tss(top, _stack_top(cpu, NMI_STACK_SLOT)))
    assert GDT_SIZE + TSS_SIZE <= PAGE_SIZE
    enter_long_mode(vcpu, memory.root)
    vcpu.load_tables((tables, GDT_SIZE - 1), (TSS_SELECTOR, tss, TSS_LIMIT))
    vcpu[Reg.GS_BASE] = area
    vcpu[Reg.RSP] = top - 8  # as behind a call: the ABI's alignment
    vcpu[Reg.RDI] = cpu
    vcpu.rip = image.entry if cpu == 0 else image.secondary_entry or image.entry
    if machine.nmi_rate:
        vcpu.watch_irets(image.scan.irets)
    _write_pcpu(memory, area, cpu)
    machine.words[cpu] = CpuWords(
        requests=memory.view(area + PCPU.offset("requests"), "<u8")
        if image.scan.safepoints and image.elf is None
        else None,
        clock_ns=memory.view(area + PCPU.offset("clock_ns"), "<u8"),
        pvclock=memory.view(area + PCPU.offset("pvclock"), PVCLOCK.dtype),
        preempt_count=memory.view(area + PCPU.offset("preempt_count"), "<u8"),
    )


def _write_pcpu(memory: GuestMemory, area: int, cpu: int) -> None:
    pcpu = memory.view(area, PCPU.dtype)[0]
    pcpu["self"], pcpu["cpu"], pcpu["irqs_off"] = area, cpu, 1
    # Who boots becomes the idle task: it has that task's pid from the first instruction on, or what
    # it is in the middle of then would belong to two tasks.
    pcpu["pid"] = cpu * STACKS_PER_CPU + 1
    pcpu["zone_start"] = _ZONE_AREA + cpu * ZONE_SIZE
    pcpu["zone_end"] = _ZONE_AREA + (cpu + 1) * ZONE_SIZE

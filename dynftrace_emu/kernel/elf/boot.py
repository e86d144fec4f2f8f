"""Prepares a machine for an ELF image: its stacks, its free RAM, what the runtime is to call."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dynftrace_emu.errors import ImageError
from dynftrace_emu.kernel.structs import IMAGE_START, PAGE_SIZE
from dynftrace_emu.machine.vcpu import Reg

if TYPE_CHECKING:
    from dynftrace_emu.kernel.elf.start import Start
    from dynftrace_emu.kernel.image import KernelImage
    from dynftrace_emu.machine.machine import Machine
    from dynftrace_emu.machine.vcpu import VCpu

__all__ = ["prepare_start"]

_STACKS = 0xFFFF_CA00_0000_0000
_ARGUMENTS = 0xFFFF_CB00_0000_0000


def prepare_start(machine: Machine, image: KernelImage, start: Start) -> None:
    """Map what the image gets, and tell the runtime how to start it.

    :raises ImageError: there is no room for the RAM.
    """
    machine.dead_hlt_is_end = True
    _keep_gs(machine, image)
    _map_ram(machine, image, start.ram)
    params = machine.memory.view(image.address("image_start"), IMAGE_START.dtype)[0]
    params["entry"] = start.entry
    params["secondary"] = start.secondary or 0
    params["init"], params["init_end"] = start.init_array[0], sum(start.init_array)
    params["arguments"][: len(start.arguments)] = _arguments(machine, start.arguments)
    _describe_memory(machine, image, start)
    params["nr_cpus"] = 1 if start.secondary is None else len(machine.vcpus)
    for cpu, vcpu in enumerate(machine.vcpus):
        vcpu[Reg.RSP] = _map_stack(machine, cpu, start.stack) - 8  # as behind a call


def _keep_gs(machine: Machine, image: KernelImage) -> None:
    """Loading GS, as start-up code does after its GDT, changes nothing: the tracers live there."""
    for vcpu in machine.vcpus:
        area = vcpu[Reg.GS_BASE]
        for address in image.scan.gs_loads:
            vcpu.hook_instruction(address, partial(_set_gs, area))


def _set_gs(area: int, vcpu: VCpu) -> None:
    vcpu[Reg.GS_BASE] = area


def _map_ram(machine: Machine, image: KernelImage, size: int) -> None:
    """Free memory behind the last page of the image: where ``_end`` points."""
    if not size:
        return
    begin = _image_end(image)
    try:
        if begin + size > 1 << 64:
            raise ImageError("that is beyond the end of the address space")
        machine.memory.map("ram", begin, size, writable=True, purpose="free for the image, --ram")
    except ImageError as error:
        raise ImageError(f"--ram {size}: no room behind the image at {begin:#x}: {error}") from None


def _map_stack(machine: Machine, cpu: int, size: int) -> int:
    """Map a stack with a guard below it; returns its top."""
    size = -(-size // PAGE_SIZE) * PAGE_SIZE
    top = _STACKS + (cpu + 1) * _stack_slot(size)
    machine.memory.map(f"stack {cpu}", top - size, size, writable=True, purpose="--stack")
    return top


def _stack_slot(size: int) -> int:
    """What a stack and its guard take: a power of two, so that an address tells the stack."""
    return 1 << (size + PAGE_SIZE - 1).bit_length()


def _describe_memory(machine: Machine, image: KernelImage, start: Start) -> None:
    """Tell the runtime where a stack may be: what it follows frame pointers into."""
    end = begin = _image_end(image)
    region = machine.memory.find(end - 1)
    while region is not None:
        begin = region.address
        region = machine.memory.find(begin - 1)
    slot = _stack_slot(start.stack)
    for name, value in (
        ("image_memory", begin),
        ("image_memory_size", end + start.ram - begin),
        ("image_stacks", _STACKS),
        ("image_stacks_size", len(machine.vcpus) * slot),
        ("image_stack_mask", slot - 1),
    ):
        machine.memory.write_u64(image.address(name), value)


def _image_end(image: KernelImage) -> int:
    return max(s.address + s.size for s in image.segments if s.name.startswith("image "))


def _arguments(machine: Machine, arguments: tuple[int | bytes, ...]) -> list[int]:
    """Numbers as they are; of texts, where they have been put."""
    texts = b"".join(argument for argument in arguments if isinstance(argument, bytes))
    if texts:
        region = machine.memory.map("arguments", _ARGUMENTS, len(texts), writable=True)
        machine.memory.write(region.address, texts)
    values, at = [], _ARGUMENTS
    for argument in arguments:
        if isinstance(argument, bytes):
            values.append(at)
            at += len(argument)
        else:
            values.append(argument % (1 << 64))
    return values

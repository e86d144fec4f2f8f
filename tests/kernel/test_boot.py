"""What the loader leaves behind, read off registers and raw memory."""

import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from dynftrace_emu.errors import ImageError, OptionError
from dynftrace_emu.kernel.boot import boot
from dynftrace_emu.kernel.mini_kernel import workloads
from dynftrace_emu.kernel.structs import BOOT_PARAMS, PVCLOCK
from dynftrace_emu.machine.engine import RunEnd
from dynftrace_emu.machine.vcpu import Reg
from tests.machine.guests import boot_guest, deterministic, image_of, words

# Each CPU says who it is: its number in RDI and in its area, its GS, its stack.
WHO_AM_I = """
ENTRY startup_64
        call report
        mov ebx, 1
1:      cmp rbx, [rip + boot_params + BOOT_PARAMS_NR_CPUS]
        jae 2f
        mov eax, ebx
        mov edx, PORT_CPU_START
        out dx, eax
        inc ebx
        jmp 1b
2:      OFFLINE
END startup_64
ENTRY secondary_startup_64
        call report
        OFFLINE
END secondary_startup_64
ENTRY report
        lea rcx, [rip + reports]
        mov rax, rdi
        shl rax, 5
        add rcx, rax
        mov [rcx], rdi
        mov rax, gs:[PCPU_CPU]
        mov [rcx + 8], rax
        mov rax, gs:[PCPU_SELF]
        mov [rcx + 16], rax
        mov [rcx + 24], rsp
        mov [rax + PCPU_CHECKSUM], rdi
        ret
END report
.data
boot_params:
        .skip BOOT_PARAMS_SIZE
reports:
        .skip 64 * 32
"""


@pytest.mark.parametrize("vcpus", [1, 64])
def test_each_cpu_has_a_number_an_area_and_a_stack_of_its_own(vcpus):
    kernel = boot_guest(WHO_AM_I, vcpus=vcpus)
    memory = kernel.machine.memory
    assert kernel.machine.run(None) is RunEnd.OFFLINE
    raw = words(kernel, "reports", 4 * vcpus)
    numbers, in_area, areas, stacks = (raw[n::4] for n in range(4))
    assert numbers == in_area == kernel.percpu("checksum") == list(range(vcpus))
    assert len(set(areas)) == len(set(stacks)) == vcpus
    for cpu in range(vcpus):
        assert kernel.machine.vcpus[cpu][Reg.GS_BASE] == areas[cpu]
        assert memory.find(areas[cpu]) is memory.region(f"percpu{cpu}")
        assert memory.find(stacks[cpu]) is memory.region(f"stack {cpu}/0")
        assert (stacks[cpu] + 8) % 16 == 8  # as the ABI wants it behind a call


def test_the_loader_says_what_the_kernel_must_know():
    image = image_of(WHO_AM_I)
    kernel = boot(image, 3, deterministic(), hz=250, workload=0x1234, iterations=17)
    params = kernel.machine.memory.read(image.address("boot_params"), BOOT_PARAMS.size)
    assert struct.unpack("<4Q", params) == (3, 250, 0x1234, 17)


def test_the_cpu_is_in_long_mode_with_paging_write_protection_and_interrupts_off():
    kernel = boot_guest(WHO_AM_I)
    vcpu = kernel.machine.vcpus[0]
    pg, wp, pe, pae = 1 << 31, 1 << 16, 1, 1 << 5
    assert vcpu[Reg.CR0] & (pg | wp | pe) == pg | wp | pe
    assert vcpu[Reg.CR4] & pae
    assert vcpu[Reg.CR3] == kernel.machine.memory.root
    assert (vcpu[Reg.CS], vcpu[Reg.SS], vcpu[Reg.DS]) == (0x10, 0x18, 0x18)
    assert not vcpu.interrupts_on
    assert vcpu.rip == kernel.image.entry


@pytest.mark.parametrize("cpu", [0, 2])
def test_the_descriptor_tables_are_those_of_the_manual(cpu):
    """GDT and TSS decoded field by field (SDM vol. 3A, 3.4.5, 8.7)."""
    kernel = boot_guest(WHO_AM_I, vcpus=3)
    memory, vcpu = kernel.machine.memory, kernel.machine.vcpus[cpu]
    gdt = memory.region(f"descriptors{cpu}").address
    code, data = (memory.read_u64(gdt + selector) for selector in (0x10, 0x18))
    present, is_long, system = 1 << 47, 1 << 53, 1 << 44
    assert code & (present | is_long | system) == present | is_long | system
    assert code >> 40 & 0xA == 0xA  # executable, readable
    assert data & (present | system) == present | system
    assert data >> 40 & 0xA == 0x2  # writable, not executable
    assert (code | data) >> 45 & 3 == 0  # DPL 0
    low, high = memory.read_u64(gdt + 0x40), memory.read_u64(gdt + 0x48)
    base = low >> 16 & 0xFF_FFFF | (low >> 56) << 24 | high << 32
    assert base == vcpu.tss
    assert low >> 40 & 0x8F in (0x89, 0x8B)  # a 64-bit TSS
    raw = memory.read(base, 104)
    rsp0, ist1 = struct.unpack_from("<Q", raw, 4)[0], struct.unpack_from("<Q", raw, 36)[0]
    assert rsp0 == memory.region(f"stack {cpu}/0").end
    assert ist1 == memory.region(f"nmi stack {cpu}").end


def test_each_cpu_has_free_memory_of_its_own():
    kernel = boot_guest(WHO_AM_I, vcpus=3)
    zones = list(zip(kernel.percpu("zone_start"), kernel.percpu("zone_end"), strict=True))
    for cpu, (start, end) in enumerate(zones):
        region = kernel.machine.memory.region(f"zone{cpu}")
        assert (region.address, region.end, region.writable) == (start, end, True)


def test_who_boots_has_the_pid_that_the_idle_task_will_have(dynamic):
    """From the first instruction on, so that what is traced then belongs to that task."""
    kernel = boot(dynamic, 3, deterministic(), workload=workloads(dynamic)["default"])
    assert kernel.percpu("current") == [0, 0, 0]
    assert [list(kernel.tasks(cpu)) for cpu in range(3)] == [[]] * 3
    pids = kernel.percpu("pid")
    assert len(set(pids)) == 3
    assert min(pids) > 0
    kernel.machine.run(0.3)
    for cpu, pid in enumerate(pids):
        assert [task.pid for task in kernel.tasks(cpu) if task.comm == "swapper"] == [pid]
        running = [task.pid for task in kernel.tasks(cpu) if task.on_cpu]
        assert [kernel.percpu("pid")[cpu]] == running


def test_there_is_ram_to_spare_and_the_host_has_not_committed_it():
    """Half a GiB, and 64 MiB for each vCPU; RSS is what has been touched."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    kernels = [boot_guest(WHO_AM_I, vcpus=vcpus) for vcpus in (1, 4)]
    for kernel, vcpus in zip(kernels, (1, 4), strict=True):
        size = kernel.machine.memory.size
        assert size >= (512 << 20) + vcpus * (64 << 20)
        spare = kernel.machine.memory.alloc_pages((512 << 20) // 4096, "spare")
        assert spare.size == 512 << 20
    assert resident() - before < 256 << 20


def test_words_of_the_machine_are_those_of_the_per_cpu_area():
    kernel = boot_guest(WHO_AM_I.replace("ret\n", "SAFEPOINT\n        ret\n"), vcpus=2)
    for cpu, cpu_words in enumerate(kernel.machine.words):
        for field in ("requests", "clock_ns", "preempt_count"):
            getattr(cpu_words, field)[0] = 100 + cpu
            assert kernel.percpu(field)[cpu] == 100 + cpu
        values = tuple(cpu + n for n in range(len(PVCLOCK.fields)))
        cpu_words.pvclock[0] = values
        assert kernel.pcpu(cpu)["pvclock"][0].item() == values
    assert boot_guest(WHO_AM_I).machine.words[0].requests is None  # it polls none


def test_an_image_larger_than_its_own_segments_still_fits():
    """1 MiB of data, 40 MiB of tables: RAM is made to measure."""
    kernel = boot_guest(
        WHO_AM_I + "\n.section .bss\nlarge:\n.skip 0x100000\nlast: .quad 0\n"
    )  # fmt: skip
    kernel.write("last", 5)
    assert kernel.machine.run(None) is RunEnd.OFFLINE
    assert kernel.read("last") == 5


def test_an_image_that_overlaps_itself_is_refused():
    image = image_of(WHO_AM_I)
    text = image.segments[0]
    object.__setattr__(image, "segments", (*image.segments, text))
    with pytest.raises(ImageError, match="overlaps"):
        boot(image, 1, deterministic())


@pytest.mark.parametrize("vcpus", [0, 65])
def test_a_number_of_vcpus_that_is_not_possible_is_refused(dynamic, vcpus):
    with pytest.raises(OptionError, match="1 to 64"):
        boot(dynamic, vcpus, deterministic(), workload=workloads(dynamic)["default"])


@pytest.mark.parametrize("limit_gib", [4, 6])
def test_a_host_without_the_address_space_is_told_in_one_line(limit_gib):
    """Under ulimit -v 2 vCPUs fit, 64 are refused before any is made, or already their RAM is."""
    code = """
import gc
from dynftrace_emu.errors import AddressSpaceError
from tests.kernel.test_boot import WHO_AM_I
from tests.machine.guests import boot_guest
print(boot_guest(WHO_AM_I, vcpus=2).machine.run(None).value)
gc.collect()  # the first machine's address space is given back
try:
    boot_guest(WHO_AM_I, vcpus=64)
except AddressSpaceError as error:
    print(error.exit_code, error)
"""
    limit = limit_gib << 30
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        check=False,
    )
    first, *lines = done.stdout.splitlines()
    assert first == "offline", done.stderr
    assert len(lines) == 1, done.stderr
    needed = re.match(r"2 (.+?) needs? (\d+) ([GM])iB of address space", lines[0])
    who, gib = needed[1], int(needed[2]) / (1 if needed[3] == "G" else 1024)
    ram = 0.5 + 64 / 16
    if limit_gib > ram + 1:
        assert who == "64 vCPUs"
        assert 16 + ram - 1 < gib < 16 + ram + 1
    else:
        assert who == "the guest's RAM"
        assert ram < gib < ram + 1
    assert "ulimit -v" in lines[0]
    assert not done.stderr

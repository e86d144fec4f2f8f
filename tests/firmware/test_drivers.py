"""Every driver through the system calls, against what its device does."""

from __future__ import annotations

import random
import struct
from errno import EAGAIN, EBUSY, EINVAL, EMSGSIZE, ENOMEM, ENOSPC, ENOTTY, ENXIO, ESPIPE

import pytest

from tests.firmware.kernel_services import DRIVERS, FS, O_RDWR, U64, Kernel, xorshift

POLLIN, POLLOUT = 1, 4
RESET, USERS, ERRORS = 0x4400, 0x4401, 0x4402
NODES = {
    "null": "null", "zero": "zero", "full": "full", "random": "random", "ttyS0": "serial8250",
    "kbd": "i8042", "psaux": "psmouse", "eth0": "e1000", "ram0": "brd", "loop0": "loop",
    "sda": "ahci", "rtc": "rtc", "hpet": "hpet",
}  # fmt: skip
FIFOS = {"ttyS0": 64, "kbd": 32, "psaux": 32}
DISKS, DISK_BYTES = ("ram0", "loop0", "sda"), 256
LOOP_KEY = struct.pack("<Q", 0x5A13B7C94EE2680F)
FIELDS = ["power", "users", "opens", "tx", "rx", "ring", "saved", "errors"]


class Machine(Kernel):
    """With drivers, and shorter names."""

    def __init__(self, *, traced: bool = False, boot: bool = True) -> None:
        super().__init__(FS + DRIVERS, traced=traced, boot=boot)

    def open(self, node: str) -> int:
        return self.syscall("sys_open", f"/dev/{node}".encode(), O_RDWR, 0)

    def write_to(self, fd: int, data: bytes) -> int:
        return self.syscall("sys_write", fd, self.buffer(data or b"\0"), len(data))

    def read_from(self, fd: int, count: int) -> int | bytes:
        at = self.buffer(b"\xee" * (count + 8))
        result = self.syscall("sys_read", fd, at, count)
        assert self.read(at + max(result, 0), 8) == b"\xee" * 8
        return result if result < 0 else (self.read(at, result) if result else b"")

    def seek(self, fd: int, position: int) -> int:
        return self.syscall("sys_lseek", fd, position, 0)

    def poll(self, fd: int) -> int:
        return self.syscall("sys_poll", fd, POLLIN | POLLOUT)

    def ioctl(self, fd: int, command: int) -> int:
        return self.syscall("sys_ioctl", fd, command, 0)

    def close(self, fd: int) -> int:
        return self.syscall("sys_close", fd)

    def state(self, node: str, name: str) -> int:
        return self.read_u64(self.address(f"{NODES[node]}_state") + 8 * FIELDS.index(name))


@pytest.fixture(params=[False, True], ids=["untraced", "traced"])
def machine(request) -> Machine:
    return Machine(traced=request.param)


@pytest.mark.parametrize("node", NODES)
def test_what_all_have(machine, node):
    machine.call("current_files")
    before, opens = dict(machine.live), machine.state(node, "opens")
    one, other = machine.open(node), machine.open(node)
    assert (one, other) == (0, 1)
    assert machine.ioctl(one, USERS) == machine.state(node, "users") == 2
    assert machine.ioctl(one, 0x1234) == -ENOTTY
    assert machine.ioctl(one, ERRORS) == machine.state(node, "errors") == 1
    assert machine.ioctl(one, RESET) == 0
    assert machine.close(one) == machine.close(other) == 0
    assert machine.state(node, "users") == 0
    assert machine.state(node, "opens") == opens + 2
    assert machine.live == before


@pytest.mark.parametrize("node", NODES)
def test_users_do_not_see_each_other(machine, node):
    """What one wrote, the other cannot read: neither content, nor poll, nor position."""
    one, other = machine.open(node), machine.open(node)
    fresh = machine.poll(other)
    machine.write_to(one, bytes(range(1, 25)))
    assert machine.poll(other) == fresh
    quiet = machine.read_from(other, 24)
    alone = Machine()
    assert quiet == alone.read_from(alone.open(node), 24)


@pytest.mark.parametrize("node", NODES)
def test_no_memory_for_a_user(machine, node):
    machine.call("current_files")
    before, take = dict(machine.live), machine.kmalloc
    machine.kmalloc = lambda *_: 0
    assert machine.open(node) == -ENOMEM
    machine.kmalloc = take
    assert machine.live == before
    assert machine.state(node, "users") == 0
    assert machine.open(node) == 0


@pytest.mark.parametrize("node", NODES)
def test_suspend_and_resume(machine, node):
    fd, driver = machine.open(node), machine.address(f"{NODES[node]}_driver")
    for _ in range(20):
        machine.write_to(fd, b"12345678")
    ring = machine.state(node, "ring")
    assert machine.syscall("device_resume", driver) == -EINVAL
    assert machine.syscall("device_suspend", driver) == 0
    assert machine.state(node, "power") == 1
    assert machine.state(node, "ring") == 0, "lost without power"
    assert machine.syscall("device_suspend", driver) == -EBUSY
    assert machine.open(node) == -EBUSY
    assert machine.state(node, "users") == 1
    assert machine.syscall("device_resume", driver) == 0
    assert machine.state(node, "power") == 0
    assert machine.state(node, "ring") == ring
    assert machine.open(node) == 1


def test_power_management_takes_turns(machine):
    assert machine.read_u64(machine.address("nr_drivers")) == len(NODES)
    drivers = machine.address("drivers")
    registered = [machine.read_u64(drivers + 8 * n) for n in range(len(NODES))]
    order = [machine.call("dpm_next_device") for _ in range(2 * len(NODES) + 3)]
    assert order == registered * 2 + registered[:3]
    for _ in range(len(NODES)):
        machine.call("dpm_cycle")
        assert not any(machine.state(node, "power") for node in NODES)
    # One that is suspended already stays so.
    machine.call("device_suspend", registered[3])
    machine.write_u64(machine.address("dpm_cursor"), 3)
    machine.call("dpm_cycle")
    assert machine.syscall("device_resume", registered[3]) == 0


def test_no_drivers_no_turn():
    machine = Machine(boot=False)
    machine.call("dpm_cycle")
    assert machine.call("dpm_next_device") == 0


def test_names_and_numbers_are_taken_once(machine):
    for node, name in NODES.items():
        driver = machine.address(f"{name}_driver")
        assert machine.call("driver_find", machine.buffer(node.encode() + b"\0")) == driver
        assert machine.syscall("driver_register", driver) == -EBUSY
    assert machine.call("driver_find", machine.buffer(b"nothing\0")) == 0
    for node in ("ttyS0", "rtc", "ram0", "kbd"):
        assert machine.syscall("device_add", machine.address(f"{NODES[node]}_driver")) == -EBUSY
    assert machine.syscall("register_chrdev", 16, 1) == -EINVAL
    assert machine.syscall("register_blkdev", 16, 1) == -EINVAL


def test_there_is_room_for_so_many_drivers(machine):
    names, template = machine.buffer(b""), machine.read(machine.address("null_driver"), 72)
    results = []
    for number in range(5):
        name = machine.write(names + 16 * number, b"more%d\0" % number)
        driver = machine.write(names + 0x100 + 0x80 * number, template)
        machine.write_u64(driver, name)
        results.append(machine.syscall("driver_register", driver))
    assert results == [0, 0, 0, -ENOSPC, -ENOSPC]
    assert machine.open("more2") == 0


@pytest.mark.parametrize(("major", "kind"), [(1, 0x2000), (10, 0x2000), (9, 0x2000), (9, 0x6000)])
def test_nodes_that_no_driver_answers(machine, major, kind):
    assert machine.syscall("sys_mknod", b"/dev/odd", kind | 0o600, major << 8 | 99) == 0
    assert machine.open("odd") == -ENXIO


def test_a_probe_that_fails(machine):
    driver = machine.write(machine.buffer(b""), machine.read(machine.address("rtc_driver"), 72))
    machine.write_u64(driver, machine.write(driver + 0x80, b"broken\0"))
    machine.write_u64(driver + 40, machine.address("no_llseek"))  # a probe that returns an error
    assert machine.syscall("driver_register", driver) == -ESPIPE
    assert machine.syscall("sys_open", b"/dev/broken", O_RDWR, 0) == -2


@pytest.mark.parametrize("node", FIFOS)
def test_byte_streams_loop_back(machine, node):
    fd, rng, waiting, capacity = machine.open(node), random.Random(node), bytearray(), FIFOS[node]
    errors = sent = received = 0
    assert machine.seek(fd, 0) == -ESPIPE
    for _ in range(80):
        ready = (POLLIN if waiting else 0) | (POLLOUT if len(waiting) < capacity else 0)
        assert machine.poll(fd) == ready
        data = rng.randbytes(rng.randrange(50))
        room = capacity - len(waiting)
        expected = min(len(data), room) or (-EAGAIN if data else 0)
        assert machine.write_to(fd, data) == expected
        errors, sent = errors + (expected < 0), sent + max(expected, 0)
        waiting += data[: max(expected, 0)]
        wanted = rng.randrange(50)
        expected = bytes(waiting[:wanted]) or (-EAGAIN if wanted else b"")
        assert machine.read_from(fd, wanted) == expected
        if isinstance(expected, bytes):
            del waiting[: len(expected)]
            received += len(expected)
        else:
            errors += 1
    counters = [machine.state(node, name) for name in ("tx", "rx", "errors")]
    assert counters == [sent, received, errors]
    shift = {"ttyS0": 4, "kbd": 0, "psaux": 2}[node]
    assert machine.state(node, "ring") == sent >> shift
    machine.write_to(fd, b"x")
    assert machine.ioctl(fd, RESET) == 0
    assert machine.read_from(fd, 9) == -EAGAIN


def test_e1000_keeps_frames_apart(machine):
    fd, rng, ring = machine.open("eth0"), random.Random(3), []
    assert machine.write_to(fd, bytes(57)) == -EMSGSIZE
    assert machine.seek(fd, 0) == -ESPIPE
    for _ in range(120):
        assert machine.poll(fd) == (POLLIN if ring else 0) | (POLLOUT if len(ring) < 4 else 0)
        if rng.random() < 0.5:
            frame = rng.randbytes(rng.randrange(57))
            assert machine.write_to(fd, frame) == (len(frame) if len(ring) < 4 else -EAGAIN)
            if len(ring) < 4:
                ring.append(frame)
        else:
            wanted = rng.choice([0, 20, 60])
            assert machine.read_from(fd, wanted) == (ring.pop(0)[:wanted] if ring else -EAGAIN)


def test_operations_called_directly(machine):
    """They may not rely on what their caller left in registers."""
    ring, at = machine.buffer(bytes(272)), machine.buffer(bytes(272)) + 0x1000
    machine.write(at, b"frame" + bytes(20))
    assert machine.call("e1000_xmit_frame", ring, at, 5) == 5
    assert machine.call("e1000_clean_rx", ring, at + 10, 60) == 5
    assert machine.read(at + 10, 6) == b"frame\0"
    for node in ("null", "zero", "full", "ram0", "loop0", "sda"):
        fd = machine.open(node)
        assert machine.call(f"{NODES[node]}_poll", machine.call("fcheck", fd)) == POLLIN | POLLOUT


@pytest.mark.parametrize("node", DISKS)
def test_disks_keep_what_is_written(machine, node):
    fd, rng, disk = machine.open(node), random.Random(node), bytearray(DISK_BYTES)
    if node == "loop0":
        disk = bytearray(LOOP_KEY * 32)  # the plain text of an empty disk
    assert machine.poll(fd) == POLLIN | POLLOUT
    for _ in range(80):
        at = rng.randrange(DISK_BYTES + 20)
        assert machine.seek(fd, at) == at
        data = rng.randbytes(rng.randrange(100))
        expected = min(len(data), max(0, DISK_BYTES - at)) or (-ENOSPC if data else 0)
        assert machine.write_to(fd, data) == expected
        if expected > 0:
            disk[at : at + expected] = data[:expected]
        at = rng.randrange(DISK_BYTES + 20)
        assert machine.seek(fd, at) == at
        wanted = rng.randrange(100)
        assert machine.read_from(fd, wanted) == bytes(disk[at : at + wanted])
        assert machine.seek(fd, 0) == 0
    raw = machine.read(machine.read_u64(machine.call("fcheck", fd) + 48), DISK_BYTES)
    if node == "loop0":
        assert raw == bytes(a ^ b for a, b in zip(disk, LOOP_KEY * 32, strict=True)), "enciphered"
    else:
        assert raw == disk
    assert machine.read_u64(machine.address("ahci_cmd_table")) == 0, "command slots free"
    assert machine.ioctl(fd, RESET) == 0
    assert machine.read_from(fd, 8) == (LOOP_KEY if node == "loop0" else bytes(8))


def bcd_round_trip(value: int) -> int:
    return value % 100


def hpet_round_trip(value: int) -> int:
    ticks = (value & 0xFFFF_FFFF) * 14318 // 1000 & 0xFFFF_FFFF
    return ticks * 1000 // 14318


@pytest.mark.parametrize(("node", "model"), [("rtc", bcd_round_trip), ("hpet", hpet_round_trip)])
def test_registers(machine, node, model):
    fd, rng = machine.open(node), random.Random(node)
    bank = [0] * 8
    assert machine.poll(fd) == POLLOUT
    for _ in range(60):
        first, count = rng.randrange(9), rng.randrange(1, 5)
        special = [0, 9, 10, 59, 99, 100, rng.getrandbits(32), rng.getrandbits(64)]
        values = rng.choices(special, k=count)
        assert machine.seek(fd, first * 8) == first * 8
        fit = min(count, 8 - first)
        data = b"".join(struct.pack("<Q", value) for value in values) + bytes(rng.randrange(8))
        assert machine.write_to(fd, data) == (fit * 8 or -ENOSPC)
        bank[first : first + fit] = [model(value) for value in values[:fit]]
        assert machine.seek(fd, 0) == 0
        found = machine.read_from(fd, 64 + 5)
        assert list(struct.unpack("<8Q", found)) == bank
        assert machine.read_from(fd, 8) == b""
    assert machine.poll(fd) == POLLOUT | (POLLIN if any(bank) else 0)
    machine.seek(fd, 0)
    assert machine.write_to(fd, bytes(7)) == -EINVAL
    machine.seek(fd, 4)
    assert machine.write_to(fd, bytes(8)) == -EINVAL
    assert machine.read_from(fd, 8) == -EINVAL


def test_rtc_holds_bcd(machine):
    for value in range(250):
        digits = machine.call("bin2bcd", value)
        assert digits == int(str(value % 100), 16)
        assert machine.call("bcd2bin", digits) == value % 100


def test_null_zero_and_full(machine):
    null, zero, full = (machine.open(node) for node in ("null", "zero", "full"))
    for fd in (null, zero, full):
        assert machine.poll(fd) == POLLIN | POLLOUT
    assert machine.write_to(null, b"abc") == 3
    assert machine.read_from(null, 10) == b""
    assert machine.write_to(zero, b"abcd") == 4
    assert machine.write_to(full, b"abc") == -ENOSPC
    for fd in (zero, full):
        assert machine.read_from(fd, 70) == bytes(70)
        assert machine.read_from(fd, 0) == b""
    assert machine.state("null", "tx") == 3
    assert (machine.state("zero", "tx"), machine.state("zero", "rx")) == (4, 70)
    assert (machine.state("full", "rx"), machine.state("full", "errors")) == (70, 1)


def test_random_is_a_function_of_what_was_stirred_in(machine):
    fd, pool = machine.open("random"), 0
    rng, seen = random.Random(9), set()
    assert machine.poll(fd) == POLLOUT
    for _ in range(30):
        data = rng.randbytes(rng.randrange(20))
        assert machine.write_to(fd, data) == len(data)
        for octet in data:
            pool = (pool ^ octet) * 0x9E3779B97F4A7C15 & U64
            pool = (pool << 23 | pool >> 41) & U64
        expected, wanted = b"", rng.randrange(40)
        pool = pool or 1
        while len(expected) < wanted:
            pool, number = xorshift(pool)
            expected += struct.pack("<Q", number)
        found = machine.read_from(fd, wanted)
        assert found == expected[:wanted]
        seen.add(found)
    assert len(seen) > 20
    assert machine.poll(fd) == POLLIN | POLLOUT

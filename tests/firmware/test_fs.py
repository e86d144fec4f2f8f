"""The file system against a model in Python: a tree of dicts and bytearrays."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from errno import (
    EBADF,
    EEXIST,
    EFBIG,
    EINVAL,
    EISDIR,
    EMFILE,
    ENAMETOOLONG,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTDIR,
    ENOTEMPTY,
    ENOTTY,
    ENXIO,
    ESPIPE,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.firmware.guest import HEAP, TASK_AT
from tests.firmware.kernel_services import (
    FS,
    O_APPEND,
    O_CREAT,
    O_EXCL,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    Kernel,
)
from tests.firmware.tasks import SCHEDULE, Tasks

MAX_BYTES, NR_OPEN = 8 * 4096, 16
SEEK_SET, SEEK_CUR, SEEK_END = 0, 1, 2
S_IFCHR = 0x2000


@dataclass
class OpenFile:
    node: bytearray | dict
    flags: int
    position: int = 0


@dataclass
class Model:
    """What a POSIX file system of regular files and directories does."""

    root: dict = field(default_factory=lambda: {"dev": {}})
    files: dict[int, OpenFile] = field(default_factory=dict)

    def parent(self, path: str):
        *directories, last = [part for part in path.split("/") if part]
        node = self.root
        for name in directories:
            if not isinstance(node, dict):
                return -ENOTDIR
            if name not in node:
                return -ENOENT
            node = node[name]
        return (node, last) if isinstance(node, dict) else -ENOTDIR

    def open(self, path: str, flags: int) -> int:
        if len(self.files) == NR_OPEN:
            return -EMFILE
        found = self.parent(path)
        if isinstance(found, int):
            return found
        directory, name = found
        if name not in directory:
            if not flags & O_CREAT:
                return -ENOENT
            directory[name] = bytearray()
        elif flags & O_CREAT and flags & O_EXCL:
            return -EEXIST
        node = directory[name]
        if isinstance(node, dict) and flags & (3 | O_CREAT | O_TRUNC):
            return -EISDIR
        if flags & O_TRUNC and flags & 3:
            node.clear()
        fd = min(set(range(NR_OPEN)) - set(self.files))
        self.files[fd] = OpenFile(node, flags)
        return fd

    def close(self, fd: int) -> int:
        return 0 if self.files.pop(fd, None) else -EBADF

    def write(self, fd: int, data: bytes) -> int:
        file = self.files.get(fd)
        if file is None or file.flags & 3 == O_RDONLY:
            return -EBADF
        if file.flags & O_APPEND:
            file.position = len(file.node)
        if not data:
            return 0
        data = data[: MAX_BYTES - file.position]
        if not data:
            return -EFBIG
        if file.position > len(file.node):
            file.node.extend(bytes(file.position - len(file.node)))
        file.node[file.position : file.position + len(data)] = data
        file.position += len(data)
        return len(data)

    def read(self, fd: int, count: int) -> int | bytes:
        file = self.files.get(fd)
        if file is None or file.flags & 3 == O_WRONLY:
            return -EBADF
        if isinstance(file.node, dict):
            return -EINVAL
        data = bytes(file.node[file.position : file.position + count])
        file.position += len(data)
        return data

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        file = self.files.get(fd)
        if file is None:
            return -EBADF
        if isinstance(file.node, dict):
            return -ESPIPE
        base = {SEEK_SET: 0, SEEK_CUR: file.position, SEEK_END: len(file.node)}.get(whence)
        if base is None or not 0 <= base + offset <= MAX_BYTES:
            return -EINVAL
        file.position = base + offset
        return file.position

    def mkdir(self, path: str) -> int:
        found = self.parent(path)
        if isinstance(found, int):
            return found
        directory, name = found
        if name in directory:
            return -EEXIST
        directory[name] = {}
        return 0

    def unlink(self, path: str, want_directory: bool = False) -> int:
        found = self.parent(path)
        if isinstance(found, int):
            return found
        directory, name = found
        if name not in directory:
            return -ENOENT
        is_directory = isinstance(directory[name], dict)
        if want_directory != is_directory:
            return -ENOTDIR if want_directory else -EISDIR
        if is_directory and directory[name]:
            return -ENOTEMPTY
        del directory[name]
        return 0


class FileSystem:
    """The firmware's, called as the model is."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def open(self, path: str, flags: int) -> int:
        return self.kernel.syscall("sys_open", path.encode(), flags, 0o644)

    def close(self, fd: int) -> int:
        return self.kernel.syscall("sys_close", fd)

    def write(self, fd: int, data: bytes) -> int:
        return self.kernel.syscall("sys_write", fd, self.kernel.buffer(data or b"\0"), len(data))

    def read(self, fd: int, count: int) -> int | bytes:
        at = self.kernel.buffer(b"\xee" * (count + 16))
        result = self.kernel.syscall("sys_read", fd, at, count)
        if result < 0:
            return result
        assert self.kernel.read(at + result, 16) == b"\xee" * 16, "wrote behind what it returned"
        return self.kernel.read(at, result) if result else b""

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        return self.kernel.syscall("sys_lseek", fd, offset, whence)

    def mkdir(self, path: str) -> int:
        return self.kernel.syscall("sys_mkdir", path.encode(), 0o755)

    def unlink(self, path: str, want_directory: bool = False) -> int:
        return self.kernel.syscall("sys_rmdir" if want_directory else "sys_unlink", path.encode())


@pytest.fixture(params=[False, True], ids=["untraced", "traced"])
def kernel(request) -> Kernel:
    return Kernel(traced=request.param)


@pytest.fixture
def fs(kernel) -> FileSystem:
    return FileSystem(kernel)


NAMES = ["a", "b", "long" * 7 + "nam", "dev", ".x", "..y"]
FLAGS = [
    O_RDONLY, O_RDWR, O_WRONLY, O_RDWR | O_CREAT, O_RDWR | O_CREAT, O_RDWR | O_CREAT | O_EXCL,
    O_WRONLY | O_CREAT | O_TRUNC, O_RDWR | O_TRUNC, O_RDWR | O_CREAT | O_APPEND, O_CREAT,
]  # fmt: skip
OFFSETS = [0, 1, 4090, 4096, 8192, 30000, MAX_BYTES, MAX_BYTES + 1, -1, -100, 1 << 62]


def random_step(rng: random.Random):
    """One operation: the name of the method, and its arguments."""
    path = "".join(
        "/" * rng.choice([1, 1, 1, 2]) + rng.choice(NAMES) for _ in range(rng.choice([1, 1, 2, 3]))
    )
    fd = rng.choice([0, 1, 2, 3, 5, 15, 16, -1, 1 << 40] if rng.random() < 0.2 else [0, 1, 2])
    size = rng.choice([0, 1, 7, 100, 4095, 4096, 4097, 9000])
    operations = {
        "open": lambda: (path, rng.choice(FLAGS)),
        "close": lambda: (fd,),
        "write": lambda: (fd, rng.randbytes(size)),
        "read": lambda: (fd, size),
        "lseek": lambda: (fd, rng.choice(OFFSETS), rng.choice([0, 0, 1, 2, 3])),
        "mkdir": lambda: (path,),
        "unlink": lambda: (path, rng.random() < 0.5),
    }
    weights = {"open": 4, "close": 2, "write": 5, "read": 5, "lseek": 4, "mkdir": 2, "unlink": 3}
    name = rng.choices(list(weights), list(weights.values()))[0]
    return name, operations[name]()


DIRECTORY = Counter([88, 168])  # its dentry and its inode


def sizes(kernel: Kernel) -> Counter[int]:
    """What is allocated, by size."""
    return Counter(size for _, size in kernel.live.values())


def empty(fs, model: Model, directory: dict, prefix: str) -> None:
    for name, node in list(directory.items()):
        path = f"{prefix}/{name}"
        if isinstance(node, dict):
            empty(fs, model, node, path)
        for system in (fs, model):
            assert system.unlink(path, isinstance(node, dict)) == 0


@pytest.mark.parametrize("seed", range(6))
def test_does_what_the_model_does(fs, kernel, seed):
    rng, model = random.Random(seed), Model()
    at_boot = sizes(kernel)
    for number in range(400):
        name, arguments = random_step(rng)
        expected = getattr(model, name)(*arguments)
        found = getattr(fs, name)(*arguments)
        assert found == expected, f"step {number}: {name}{arguments}"
    # Nothing leaks: with all closed and unlinked, only the descriptor table is new.
    for fd in list(model.files):
        assert fs.close(fd) == 0
    empty(fs, model, model.root, "")
    assert sizes(kernel) == at_boot - DIRECTORY + Counter([136]), "/dev went too"


@pytest.mark.parametrize("seed", range(3))
def test_content_survives_where_files_share_nothing(fs, seed):
    """Many files, each written in random pieces; holes read as zeroes."""
    rng = random.Random(seed)
    contents = {}
    for number in range(12):
        fd = fs.open(f"/f{number}", O_RDWR | O_CREAT)
        content = bytearray()
        for _ in range(6):
            at, data = rng.randrange(20_000), rng.randbytes(rng.randrange(1, 5000))
            assert fs.lseek(fd, at, SEEK_SET) == at
            assert fs.write(fd, data) == len(data)
            content.extend(bytes(max(0, at + len(data) - len(content))))
            content[at : at + len(data)] = data
        assert fs.close(fd) == 0
        contents[f"/f{number}"] = bytes(content)
    for path, content in contents.items():
        fd = fs.open(path, O_RDONLY)
        assert fs.read(fd, 40_000) == content
        assert fs.read(fd, 10) == b""
        assert fs.close(fd) == 0


def test_paths(fs):
    assert fs.open("", O_RDONLY) == -ENOENT
    assert fs.mkdir("/d") == 0
    assert fs.mkdir("/d/e") == 0
    assert fs.mkdir("/d/") == -EEXIST
    fd = fs.open("/d/../d/./e//../f", O_RDWR | O_CREAT)
    assert fs.write(fd, b"here") == 4
    assert fs.read(fs.open("/../../d/f", O_RDONLY), 9) == b"here"
    assert fs.open("/d/f/g", O_RDONLY) == -ENOTDIR
    assert fs.open("/d/f/g", O_RDWR | O_CREAT) == -ENOTDIR
    assert fs.mkdir("/d/f/g") == -ENOTDIR
    assert fs.open("/x/y", O_RDWR | O_CREAT) == -ENOENT
    assert fs.open("/" + "n" * 31, O_RDWR | O_CREAT) >= 0
    for call in (fs.mkdir, fs.unlink, lambda path: fs.open(path, O_RDWR | O_CREAT)):
        assert call("/" + "n" * 32) == -ENAMETOOLONG
    for dots in (".", "..", "/d/.", "/d/..", "/"):
        assert fs.mkdir(dots) == -EEXIST
        assert fs.open(dots, O_RDWR | O_CREAT) == -EISDIR
        assert fs.unlink(dots) == -EINVAL
        assert fs.unlink(dots, True) == -EINVAL
    assert fs.unlink("/d", True) == -ENOTEMPTY
    assert fs.unlink("/d", False) == -EISDIR
    assert fs.unlink("/d/f", True) == -ENOTDIR
    assert fs.unlink("/d/f") == 0
    assert fs.unlink("/d/e", True) == 0
    assert fs.unlink("/d", True) == 0


def test_an_unlinked_file_lives_until_it_is_closed(fs, kernel):
    before = len(kernel.live)
    fd = fs.open("/gone", O_RDWR | O_CREAT)
    assert fs.write(fd, b"x" * 5000) == 5000
    assert fs.unlink("/gone") == 0
    assert fs.open("/gone", O_RDONLY) == -ENOENT
    assert fs.lseek(fd, 4990, SEEK_SET) == 4990
    assert fs.read(fd, 100) == b"x" * 10
    assert fs.close(fd) == 0
    assert len(kernel.live) == before + 1, "the descriptor table alone is new"


def test_descriptors_run_out(fs, kernel):
    assert [fs.open("/f", O_RDWR | O_CREAT) for _ in range(17)] == [*range(16), -EMFILE]
    assert fs.close(7) == 0
    assert fs.close(7) == -EBADF
    assert fs.open("/f", O_RDONLY) == 7
    assert fs.open("/nothing", O_RDONLY) == -EMFILE
    assert fs.close(3) == 0
    assert fs.open("/nothing", O_RDONLY) == -ENOENT, "the reserved descriptor is given back"
    assert fs.open("/f", O_RDONLY) == 3
    kernel.call("exit_files", TASK_AT)
    assert kernel.task_field("files") == 0
    assert kernel.read_u64(kernel.address("nr_files")) == 0
    kernel.call("exit_files", TASK_AT)
    assert fs.read(0, 1) == -EBADF


def test_memory_runs_out(fs, kernel):
    fd = fs.open("/f", O_RDWR | O_CREAT)
    kernel.pages_left = 2
    assert fs.write(fd, b"y" * 12_000) == 8192
    assert fs.write(fd, b"y") == -ENOSPC
    assert fs.lseek(fd, 0, SEEK_END) == 8192
    assert fs.lseek(fd, 0, SEEK_SET) == 0
    assert fs.read(fd, 20_000) == b"y" * 8192
    assert fs.open("/f", O_RDWR | O_TRUNC) == 1
    assert kernel.pages_left == 2
    # A hole that cannot be filled.
    assert fs.lseek(fd, 20_000, SEEK_SET) == 20_000
    assert fs.write(fd, b"z") == 1
    kernel.pages_left = 0
    assert fs.lseek(fd, 0, SEEK_SET) == 0
    assert fs.read(fd, 10) == -ENOSPC


@pytest.mark.parametrize("failing", range(4))
def test_objects_run_out(fs, kernel, failing):
    """The n-th allocation of an open() fails: nothing leaks, nothing is half made."""
    assert fs.close(fs.open("/first", O_RDWR | O_CREAT)) == 0
    before, take = dict(kernel.live), kernel.kmem_cache_alloc
    left = failing

    def limited(cache, *_):
        nonlocal left
        left -= 1
        return take(cache) if left >= 0 else 0

    kernel.kmem_cache_alloc = limited
    result = fs.open("/second", O_RDWR | O_CREAT)
    kernel.kmem_cache_alloc = take
    assert result == {0: -ENOMEM, 1: -ENOSPC, 2: -ENOMEM, 3: 0}[failing]
    if failing < 2:
        assert kernel.live == before
        assert fs.open("/second", O_RDONLY) == -ENOENT
    elif failing == 2:  # the file exists, only opening it failed
        assert fs.open("/second", O_RDONLY) == 0


def test_truncation_forgets(fs):
    """What was cut off does not come back when the file grows again."""
    fd = fs.open("/f", O_RDWR | O_CREAT)
    assert fs.write(fd, b"\xff" * 10_000) == 10_000
    kernel = fs.kernel
    dentry = kernel.read_u64(_file(kernel, fd) + 8)
    assert kernel.syscall("do_truncate", dentry, 5000) == 0
    assert kernel.syscall("do_truncate", dentry, 32_769) == -EFBIG
    assert kernel.syscall("do_truncate", dentry, 9000) == 0
    assert fs.lseek(fd, 0, SEEK_SET) == 0
    assert fs.read(fd, 20_000) == b"\xff" * 5000 + bytes(4000)


def _file(kernel: Kernel, fd: int) -> int:
    file = kernel.call("fcheck", fd)
    assert file
    return file


def test_creat_poll_and_ioctl(fs, kernel):
    fd = kernel.syscall("sys_creat", b"/c", 0o600)
    assert fs.write(fd, b"abc") == 3
    assert fs.read(fd, 3) == -EBADF
    assert kernel.syscall("sys_creat", b"/c", 0o600) == 1
    assert fs.lseek(0, 0, SEEK_END) == 0, "creat empties"
    assert kernel.syscall("sys_poll", 0, 5) == 5
    assert kernel.syscall("sys_poll", 0, 1) == 1
    assert kernel.syscall("sys_poll", 9, 5) == 32  # POLLNVAL
    assert kernel.syscall("sys_ioctl", 0, 0x4400, 0) == -ENOTTY
    assert kernel.syscall("sys_ioctl", 9, 0x4400, 0) == -EBADF
    assert kernel.syscall("sys_write", 0, HEAP, -1) == -EINVAL
    root = fs.open("/", O_RDONLY)
    assert kernel.syscall("sys_poll", root, 5) == 5
    assert fs.read(root, 5) == -EINVAL


def test_the_layers_below_the_system_calls(fs, kernel):
    """Each called directly: it may not rely on what its caller left in registers."""
    fd = fs.open("/f", O_RDWR | O_CREAT)
    file = kernel.call("fcheck", fd)
    inode = kernel.read_u64(kernel.read_u64(file + 8) + 8)
    position, at = kernel.write(HEAP, bytes(8)), kernel.buffer(b"abcdefgh" + b"\xee" * 8)
    assert kernel.call("vfs_write", file, at, 8, position) == 8
    assert kernel.call("generic_file_write", file, at, 8, position) == 8
    assert kernel.call("file_write_page", inode, at, 8, 16) == 8
    assert kernel.read_u64(position) == 16
    kernel.write_u64(position, 3)
    for name, expected in (("vfs_read", b"defgha"), ("generic_file_read", b"bcdefg")):
        assert kernel.call(name, file, at, 6, position) == 6
        assert kernel.read(at, 8) == expected + kernel.read(at + 6, 2)
    assert kernel.call("file_read_page", inode, at, 100, 20) == 4
    assert kernel.read(at, 4) == b"efgh"
    assert kernel.syscall("vfs_read", file, at, -1, position) == -EINVAL
    assert kernel.syscall("vfs_write", file, at, -1, position) == -EINVAL
    kernel.write_u64(position, 1 << 63)
    assert kernel.syscall("vfs_read", file, at, 1, position) == -EINVAL


def test_no_memory_for_a_root():
    kernel = Kernel(boot=False)
    kernel.call("dcache_init")
    kernel.call("inode_init")
    kernel.kmem_cache_alloc = lambda *_: 0
    with pytest.raises(AssertionError, match="Unable to mount root"):
        kernel.call("mnt_init")


def test_device_nodes_without_a_driver(fs, kernel):
    assert kernel.syscall("sys_mknod", b"/dev/x", S_IFCHR | 0o600, 5 << 8) == 0
    assert kernel.syscall("sys_mknod", b"/dev/x", S_IFCHR | 0o600, 5 << 8) == -EEXIST
    assert kernel.syscall("sys_mknod", b"/dev/b", 0x6000 | 0o600, 200 << 8) == 0
    before = dict(kernel.live)
    assert fs.open("/dev/x", O_RDWR) == -ENXIO
    assert fs.open("/dev/b", O_RDWR) == -ENXIO
    assert set(kernel.live) - set(before) == {kernel.task_field("files")}
    assert fs.unlink("/dev/x") == 0


def test_iget_gives_the_same_inode(kernel):
    before = len(kernel.live)
    one, other = kernel.call("iget", 3), kernel.call("iget", 3)
    assert one == other
    assert kernel.call("iget", 19) != one
    kernel.call("iput", one)
    kernel.call("iput", one)
    assert kernel.call("iget", 3) == one, "linked, so it stays cached"
    kernel.write_u64(one + 24, 0)  # i_nlink
    kernel.call("iput", one)
    kernel.call("iput", kernel.call("iget", 19))
    assert len(kernel.live) == before + 1
    kernel.call("iput", 0)


@given(
    st.lists(st.binary(min_size=1, max_size=31).filter(lambda n: not set(n) & {0, 47}), max_size=12)
)
def test_name_hash_is_partial_name_hash(names):
    kernel = KERNEL
    for name in names:
        expected = 0
        for c in name:
            expected = (expected + (c << 4) + (c >> 4)) * 11 & 0xFFFF_FFFF
        assert kernel.call("full_name_hash", kernel.buffer(name), len(name)) == expected


KERNEL = Kernel()


@pytest.mark.parametrize("seed", range(4))
def test_tasks_preempt_each_other(seed):
    """Three tasks, a model each; they share the root, chains and caches; switched anywhere."""
    kernel = Kernel(FS, SCHEDULE)
    at_boot, tasks = sizes(kernel), Tasks(kernel, seed)

    def program(number: int):
        rng, model = random.Random(seed * 10 + number), Model()
        model.root = {"dev": {}}
        at = HEAP + 0x20_0000 + number * 0x10000
        path_at, data_at = at, at + 0x100
        for _ in range(60):
            name, arguments = random_step(rng)
            if isinstance(arguments[0], str):
                # Its own names, in directories that all use. The root's own ones are nobody's.
                path = f"/{number}" + arguments[0].replace("/", "_")[-20:]
                arguments = (path, *arguments[1:])
                kernel.write(path_at, path.encode() + b"\0")
            expected = getattr(model, name)(*arguments)
            if name == "open":
                found = yield "sys_open", path_at, arguments[1], 0o644
            elif name == "mkdir":
                found = yield "sys_mkdir", path_at, 0o755
            elif name == "unlink":
                found = yield "sys_rmdir" if arguments[1] else "sys_unlink", path_at
            elif name == "write":
                kernel.write(data_at, arguments[1] or b"\0")
                found = yield "sys_write", arguments[0], data_at, len(arguments[1])
            elif name == "read":
                found = yield "sys_read", arguments[0], data_at, arguments[1]
                if found >= 0:
                    found = kernel.read(data_at, found) if found else b""
            else:
                found = yield f"sys_{name}", *arguments
            assert found == expected, f"task {number}: {name}{arguments}"
        for fd in list(model.files):
            assert (yield "sys_close", fd) == 0
        for name, node in model.root.items():
            if name != "dev":
                kernel.write(path_at, f"/{name}".encode() + b"\0")
                assert (yield "sys_rmdir" if isinstance(node, dict) else "sys_unlink", path_at) == 0

    for number in range(3):
        tasks.add(program(number))
    tasks.run()
    assert sizes(kernel) == at_boot + Counter([136] * 3), "a descriptor table each"


@pytest.mark.parametrize("seed", range(3))
def test_exclusive_creation_is_a_lock(seed):
    """One of many wins open(O_CREAT | O_EXCL), until it unlinks the name again."""
    kernel = Kernel(FS, SCHEDULE)
    tasks = Tasks(kernel, seed)
    path = kernel.write(HEAP, b"/lock\0")
    holders, turns = [], []

    def program(number: int):
        taken = 0
        while taken < 5:
            fd = yield "sys_open", path, O_RDWR | O_CREAT | O_EXCL, 0o600
            assert fd in (0, -EEXIST)
            if fd == 0:
                assert not holders
                holders.append(number)
                taken += 1
                assert (yield "sys_close", fd) == 0
                assert holders.pop() == number
                turns.append(number)
                assert (yield "sys_unlink", path) == 0

    for number in range(3):
        tasks.add(program(number))
    tasks.run()
    assert sorted(turns) == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("seed", range(3))
def test_directories_go_while_others_walk_through_them(seed):
    """A file is made in a directory that is still there, or not at all: no memory is lost."""
    kernel = Kernel(FS, SCHEDULE)
    at_boot, tasks = sizes(kernel), Tasks(kernel, seed)
    directory, path = kernel.write(HEAP, b"/d\0"), kernel.write(HEAP + 16, b"/d/f\0")

    def maker():
        for _ in range(40):
            assert (yield "sys_mkdir", directory, 0o700) in (0, -EEXIST)
            assert (yield "sys_rmdir", directory) in (0, -ENOENT, -ENOTEMPTY)

    def user():
        for _ in range(30):
            fd = yield "sys_open", path, O_RDWR | O_CREAT, 0o600
            assert fd in (0, -ENOENT)
            if fd == 0:
                assert (yield "sys_write", fd, HEAP, 5) == 5
                assert (yield "sys_unlink", path) in (0, -ENOENT)
                assert (yield "sys_close", fd) == 0

    for program in (maker(), user(), user(), maker()):
        tasks.add(program)
    tasks.run()
    kernel.call("sys_unlink", path)
    kernel.call("sys_rmdir", directory)
    assert sizes(kernel) == at_boot + Counter([136] * 2)

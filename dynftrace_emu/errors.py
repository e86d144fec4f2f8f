"""What can go wrong, as types; each carries what a person can do about it.

``exit_code`` follows the command line's rule: 1 the guest or a check failed, 2 used wrongly.
"""

from __future__ import annotations

import errno as _errno

__all__ = [
    "AddressSpaceError",
    "AssemblyError",
    "ControlFileError",
    "DynftraceError",
    "FtraceBusyError",
    "FtraceStateError",
    "GuestExit",
    "GuestFault",
    "ImageError",
    "MachineBusyError",
    "NativeHookError",
    "OptionError",
    "PatchMismatch",
    "ProtocolError",
    "RecordError",
    "ReplayError",
    "StopMachineTimeout",
    "TextBusyError",
]


class DynftraceError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1
    hint = ""


class OptionError(DynftraceError):
    """An option or argument has a value that is not allowed."""

    exit_code = 2


class ImageError(DynftraceError):
    """An image cannot be found, read or loaded."""

    exit_code = 2


class AssemblyError(ImageError):
    """Assembly text was refused; the message starts with ``file:line:``."""


class AddressSpaceError(DynftraceError):
    """The host gives no more address space for another vCPU (each reserves 256 MiB)."""

    exit_code = 2


class NativeHookError(OptionError):
    """Native hooks (:mod:`.machine.native_hook`) cannot be had on this host; says why."""


class ControlFileError(DynftraceError):
    """A control file refuses what was asked of it; nothing was changed.

    :param number: what the system call would return, as ``errno.EINVAL``.
    :param reason: why, for people.
    """

    exit_code = 2

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"{_errno.errorcode[number]}: {reason}")
        self.errno, self.reason = number, reason

    def at(self, file: str) -> ControlFileError:
        """The same error, with the file's name in front of what it says."""
        named = ControlFileError(self.errno, self.reason)
        named.args = (f"{file}: {self.args[0]}",)
        return named


class FtraceStateError(DynftraceError):
    """A change that the present state does not allow; nothing was changed."""


class FtraceBusyError(FtraceStateError):
    """Tracing was to change from inside a pass, by the thread that runs the pass."""


class MachineBusyError(DynftraceError):
    """The machine was to be stopped by the thread that has stopped it."""


class PatchMismatch(DynftraceError):
    """A call site does not hold the bytes the patcher expected; nothing was written there."""

    hint = "Something else writes to this text, or the record outlived the code it names."

    def __init__(self, ip: int, where: str, expected: bytes, found: bytes) -> None:
        super().__init__(
            f"site {where}: expected {expected.hex(' ')}, found {found.hex(' ')}",
        )
        self.ip, self.expected, self.found = ip, expected, found


class RecordError(DynftraceError):
    """What is recorded cannot be written; what was written before is kept."""


class StopMachineTimeout(DynftraceError):
    """stop_machine gave up: a vCPU did not park within the limit. The text is untouched.

    :param vcpu: its number; ``rip`` is where it was found.
    """

    hint = (
        "A vCPU parks with interrupts on and preempt count 0; in the threaded engine only at a "
        "safepoint, if the guest has any. Look for a loop with interrupts off, or without "
        "cond_resched."
    )

    def __init__(self, vcpu: int, rip: int, why: str) -> None:
        super().__init__(f"stop_machine: vCPU {vcpu} did not park at {rip:#x}: {why}")
        self.vcpu, self.rip, self.why = vcpu, rip, why


class TextBusyError(DynftraceError):
    """stop_machine gave up: some saved ip stays inside bytes that were to change."""

    hint = "An instruction inside the site is the return point of a task or an interrupt frame."


class ProtocolError(DynftraceError):
    """A patching protocol asks for what cannot be done; the message names protocol and step."""

    exit_code = 2


class ReplayError(DynftraceError):
    """A counterexample cannot be run, so nothing can be said; what `git bisect run` skips."""

    exit_code = 125


class GuestFault(DynftraceError):
    """The guest cannot go on. A report for people is made from this (:mod:`.kernel.crash`).

    :param vcpu: its number.
    :param what: what happened, in words.
    :param rip: where, in front of (fault) or behind (trap) the instruction.
    :param vector: the exception's number, if it was one, with its ``error_code`` and CR2.
    """

    def __init__(
        self,
        vcpu: int,
        what: str,
        rip: int,
        *,
        vector: int | None = None,
        error_code: int | None = None,
        cr2: int | None = None,
    ) -> None:
        super().__init__(f"vCPU {vcpu}: {what} at {rip:#x}")
        self.vcpu, self.what, self.rip = vcpu, what, rip
        self.vector, self.error_code, self.cr2 = vector, error_code, cr2


class GuestExit(DynftraceError):
    """The guest ended the machine through the exit port with a code other than 0."""

    def __init__(self, vcpu: int, code: int) -> None:
        super().__init__(f"the guest ended the machine with code {code} (vCPU {vcpu}, port 0xf4)")
        self.vcpu, self.code = vcpu, code

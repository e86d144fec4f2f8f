"""Linux's dynamic ftrace of 2008 in an emulated SMP computer. The API is in the sub-packages."""

from dynftrace_emu._version import __version__

__all__ = ["__version__"]

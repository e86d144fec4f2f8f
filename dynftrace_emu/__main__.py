"""``python -m dynftrace_emu``."""

from dynftrace_emu.cli import main

main()

"""Files that only tell: README, error_log, printk_formats."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dynftrace_emu.tracefs.control_file import ControlFile

if TYPE_CHECKING:
    from dynftrace_emu.ftrace.trace_array import TraceArray

__all__ = ["ErrorLog", "PrintkFormats", "Readme"]

_LOG_LENGTH = 8  # TRACING_LOG_ERRS_MAX

_README = """\
tracing mini-HOWTO:

# echo 0 > tracing_on : quick way to disable tracing
# echo 1 > tracing_on : quick way to re-enable tracing

 Important files:
  trace\t\t\t- The static contents of the buffer
\t\t\t  To clear the buffer write into this file: echo > trace
  trace_pipe\t\t- A consuming read to see the contents of the buffer
  current_tracer\t- function and latency tracers
  available_tracers\t- list of configured tracers for current_tracer
  error_log\t- error log for failed commands (that support it)
  buffer_size_kb\t- view and modify size of per cpu buffer
  buffer_total_size_kb  - view total size of all cpu buffers

  trace_clock\t\t- change the clock used to order events
       local:   Per cpu clock but may not be synced across CPUs
     counter:   Not a clock, but just an increment
  tracing_cpumask\t- Limit which CPUs to trace
  instances\t\t- Make sub-buffers with: mkdir instances/foo
\t\t\t  Remove sub-buffer with rmdir
  trace_options\t\t- Set format or modify how tracing happens
\t\t\t  Disable an option by prefixing 'no' to the
\t\t\t  option name
  saved_cmdlines_size\t- echo command number in here to store comm-pid list
  trace_marker\t\t- Writes into this file writes into the kernel buffer
  trace_marker_raw\t\t- Writes into this file writes binary data into the kernel buffer

  available_filter_functions - list of functions that can be filtered on
  set_ftrace_filter\t- echo function name in here to only trace these
\t\t\t  functions
\t     accepts: func_full_name or glob-matching-pattern
\t     Format: <function>[:<command>[:count]]
\t     trigger: traceon, traceoff, stacktrace, snapshot, dump, cpudump
\t     example: echo do_fault > set_ftrace_filter
\t              echo do_trap:traceoff:3 > set_ftrace_filter
\t     To remove trigger without count:
\t\techo '!<function>:<trigger> > set_ftrace_filter
  set_ftrace_notrace\t- echo function name in here to never trace.
  set_ftrace_pid\t- Write pid(s) to only function trace those pids
\t\t    (function)
  set_ftrace_notrace_pid\t- Write pid(s) to not function trace those pids
\t\t    (function)
  set_graph_function\t- Trace the nested calls of a function (function_graph)
  set_graph_notrace\t- Do not trace the nested calls of a function (function_graph)
  max_graph_depth\t- Trace a limited depth of nested calls (0 is unlimited)

  snapshot\t\t- Like 'trace' but shows the content of the static
\t\t\t  snapshot buffer. Read the contents for more
\t\t\t  information
  stack_trace\t\t- Shows the max stack trace when active
  stack_max_size\t- Shows current max stack size that was traced
\t\t\t  Write into this file to reset the max size (trigger a
\t\t\t  new trace)
  stack_trace_filter\t- Like set_ftrace_filter but limits what stack_trace
\t\t\t  traces
  function_profile_enabled - 1 counts calls and times, shown in trace_stat/function<cpu>

 Sysctls of Linux, here as files: ftrace_enabled, stack_tracer_enabled
"""


class Readme(ControlFile):
    """``README``."""

    name = "README"
    writable = False

    def read(self) -> str:
        return _README


class PrintkFormats(ControlFile):
    """``printk_formats``: of trace_printk; our kernels have none."""

    name = "printk_formats"
    writable = False

    def read(self) -> str:
        return ""


class ErrorLog(ControlFile):
    """``error_log``: the last writes that were refused, with the reason; a write empties it."""

    name = "error_log"

    def __init__(self, array: TraceArray) -> None:
        super().__init__(array)
        self._entries: deque[str] = deque(maxlen=_LOG_LENGTH)

    def read(self) -> str:
        return "".join(self._entries)

    def write(self, text: str, *, append: bool) -> None:
        self._entries.clear()

    def add(self, file: str, command: str, reason: str) -> None:
        """Note a refused write, as Linux's ``tracing_log_err`` does."""
        us = round(self.tracing.kernel.machine.now() * 1e6)
        command = " ".join(command.split())
        self._entries.append(
            f"[{us // 10**6:5d}.{us % 10**6:06d}] {file}: error: {reason}\n"
            f"  Command: {command}\n           ^\n"
        )

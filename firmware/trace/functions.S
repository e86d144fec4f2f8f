# The function tracer (kernel/trace/trace_functions.c).

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

# function_trace_call(buffer r11, site rdi, rflags r10): write an event.
ENTRY function_trace_call
        RING_BUFFER_RESERVE FUNCTION_EVENT, .Lfunction_dropped
        GENERIC_ENTRY EVENT_FUNCTION
        mov [rdx + 12], rdi
        mov rsi, [rbp + 8]
        mov [rdx + 20], rsi
        RING_BUFFER_COMMIT
        cmp qword ptr [r11 + RB_STACK], 0
        jne ftrace_trace_stack
.Lfunction_dropped:
        ret
END function_trace_call

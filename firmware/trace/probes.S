# Triggers on functions: fn:traceon, traceoff, stacktrace, snapshot, dump, cpudump
# (kernel/trace/trace_functions.c). The host writes the chains, in a stop.

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

# function_trace_probe_call(site rdi, rflags r10): every trigger of this function.
ENTRY function_trace_probe_call
        movabs rax, GOLDEN_RATIO_PRIME_64
        imul rax, rdi
        shr rax, 64 - PROBE_HASHBITS
        lea rcx, [rip + ftrace_probes]
        mov rcx, [rcx + rax * 8]
1:
        test rcx, rcx
        jz 3f
        cmp [rcx + PROBE_IP], rdi
        jne 2f
        cmp qword ptr [rcx + PROBE_COUNT], 0
        je 2f
        push rcx
        call probe_act
        pop rcx
2:
        mov rcx, [rcx + PROBE_NEXT]
        jmp 1b
3:
        ret
END function_trace_probe_call

# probe_act(probe rcx, site rdi, rflags r10): only what changes something asks the host.
ENTRY probe_act
        mov rax, [rcx + PROBE_KIND]
        cmp eax, PROBE_STACKTRACE
        je .Lstacktrace
        mov rdx, [rip + ftrace_tracing_on]
        and rdx, [rcx + PROBE_MASK]
        cmp eax, PROBE_TRACEON
        je .Ltraceon
        cmp eax, PROBE_TRACEOFF
        jne .Lask
        test rdx, rdx
        jnz .Lask
        ret
.Ltraceon:
        test rdx, rdx
        jz .Lask
        ret
.Lask:
        mov edx, PORT_FTRACE_PROBE
        in eax, dx
        ret
.Lstacktrace:
        mov rdx, gs:[PCPU_TRACE_MASK]
        test rdx, [rcx + PROBE_MASK]
        jz 2f
        cmp qword ptr [rcx + PROBE_COUNT], -1
        je 1f
        mov edx, PORT_FTRACE_PROBE      # a count is for the host: other CPUs may count it, too
        in eax, dx
        test eax, eax
        jz 2f
1:
        mov rax, [rcx + PROBE_BIT]
        mov r11, gs:[PCPU_TRACE_BUFFERS + rax * 8]
        jmp ftrace_trace_stack
2:
        ret
END probe_act
__ftrace_text_end:

.data
        .p2align 3
ftrace_tracing_on:                      # bits of those whose tracing_on is 1; the host writes
        .quad 0
        .p2align 6
ftrace_probes:                          # hlist heads
        .skip 8 * PROBE_HASHSIZE

# ftrace_caller, where every call site leads that some tracer wants (arch/x86/kernel/ftrace_64.S,
# kernel/trace/ftrace.c). Nothing in trace/ is traced.
#
# From the cli to the popfq a CPU stands in a tracer: it cannot be stopped there by Linux's rule, and
# under a harsher one the host keeps it from being (__ftrace_section). So whoever changes filters,
# buffers or tracers inside a stop never meets a call that has asked who wants it and not yet told.

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

# ftrace_caller: called behind "push rbp; mov rbp, rsp" by a site that is known.
#   in     [rsp] = ip, [rbp + 8] = parent_ip
#   out    everything preserved but r11 and flags
#   state  any: task, interrupt, NMI
ENTRY ftrace_caller
        SAVE_FRAME
__ftrace_caller_section:
        mov rdi, [rsp + FRAME_RET]
        sub rdi, MCOUNT_INSN_SIZE       # from here on a function is known by its call site
        mov rax, rdi
        and rax, -4                     # calls are five bytes, so no two share four
        add rax, [rip + ftrace_map_bias]
        mov eax, [rax]
ftrace_wanted:
        and rax, gs:[PCPU_TRACE_MASK]
        jz .Lnobody
        mov rsi, [rip + ftrace_pid_ignored]
        test rsi, rsi
        jnz .Lpids
.Lpids_done:
        cmp qword ptr gs:[PCPU_TRACE_BUSY], 0
        jne .Lrecursed
        inc qword ptr gs:[PCPU_TRACED_CALLS]
        mov qword ptr gs:[PCPU_TRACE_BUSY], 1
        mov [rsp + FRAME_R9], r9
        mov [rsp + FRAME_R10], r10
        mov r10, [rsp + FRAME_RFLAGS]
        cmp eax, TRACE_FUNCTION
        jne .Lseveral
        mov r11, gs:[PCPU_TRACE_BUFFERS]
        call function_trace_call
.Ltold:
        mov qword ptr gs:[PCPU_TRACE_BUSY], 0
        mov r9, [rsp + FRAME_R9]
        mov r10, [rsp + FRAME_R10]
.Lnobody:
        RESTORE_FRAME
__ftrace_caller_section_end:
        ret
__ftrace_caller_slow:

# Some tracer does not want every task: a word of bits for each pid.
.Lpids:
        mov rcx, gs:[PCPU_CURRENT]
        mov rcx, [rcx + TASK_PID]
        and ecx, PID_MAX - 1
        mov ecx, [rsi + rcx * 4]
        not rcx
        and eax, ecx
        jnz .Lpids_done
        jmp .Lnobody

# An NMI has come while this CPU was in a tracer, and its handler is traced. Linux drops it, too.
.Lrecursed:
        inc qword ptr gs:[PCPU_TRACE_RECURSED]
        jmp .Lnobody

# Another tracer, or more than one. Each gets  site rdi, rflags r10,  preserves those, and may use rax,
# rcx, rdx, rsi, r8, r9 and r11; the traced function's frame is at rbp. The graph tracer is last: it changes what the others read.
.Lseveral:
        push rbx
        push r12
        mov rbx, rax
        test bl, TRACE_PROBE
        jz 1f
        call function_trace_probe_call
1:
        test bl, TRACE_STACK
        jz 2f
        call stack_trace_call
2:
        test bl, TRACE_FUNCTION
        jz 3f
        mov r11, gs:[PCPU_TRACE_BUFFERS]
        call function_trace_call
3:
        mov r12d, ebx
        shr r12d, TRACE_BIT_INSTANCE
        jz 6f
        shl r12d, TRACE_BIT_INSTANCE
4:
        bsf eax, r12d
        btr r12d, eax
        mov r11, gs:[PCPU_TRACE_BUFFERS + rax * 8]
        call function_trace_call
        test r12d, r12d
        jnz 4b
6:
        test bl, TRACE_GRAPH | TRACE_PROFILE
        jz 7f
        call function_graph_enter
7:
        pop r12
        pop rbx
        jmp .Ltold
END ftrace_caller

# The same for a call that mcount got, so that its site may not be known: then it is wanted by those
# who want every function. rsp and the registers are as at ftrace_caller.
ENTRY ftrace_caller_unknown
        SAVE_FRAME
__ftrace_unknown_section:
        mov rdi, [rsp + FRAME_RET]
        sub rdi, MCOUNT_INSN_SIZE       # from here on a function is known by its call site
        mov rax, rdi
        and rax, -4                     # calls are five bytes, so no two share four
        add rax, [rip + ftrace_map_bias]
        mov eax, [rax]
        test al, TRACE_KNOWN
        jnz ftrace_wanted
        mov eax, [rip + ftrace_unknown_ops]
        jmp ftrace_wanted
__ftrace_unknown_section_end:
END ftrace_caller_unknown

.data
        .p2align 3
ftrace_map_bias:                        # where the word of text address 0 would be
        .quad 0
ftrace_unknown_ops:                     # bits of the tracers that want sites nobody knows yet
        .quad 0
ftrace_pid_ignored:                     # u32[PID_MAX] of bits that ignore a task, or 0: none does
        .quad 0
trace_counter:                          # the clock "counter"
        .quad 0

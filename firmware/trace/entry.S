# ftrace_caller, where every call site leads that some tracer wants (arch/x86/kernel/ftrace_64.S,
# kernel/trace/ftrace.c). Nothing in trace/ is traced.
#
# From asking who wants a call to having told them TRACER_OFFSET is in the preempt count: so no CPU is
# stopped there by Linux's rule, and under a harsher one the host lets it get on first. Whoever changes
# filters, buffers or tracers inside a stop never meets a call that knows what was before.

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

.set CALLER_IP, 0x28                    # above the registers that ENTER_TRACER pushes
.set CALLER_SEVERAL, 0x28               # what ENTER_SEVERAL pushes below them

.macro ENTER_TRACER
        push rax
        push rcx
        push rdx
        push rdi
        push r8
        add qword ptr gs:[PCPU_PREEMPT_COUNT], TRACER_OFFSET
.endm

# ftrace_caller: called behind "push rbp; mov rbp, rsp" by a site that is known.
#   in     [rsp] = ip, [rbp + 8] = parent_ip
#   out    everything preserved but r11 and flags
#   state  any: task, interrupt, NMI
# What is written out here is the plain case: the function tracer alone wants it, by the TSC, in a
# page that has room. Whatever else may be, the host sets TRACE_KNOWN in this CPU's mask.
ENTRY ftrace_caller
        SITE_ENTER
        ENTER_TRACER
__ftrace_caller_section:
        mov rdi, [rsp + CALLER_IP]
        sub rdi, MCOUNT_INSN_SIZE       # from here on a function is known by its call site
        mov rax, rdi
        and rax, -4                     # calls are five bytes, so no two share four
        add rax, [rip + ftrace_map_bias]
        mov eax, [rax]
ftrace_wanted:
        and rax, gs:[PCPU_TRACE_MASK]
        jz .Lnobody
        cmp eax, TRACE_FUNCTION
        jne .Lseveral
        mov r11, gs:[PCPU_TRACE_BUFFERS]
        mov r11, [r11 + RB_PAGE]
        mov rcx, [r11 + PAGE_WRITE]
        rdtsc
        shl rdx, 32
        or rax, rdx
        SCALE_CLOCK
        mov r8d, ecx
        and r8d, WRITE_PLACE
        cmp r8d, (BUFFER_PAGE_SPACE - FUNCTION_EVENT) / 4
        ja .Lfunction
        shl rax, WRITE_TIME_SHIFT
        mov rdx, rcx
        shr rdx, WRITE_TIME_SHIFT
        shl rdx, WRITE_TIME_SHIFT
        sub rax, rdx                    # the delta, where the time is in the word
        mov rdx, rax
        shr rdx, WRITE_TIME_SHIFT + DELTA_BITS
        jnz .Lfunction
        lea rdx, [rcx + rax + WRITE_EVENT + FUNCTION_EVENT / 4]
        xchg rax, rcx
        cmpxchg [r11 + PAGE_WRITE], rdx
        jne __ftrace_caller_section
        lea r8, [r11 + r8 * 4]
        shr rcx, DELTA_TO_HEADER
        or ecx, (FUNCTION_EVENT - 4) / 4
        mov [r8 + EVENT], ecx
        mov [r8 + EVENT + 12], rdi
        mov rdi, [rbp + 8]
        mov [r8 + EVENT + 20], rdi
        pushfq
        pop rax
        not eax
        shr eax, IRQS_OFF_BIT
        and eax, 1
        mov rdi, gs:[PCPU_NEED_RESCHED]
        lea eax, [rax + rdi * TRACE_FLAG_NEED_RESCHED]
        shl eax, 16
        mov rdi, gs:[PCPU_PREEMPT_COUNT]
        sub edi, TRACER_OFFSET
        jnz .Lcontext
.Lcontext_done:
        or eax, EVENT_FUNCTION
        mov rdi, gs:[PCPU_PID]
        shl rdi, 32
        or rax, rdi
        mov [r8 + EVENT + 4], rax
        sub r8, r11
        cmp [r11 + BUFFER_PAGE_COMMIT], r8
        jne .Lcommitted                 # whoever we interrupted will
        add r8, FUNCTION_EVENT
        mov [r11 + BUFFER_PAGE_COMMIT], r8
        cmp [r11 + PAGE_WRITE], rdx
        jne .Lcommit_to_write
.Lcommitted:
        inc qword ptr gs:[PCPU_TRACED_CALLS]
.Lnobody:
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], TRACER_OFFSET
__ftrace_caller_section_end:
        pop r8
        pop rdi
        pop rdx
        pop rcx
        pop rax
        SITE_RETURN

# Not preemptible, in an interrupt or in an NMI: preempt_count edi goes into the flags and the count.
.Lcontext:
        push rdx
        movzx edx, dil
        shl edx, 24
        or eax, edx
        mov edx, edi
        shr edx, HARDIRQ_TO_FLAG
        and edx, TRACE_FLAG_HARDIRQ
        shl edx, 16
        or eax, edx
        mov edx, edi
        shr edx, NMI_TO_FLAG
        and edx, TRACE_FLAG_NMI
        shl edx, 16
        or eax, edx
        pop rdx
        jmp .Lcontext_done

.Lcommit_to_write:
        mov rcx, r11
        call ring_buffer_commit_to_write
        jmp .Lcommitted

# The function tracer, but not the plain case.
.Lfunction:
        mov eax, TRACE_FUNCTION

# Another tracer, or more than one. Each gets  site rdi, rflags r10,  preserves those, and may use rax,
# rcx, rdx, rsi, r8, r9 and r11; the traced function's frame is at rbp. The graph tracer is last: it
# changes what the others read.
.Lseveral:
        push rsi
        push r9
        push r10
        push rbx
        push r12
        pushfq
        pop r10
        mov ebx, eax
        mov rsi, [rip + ftrace_pid_ignored]
        test rsi, rsi
        jz .Lpids_done
        # Some tracer does not want every task: a word of bits for each pid.
        mov rcx, gs:[PCPU_PID]
        and ecx, PID_MAX - 1
        mov ecx, [rsi + rcx * 4]
        not ecx
        and ebx, ecx
.Lpids_done:
        and ebx, ~TRACE_KNOWN
        jz .Ltold
        inc qword ptr gs:[PCPU_TRACED_CALLS]
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
        jz .Ltold
        call function_graph_enter
.Ltold:
        pop r12
        pop rbx
        pop r10
        pop r9
        pop rsi
        jmp .Lnobody
END ftrace_caller

# The same for a call that mcount got, so that its site may not be known: then it is wanted by those
# who want every function. rsp and the registers are as at ftrace_caller.
ENTRY ftrace_caller_unknown
        ENTER_TRACER
__ftrace_unknown_section:
        mov rdi, [rsp + CALLER_IP]
        sub rdi, MCOUNT_INSN_SIZE
        mov rax, rdi
        and rax, -4
        add rax, [rip + ftrace_map_bias]
        mov eax, [rax]
        test al, TRACE_KNOWN
        jnz ftrace_wanted
        mov eax, [rip + ftrace_unknown_ops]
        and rax, gs:[PCPU_TRACE_MASK]
        jz .Lnobody
        jmp .Lseveral                   # the plain case would ask the map again
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

# ftrace_caller, where every call site leads that some tracer wants (arch/x86/kernel/ftrace_64.S,
# kernel/trace/ftrace.c). Nothing in trace/ is traced.
#
# From asking who wants a call to having told them TRACER_OFFSET is in the preempt count: so no CPU is
# stopped there by Linux's rule, and under a harsher one the host lets it get on first. Whoever changes
# filters, buffers or tracers inside a stop never meets a call that knows what was before. In the plain
# cases (ftrace_restarts) it is there once somebody has interrupted them, and no stop finds a CPU inside.

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

.set CALLER_IP, 0x18                    # above the registers that ftrace_caller pushes
.set SLOW_IP, CALLER_IP + 0x38          # ... and those that are pushed when more is to be done
.set RETURN_SLOT, 0x30                  # above those that return_to_handler pushes

# The plain cases: nothing is reserved, and nothing is there before the write word is stored, which is
# the last thing they do.

# rax = where the clock is that all times come from; rdtsc. Clobbers rdx.
.macro HOT_CLOCK
        rdtsc
        shl rdx, 32
        or rax, rdx
        SCALE_CLOCK
.endm

# An event of \size bytes in ring buffer rcx, now:
#   out   rcx = where in memory it is, less EVENT, its header written; r11 = the write word to store
#   else  jumps to \slow: no room, the page is open, or the last event is long ago
# Clobbers rax and rdx.
.macro HOT_RESERVE size, slow
        mov rcx, [rcx + RB_PAGE]
        HOT_CLOCK
        HOT_RESERVE_AT \size, \slow
.endm

# The same in page rcx, at time rax.
.macro HOT_RESERVE_AT size, slow
        mov rdx, [rcx + PAGE_WRITE]
        shl rax, WRITE_TIME_SHIFT
        shrd rax, rdx, WRITE_TIME_SHIFT
        rol rax, WRITE_TIME_SHIFT       # this time, and all but the time of the old word
        lea r11, [rax + WRITE_EVENT + \size / 4]
        sub rax, rdx                    # the delta, where the time is in the word
        and edx, WRITE_HOT_PLACE
        lea rcx, [rcx + rdx * 4]
        sub rdx, (BUFFER_PAGE_SPACE - \size) / 4 + 1
        shr rdx, 63
        shl rdx, WRITE_TIME_SHIFT + DELTA_BITS  # 0 if there is no room
        cmp rax, rdx
        jae \slow
        shr rax, DELTA_TO_HEADER
        or eax, (\size - 4) / 4
        mov [rcx + EVENT], eax
.endm

# The eight bytes every event begins with: rax, to be stored. Jumps to \context if there is more to say
# than the pid. Clobbers rdx.
.macro HOT_GENERIC_ENTRY type, context
        mov rdx, gs:[PCPU_NEED_RESCHED] # and irqs_off, the pid and the preempt count
        rol rdx, 32
        mov rax, rdx
        shr rax, 48
        shl rax, 32                     # the pid
        or rax, \type
        shl rdx, 16
        jnz \context
.endm

# What else there is to say in rdx: irqs_off at bit 56, need_resched at 48, the preempt count at 16.
# Event rcx; its common fields serve as scratch space.
.macro HOT_CONTEXT
        mov [rcx + EVENT + 4], rdx
        shr rdx, 56
        shl edx, 16                     # TRACE_FLAG_IRQS_OFF
        or rax, rdx
        movzx edx, byte ptr [rcx + EVENT + 4 + 6]
        shl edx, 16 + 2                 # TRACE_FLAG_NEED_RESCHED
        or rax, rdx
        movzx edx, byte ptr [rcx + EVENT + 4 + 2]
        shl edx, 24
        or rax, rdx
        mov edx, [rcx + EVENT + 4 + 2]
        and edx, 1 << HARDIRQ_BIT
        shl edx, 16 + 3 - HARDIRQ_BIT   # TRACE_FLAG_HARDIRQ
        or rax, rdx
        mov edx, [rcx + EVENT + 4 + 2]
        and edx, 1 << NMI_BIT
        shl edx, 16 + 6 - NMI_BIT       # TRACE_FLAG_NMI
        or rax, rdx
.endm

.macro HOT_COMMIT
        or rcx, PAGE_SIZE - 1
        mov [rcx + PAGE_WRITE - PAGE_SIZE + 1], r11
.endm

# The registers that ftrace_caller has not pushed.
.macro ENTER_SLOW
        push rdi
        ENTER_SLOW_REST
.endm

.macro ENTER_SLOW_REST
        push rsi
        push r8
        push r9
        push r10
        push rbx
        push r12
.endm

# ftrace_caller: called behind "push rbp; mov rbp, rsp" by a site that is known.
#   in     [rsp] = ip, [rbp + 8] = parent_ip
#   out    everything preserved but r11 and flags
#   state  any: task, interrupt, NMI
# What is written out here is the plain case: the function tracer alone wants it, by the TSC, in a
# page that has room and that is not open. Whatever else may be, the host sets TRACE_KNOWN in this
# CPU's mask.
        .p2align 11, 0xcc               # the hot half of the tracers in one page
ENTRY ftrace_caller
        SITE_ENTER
        push rax
        push rdx
        push rcx
ftrace_caller_hot:
        mov rdx, [rsp + CALLER_IP]
        lea rax, [rdx - MCOUNT_INSN_SIZE]       # a function is known by its call site
        and rax, -4                     # calls are five bytes, so no two share four
        mov ecx, gs:[PCPU_TRACE_MASK]
        and ecx, [rax + FTRACE_MAP_OFFSET]
        cmp ecx, TRACE_FUNCTION
        jne .Lnot_function
        mov rcx, gs:[PCPU_TRACE_BUFFERS + 8 * TRACE_BIT_FUNCTION]
        HOT_RESERVE FUNCTION_EVENT, .Lslow
        mov rdx, [rsp + CALLER_IP]
        sub rdx, MCOUNT_INSN_SIZE
        mov [rcx + EVENT + 12], rdx
        mov rdx, [rbp + 8]
        mov [rcx + EVENT + 20], rdx
        HOT_GENERIC_ENTRY EVENT_FUNCTION, .Lfunction_context
.Lfunction_common:
        mov [rcx + EVENT + 4], rax
        HOT_COMMIT
ftrace_caller_hot_end:
        inc qword ptr gs:[PCPU_TRACED_CALLS]
.Lnobody_hot:
        pop rcx
        pop rdx
        pop rax
        SITE_RETURN

.Lnot_function:
        cmp ecx, TRACE_GRAPH
        je .Lgraph
        test ecx, ecx
        jz .Lnobody_hot
        jmp .Lslow

ftrace_caller_context:
.Lfunction_context:
        HOT_CONTEXT
        jmp .Lfunction_common
ftrace_caller_context_end:
END ftrace_caller

# The plain case of function_graph: it alone, whatever the depth, and the shadow stack as this run of
# it left it. First the entry of the shadow stack is filled, which an interrupt would overwrite, and the
# event; then the entry is taken, and what an interrupt hooks goes above it; then the event is told.
ENTRY ftrace_graph_caller
.Lgraph:
        push rdi
ftrace_graph_hot:
        RET_STACK_OF_RSP rcx
        mov rdx, [rip + ftrace_graph_session]
        mov rax, [rcx + RET_STACK_SESSION]
        sub rax, rdx                    # 0: in this run, and in no function of set_graph_notrace
        mov edi, [rcx + RET_STACK_DEPTH]
        lea r11d, [rdi - RET_STACK_ENTRIES]
        not r11d
        shr r11d, 31                    # 0: there is room
        or rax, r11
        jnz .Lgraph_slow
        RET_ENTRY_OF rdi, rcx
        shl rdx, 32
        or rdx, RET_GRAPHED
        mov [rdi + RET_ENTRY_FLAGS], rdx        # and the session
        mov rdx, [rsp + CALLER_IP + 8]
        sub rdx, MCOUNT_INSN_SIZE
        mov [rdi + RET_ENTRY_FUNC], rdx
        mov rdx, [rbp + 8]
        mov [rdi + RET_ENTRY_RET], rdx
        lea rdx, [rbp + 8]
        mov [rdi + RET_ENTRY_FRAME], rdx
        mov rcx, gs:[PCPU_TRACE_BUFFERS + 8 * TRACE_BIT_GRAPH]
        mov rcx, [rcx + RB_PAGE]
        HOT_CLOCK
        mov [rdi + RET_ENTRY_CALLTIME], rax
        HOT_RESERVE_AT GRAPH_ENTRY_EVENT, .Lgraph_slow
        mov rdx, [rdi + RET_ENTRY_FUNC]
        mov [rcx + EVENT + 12], rdx
        RET_STACK_OF_RSP rdx
        mov edx, [rdx + RET_STACK_GRAPH_DEPTH]
        mov [rcx + EVENT + 20], edx
        HOT_GENERIC_ENTRY EVENT_GRAPH_ENTRY, .Lgraph_context
.Lgraph_common:
        mov [rcx + EVENT + 4], rax
        RET_STACK_OF_RSP rdx
        movabs rax, 1 << 32 | 1
        add [rdx + RET_STACK_DEPTH], rax        # and the graph depth
ftrace_graph_hooked:
        lea rax, [rip + return_to_handler]
        mov [rbp + 8], rax
        HOT_COMMIT
ftrace_graph_hot_end:
        inc qword ptr gs:[PCPU_TRACED_CALLS]
        pop rdi
        pop rcx
        pop rdx
        pop rax
        SITE_RETURN

ftrace_graph_context:
.Lgraph_context:
        HOT_CONTEXT
        jmp .Lgraph_common
ftrace_graph_context_end:

.Lgraph_slow:
        add qword ptr gs:[PCPU_PREEMPT_COUNT], TRACER_OFFSET
ftrace_graph_interrupted:
        ENTER_SLOW_REST
        jmp __ftrace_caller_section
END ftrace_graph_caller

# return_to_handler: where every hooked function returns to. Preserves all registers and flags, and
# goes on where the function would have. (popfq costs more than all the rest: lahf and seto do.)
# Here is the plain case: an entry that ftrace_graph_caller could have made, in the same run.
ENTRY return_to_handler
        lea rsp, [rsp - 8]              # the return address again
        push rax
        lahf
        seto al
        push rax
        push rcx
        push rdx
        push rdi
        push r11
.ifdef CONFIG_ANY_STACK
        jmp return_to_handler_slow
.endif
return_to_handler_hot:
        RET_STACK_OF_RSP rcx
        mov edi, [rcx + RET_STACK_DEPTH]
        RET_ENTRY_OF rdi, rcx
        sub rdi, RET_ENTRY_SIZE         # of an empty stack that is its header, and no frame of ours
        lea rax, [rsp + RETURN_SLOT]
        sub rax, [rdi + RET_ENTRY_FRAME]
        mov rcx, [rip + ftrace_graph_session]
        shl rcx, 32
        or rcx, RET_GRAPHED
        sub rcx, [rdi + RET_ENTRY_FLAGS]
        or rax, rcx
        mov ecx, gs:[PCPU_TRACE_MASK]
        and ecx, TRACE_GRAPH | TRACE_KNOWN
        xor ecx, TRACE_GRAPH
        or rax, rcx
        jnz .Lreturn_slow
        mov rcx, gs:[PCPU_TRACE_BUFFERS + 8 * TRACE_BIT_GRAPH]
        HOT_RESERVE GRAPH_EXIT_EVENT, .Lreturn_slow
        mov rdx, [rdi + RET_ENTRY_RET]
        mov [rsp + RETURN_SLOT], rdx
        mov rdx, [rdi + RET_ENTRY_FUNC]
        mov [rcx + EVENT + 12], rdx
        RET_STACK_OF_RSP rdx
        mov edx, [rdx + RET_STACK_GRAPH_DEPTH]
        dec edx
        mov [rcx + EVENT + 20], rdx     # and no overrun
        mov rdx, [rdi + RET_ENTRY_CALLTIME]
        mov [rcx + EVENT + 28], rdx
        mov rax, r11                    # the time, but for its upper bits
        shr rax, WRITE_TIME_SHIFT
        sub rax, rdx
        shl rax, WRITE_TIME_SHIFT
        shr rax, WRITE_TIME_SHIFT
        add rax, rdx
        mov [rcx + EVENT + 36], rax
        HOT_GENERIC_ENTRY EVENT_GRAPH_EXIT, .Lreturn_context
.Lreturn_common:
        mov [rcx + EVENT + 4], rax
        RET_STACK_OF_RSP rdx
        movabs rax, 1 << 32 | 1
        HOT_COMMIT
return_to_handler_hot_end:
        sub [rdx + RET_STACK_DEPTH], rax        # what was above is gone: interrupts have returned
return_to_handler_end:
        pop r11
        pop rdi
        pop rdx
        pop rcx
        pop rax
        add al, 0x7f                    # the overflow flag again
        sahf
        pop rax
        ret

return_to_handler_context:
.Lreturn_context:
        HOT_CONTEXT
        jmp .Lreturn_common
return_to_handler_context_end:
.Lreturn_slow:
        jmp return_to_handler_slow
END return_to_handler

# Where whoever interrupted ftrace_caller_hot has it go on, TRACER_OFFSET already in its preempt count;
# and everything that is not the plain case. Asks again who wants the call.
ENTRY ftrace_caller_slow
.Lslow:
        add qword ptr gs:[PCPU_PREEMPT_COUNT], TRACER_OFFSET
ftrace_caller_interrupted:
        ENTER_SLOW
__ftrace_caller_section:
        mov rdi, [rsp + SLOW_IP]
        sub rdi, MCOUNT_INSN_SIZE
        mov rax, rdi
        and rax, -4
        mov eax, [rax + FTRACE_MAP_OFFSET]
ftrace_wanted:
        and rax, gs:[PCPU_TRACE_MASK]
        jz .Lnobody
.Lwanted:
        # Each gets  site rdi, rflags r10,  preserves those, and may use rax, rcx, rdx, rsi, r8, r9 and
        # r11; the traced function's frame is at rbp. The graph tracer is last: it changes what the
        # others read.
        pushfq
        pop r10
        mov ebx, eax
        mov rsi, [rip + ftrace_pid_ignored]
        test rsi, rsi
        jz .Lpids_done
        # Some tracer does not want every task: a word of bits for each pid.
        movzx ecx, word ptr gs:[PCPU_PID]
        and ecx, PID_MAX - 1
        mov ecx, [rsi + rcx * 4]
        not ecx
        and ebx, ecx
.Lpids_done:
        and ebx, ~TRACE_KNOWN
        jz .Lnobody
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
        jz .Lnobody
        call function_graph_enter
        jmp .Lnobody

# Interrupted between taking the shadow stack's entry rdi and telling it.
ftrace_graph_hooked_interrupted:
        ENTER_SLOW_REST
        RET_STACK_OF_RSP rsi
        pushfq
        pop r10
        mov ebx, TRACE_GRAPH
        inc qword ptr gs:[PCPU_TRACED_CALLS]
        mov rcx, rdi
        mov rdi, [rcx + RET_ENTRY_FUNC]
        mov r11, gs:[PCPU_TRACE_BUFFERS + 8 * TRACE_BIT_GRAPH]
        call function_graph_hooked
.Lnobody:
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], TRACER_OFFSET
__ftrace_caller_section_end:
        pop r12
        pop rbx
        pop r10
        pop r9
        pop r8
        pop rsi
        pop rdi
        pop rcx
        pop rdx
        pop rax
        SITE_RETURN
END ftrace_caller_slow

# The same for a call that mcount got, so that its site may not be known: then it is wanted by those
# who want every function. rsp and the registers are as at ftrace_caller.
ENTRY ftrace_caller_unknown
        push rax
        push rdx
        push rcx
        add qword ptr gs:[PCPU_PREEMPT_COUNT], TRACER_OFFSET
        ENTER_SLOW
__ftrace_unknown_section:
        mov rdi, [rsp + SLOW_IP]
        sub rdi, MCOUNT_INSN_SIZE
        mov rax, rdi
        and rax, -4
        mov eax, [rax + FTRACE_MAP_OFFSET]
        test al, TRACE_KNOWN
        jnz ftrace_wanted
        not eax                         # of a site that is not known: who must not have it
        and eax, [rip + ftrace_unknown_ops]
        and rax, gs:[PCPU_TRACE_MASK]
        jz .Lnobody
        jmp .Lwanted
__ftrace_unknown_section_end:
END ftrace_caller_unknown

# ftrace_interrupted(regs rdi): called by every interrupt's and NMI's entry, before anything that may be
# traced. Who was in the middle of a plain case begins anew, the careful way; and no task is switched
# before it has (as with restartable sequences, or kuser_cmpxchg_check of arch/arm).
#   clobbers  rax rcx
ENTRY ftrace_interrupted
        mov rax, [rdi + REGS_RIP]
        lea rcx, [rip + ftrace_restarts]
1:
        cmp rax, [rcx]
        jb 2f
        cmp rax, [rcx + 8]
        jb 3f
2:
        add rcx, 24
        cmp qword ptr [rcx], 0
        jne 1b
        ret
3:
        mov rax, [rcx + 16]
        mov [rdi + REGS_RIP], rax
        add qword ptr gs:[PCPU_PREEMPT_COUNT], TRACER_OFFSET
        ret
END ftrace_interrupted

.rodata
        .p2align 3
ftrace_restarts:                        # from, up to, where it goes on instead
        .quad ftrace_caller_hot, ftrace_caller_hot_end, ftrace_caller_interrupted
        .quad ftrace_caller_context, ftrace_caller_context_end, ftrace_caller_interrupted
        .quad ftrace_graph_hot, ftrace_graph_hooked, ftrace_graph_interrupted
        .quad ftrace_graph_context, ftrace_graph_context_end, ftrace_graph_interrupted
        .quad ftrace_graph_hooked, ftrace_graph_hot_end, ftrace_graph_hooked_interrupted
        .quad return_to_handler_hot, return_to_handler_hot_end, return_to_handler_interrupted
        .quad return_to_handler_context, return_to_handler_context_end, return_to_handler_interrupted
        .size ftrace_restarts, . - ftrace_restarts
        .quad 0

.data
        .p2align 3
ftrace_unknown_ops:                     # bits of the tracers that want sites nobody knows yet
        .quad 0
ftrace_pid_ignored:                     # u32[PID_MAX] of bits that ignore a task, or 0: none does
        .quad 0
trace_counter:                          # the clock "counter"
        .quad 0

# The function graph tracer and the function profiler: both hook a function's return
# (kernel/trace/fgraph.c, trace_functions_graph.c, ftrace.c).
#
# A hooked return address lies in the shadow stack of the stack it was found on, until the function
# returns, however long after tracing has ended that is; so return_to_handler works for ever.

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

.set HARDIRQ_MASK, 0xf0000

# function_graph_enter(wanted rbx, site rdi, rflags r10): an entry event, a hit, and the hook.
#   rsi = shadow stack, r9 = what to do on return (RetFlag), rax = time, r11 = buffer
ENTRY function_graph_enter
        mov r11, gs:[PCPU_TRACE_BUFFERS + 8 * TRACE_BIT_GRAPH]
        xor r9d, r9d
        RET_STACK_ENTER rsi, .Lno_room
        cmp dword ptr [rsi + RET_STACK_DEPTH], RET_STACK_ENTRIES
        jae .Lno_room
        test bl, TRACE_GRAPH
        jz 1f
        call graph_decide
1:
        test bl, TRACE_PROFILE
        jz 2f
        call profile_hit
        or r9d, RET_PROFILE
2:
        test r9d, r9d
        jz .Lnot_hooked
        # From the inc on an interrupt's entries go above ours.
        mov ecx, [rsi + RET_STACK_DEPTH]
        inc dword ptr [rsi + RET_STACK_DEPTH]
        RET_ENTRY_OF rcx, rsi
        mov [rcx + RET_ENTRY_FLAGS], r9d
        mov [rcx + RET_ENTRY_FUNC], rdi
        mov rax, [rip + ftrace_graph_session]
        mov [rcx + RET_ENTRY_SESSION], eax
        mov rax, [rbp + 8]
        mov [rcx + RET_ENTRY_RET], rax
        lea rax, [rbp + 8]
        mov [rcx + RET_ENTRY_FRAME], rax
        TRACE_CLOCK_LOCAL
        mov [rcx + RET_ENTRY_CALLTIME], rax
        test r9d, RET_GRAPH
        jz 3f
        cmp qword ptr [rip + ftrace_graph_thresh], 0
        je function_graph_hooked
3:                                      # only what takes long is told, when it is over
        lea rax, [rip + return_to_handler]
        mov [rbp + 8], rax
4:
        ret
.Lnot_hooked:
        RET_STACK_LEFT rsi
        ret

# Too deep, or on a stack nobody knows. Of a call that is not hooked both events are lost.
.Lno_room:
        test bl, TRACE_GRAPH
        jz 5f
        add qword ptr [r11 + RB_DROPPED], 2
5:
        test bl, TRACE_PROFILE
        jnz profile_hit
        ret
END function_graph_enter

# function_graph_hooked(entry rcx, shadow stack rsi, site rdi, rflags r10, buffer r11): hook the return
# and tell the entry.
ENTRY function_graph_hooked
        lea rax, [rip + return_to_handler]
        mov [rbp + 8], rax
        push rcx
        mov eax, [rsi + RET_STACK_GRAPH_DEPTH]
        dec eax
        push rax
        call graph_entry_event
        pop rax
        pop rcx
        jnc 1f
        or dword ptr [rcx + RET_ENTRY_FLAGS], RET_DROPPED
1:
        ret
END function_graph_hooked

# graph_decide(wanted rbx, shadow stack rsi): r9 |= what the graph tracer wants of this call
# (trace_graph_entry). Clobbers rdx.
ENTRY graph_decide
        mov edx, [rip + ftrace_graph_session]
        cmp [rsi + RET_STACK_SESSION], edx
        je 1f
        mov [rsi + RET_STACK_SESSION], edx      # what is hooked from an earlier run does not count
        mov dword ptr [rsi + RET_STACK_GRAPH_DEPTH], 0
        mov dword ptr [rsi + RET_STACK_NOTRACE_DEPTH], 0
1:
        cmp dword ptr [rsi + RET_STACK_NOTRACE_DEPTH], 0
        jne 4f
        test bl, TRACE_GRAPH_NOTRACE
        jz 2f
        inc dword ptr [rsi + RET_STACK_NOTRACE_DEPTH]
        or r9d, RET_NOTRACE
        ret
2:
        mov edx, [rsi + RET_STACK_GRAPH_DEPTH]
        test edx, edx
        jnz 3f
        cmp qword ptr [rip + ftrace_graph_filter], 0
        je 3f
        test bl, TRACE_GRAPH_FUNCTION
        jz 4f
3:
        cmp rdx, [rip + ftrace_graph_max_depth]
        jae 4f
        cmp qword ptr [rip + ftrace_graph_skip_irqs], 0
        jne 5f
6:
        inc dword ptr [rsi + RET_STACK_GRAPH_DEPTH]
        or r9d, RET_GRAPH | RET_DEPTH
4:
        ret
5:
        test qword ptr gs:[PCPU_PREEMPT_COUNT], HARDIRQ_MASK
        jz 6b
        ret
END graph_decide

# graph_entry_event(buffer r11, site rdi, rflags r10; [rsp + 8] = depth): carry if it was dropped.
# Its time is that of the entry or a little later, as in Linux.
ENTRY graph_entry_event
        RING_BUFFER_RESERVE GRAPH_ENTRY_EVENT, .Lentry_dropped
        GENERIC_ENTRY EVENT_GRAPH_ENTRY
        mov [rdx + 12], rdi
        mov esi, [rsp + 8]
        mov [rdx + 20], esi
        RING_BUFFER_COMMIT
        clc
        ret
.Lentry_dropped:
        stc
        ret
END graph_entry_event

# What return_to_handler does where it is not the plain case, or was interrupted in it. Its registers
# lie on the stack.
ENTRY return_to_handler_slow
        add qword ptr gs:[PCPU_PREEMPT_COUNT], TRACER_OFFSET
return_to_handler_interrupted:
        push rsi
        push r8
        push r9
        push r10
        push rbx
        push r12
__return_to_handler_section:
        pushfq
        pop r10
        lea rdx, [rsp + RETURN_SLOT + 0x30]
        RET_STACK_LEAVE rsi, .Llost
1:
        mov eax, [rsi + RET_STACK_DEPTH]
        sub eax, 1
        jb .Llost
        RET_ENTRY_OF rax, rsi
        mov r12, rax
        mov ebx, [r12 + RET_ENTRY_FLAGS]
        call graph_leave_depth
        cmp [r12 + RET_ENTRY_FRAME], rdx
        je 2f
        ja .Llost
        dec dword ptr [rsi + RET_STACK_DEPTH]   # a frame that was left without a return
        jmp 1b
2:
        mov rax, [r12 + RET_ENTRY_RET]
        mov [rdx], rax
        mov rdi, [r12 + RET_ENTRY_FUNC]
        TRACE_CLOCK_LOCAL
        test bl, RET_PROFILE
        jz 3f
        call profile_return
3:
        push rsi
        test bl, RET_GRAPH
        jz 4f
        call graph_return
4:
        pop rsi
        dec dword ptr [rsi + RET_STACK_DEPTH]   # what was above is gone: interrupts have returned
        RET_STACK_LEFT rsi
        sub qword ptr gs:[PCPU_PREEMPT_COUNT], TRACER_OFFSET
        pop r12
        pop rbx
        pop r10
        pop r9
        pop r8
        pop rsi
        jmp return_to_handler_end
.Llost:
        ud2                             # no entry for this return: nowhere to go
END return_to_handler_slow

# graph_leave_depth(entry r12, its flags rbx, shadow stack rsi): one level up again, if the level is
# of the present run. Clobbers rax.
ENTRY graph_leave_depth
        mov eax, [r12 + RET_ENTRY_SESSION]
        cmp eax, [rsi + RET_STACK_SESSION]
        jne 2f
        test bl, RET_NOTRACE
        jz 1f
        dec dword ptr [rsi + RET_STACK_NOTRACE_DEPTH]
1:
        test bl, RET_DEPTH
        jz 2f
        dec dword ptr [rsi + RET_STACK_GRAPH_DEPTH]
2:
        ret
END graph_leave_depth

# graph_return(entry r12, its flags rbx, shadow stack rsi, local time rax, rflags r10): an exit event,
# if the tracer that saw the entry still listens (trace_graph_return).
ENTRY graph_return
        mov edx, [r12 + RET_ENTRY_SESSION]
        cmp edx, [rip + ftrace_graph_session]
        jne .Lexit_done
        test qword ptr gs:[PCPU_TRACE_MASK], TRACE_GRAPH
        jz .Lexit_done
        mov r11, gs:[PCPU_TRACE_BUFFERS + 8 * TRACE_BIT_GRAPH]
        test bl, RET_DROPPED
        jnz .Lexit_goes_with_entry
        mov rdx, rax
        sub rdx, [r12 + RET_ENTRY_CALLTIME]
        cmp rdx, [rip + ftrace_graph_thresh]
        jb .Lexit_done
        push rax
        mov edx, [rsi + RET_STACK_GRAPH_DEPTH]
        push rdx
        RING_BUFFER_RESERVE GRAPH_EXIT_EVENT, .Lexit_dropped
        GENERIC_ENTRY EVENT_GRAPH_EXIT
        mov rsi, [r12 + RET_ENTRY_FUNC]
        mov [rdx + 12], rsi
        mov esi, [rsp]
        mov [rdx + 20], rsi             # depth, and no overrun
        mov rsi, [r12 + RET_ENTRY_CALLTIME]
        mov [rdx + 28], rsi
        mov rsi, [rsp + 8]
        mov [rdx + 36], rsi
        RING_BUFFER_COMMIT
.Lexit_dropped:
        add rsp, 16
.Lexit_done:
        ret
.Lexit_goes_with_entry:
        inc qword ptr [r11 + RB_DROPPED]
        ret
END graph_return

# profile_hit(site rdi): count a call. Clobbers rax and rdx.
ENTRY profile_hit
        mov rax, rdi
        and rax, -4
        shl rax, 3                      # PROFILE_SIZE / 4
        add rax, gs:[PCPU_PROFILE]
        inc qword ptr [rax + PROFILE_HITS]
        mov [rax + PROFILE_IP], rdi
        ret
END profile_hit

# profile_return(entry r12, site rdi, local time rax): its time, if the profiler still counts.
# Preserves rax; clobbers rcx and rdx.
ENTRY profile_return
        test qword ptr gs:[PCPU_TRACE_MASK], TRACE_PROFILE
        jz 1f
        mov rcx, rdi
        and rcx, -4
        shl rcx, 3
        add rcx, gs:[PCPU_PROFILE]
        mov rdx, rax
        sub rdx, [r12 + RET_ENTRY_CALLTIME]
        add [rcx + PROFILE_TIME], rdx
        imul rdx, rdx
        add [rcx + PROFILE_TIME_SQUARED], rdx
1:
        ret
END profile_return

.data
        .p2align 3
ftrace_ret_stack_area_size:             # so many bytes of stacks have shadows
        .quad 0
ftrace_ret_stacks:                      # where the nodes are (runtime/ret_nodes.S)
        .quad 0
ftrace_graph_session:                   # counts the runs of the graph tracer
        .quad 0
ftrace_graph_max_depth:                 # deeper calls are not shown
        .quad -1
ftrace_graph_filter:                    # not 0: set_graph_function names some
        .quad 0
ftrace_graph_skip_irqs:                 # not 0: option funcgraph-irqs is off
        .quad 0
ftrace_graph_thresh:                    # tracing_thresh, in ns
        .quad 0

# The function tracer, and the trace of a stack (kernel/trace/trace_functions.c, trace.c).

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

.set STACK_CALLERS, 12                  # as many as type_len can tell
.set STACK_EVENT, 20 + 8 * STACK_CALLERS        # header, common, number, padding, callers

# function_trace_call(buffer r11, site rdi, rflags r10): write an event.
ENTRY function_trace_call
        TRACE_CLOCK
        RING_BUFFER_RESERVE FUNCTION_EVENT, .Lfunction_dropped
        GENERIC_ENTRY EVENT_FUNCTION
        mov [rcx + r8 + BUFFER_PAGE_SIZE + 4], rdx
        mov [rcx + r8 + BUFFER_PAGE_SIZE + 12], rdi
        mov rsi, [rbp + 8]
        mov [rcx + r8 + BUFFER_PAGE_SIZE + 20], rsi
        RING_BUFFER_COMMIT FUNCTION_EVENT
        cmp qword ptr [r11 + RB_STACK], 0
        jne ftrace_trace_stack
.Lfunction_dropped:
        ret
END function_trace_call

# ftrace_trace_stack(buffer r11, time rax, site rdi, rflags r10): write who called whom, innermost
# first, along the frame pointers; -1 ends it.
ENTRY ftrace_trace_stack
        RING_BUFFER_RESERVE STACK_EVENT, .Lstack_dropped
        GENERIC_ENTRY EVENT_KERNEL_STACK
        lea rax, [rcx + r8 + BUFFER_PAGE_SIZE + 4]
        mov [rax], rdx
        mov qword ptr [rax + 8], 0
        push rdi
        push rcx
        push r8
        push rax
        add rax, 16
        lea rdx, [rax + 8 * STACK_CALLERS]
        call save_stack_trace
        pop r9
        pop r8
        pop rcx
        pop rdi
        mov rdx, rax
        sub rdx, r9
        sub rdx, 16
        shr edx, 3
        mov [r9 + 8], edx
1:
        lea rdx, [r9 + 16 + 8 * STACK_CALLERS]
        cmp rax, rdx
        jae 2f
        mov qword ptr [rax], -1
        add rax, 8
        jmp 1b
2:
        RING_BUFFER_COMMIT STACK_EVENT
.Lstack_dropped:
        ret
END ftrace_trace_stack

# save_stack_trace(to rax, end rdx, site rdi, frame rbp): rax = behind the last one stored.
#   clobbers  rcx rsi rdi r8 r9
# What returns to return_to_handler is shown as what that stands for.
ENTRY save_stack_trace
        mov [rax], rdi
        add rax, 8
        mov r9, rbp
        xor esi, esi
        RET_STACK_HERE r8, 1f
        imul rsi, [r8 + RET_STACK_DEPTH], RET_ENTRY_SIZE
        lea rsi, [r8 + rsi + RET_STACK_SIZE]
1:
        cmp rax, rdx
        jae 4f
        mov rdi, r9
        xor rdi, rsp
        test rdi, -STACK_SLOT           # still on this stack?
        jnz 4f
        mov rdi, [r9 + 8]
        cmp rdi, return_to_handler
        jne 3f
        test rsi, rsi
        jz 3f
        sub rsi, RET_ENTRY_SIZE
        mov rdi, [rsi + RET_ENTRY_RET]
3:
        test rdi, rdi
        jz 4f
        mov [rax], rdi
        add rax, 8
        mov rdi, [r9]
        cmp rdi, r9
        mov r9, rdi
        ja 1b
4:
        ret
END save_stack_trace

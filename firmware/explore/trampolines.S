# More for a site to call.

# LAB_DIRECT: a trampoline whose own call is patched, to change the tracer (ftrace_call).
.ifdef LAB_DIRECT
.text
        .p2align 6, 0xcc
ENTRY ftrace_caller_direct
        push rdi
        push rsi
        mov rdi, [rsp + 0x10]
        sub rdi, 5
        mov esi, TRACER_A
ftrace_call:
        call ftrace_stub
        pop rsi
        pop rdi
        ret
END ftrace_caller_direct
.endif

# LAB_LIST: what several tracers share: it asks each one's filter (ftrace_ops_list_func). A filter is
# the site that is wanted, or 0.
.ifdef LAB_LIST
.text
ENTRY ftrace_ops_list_func
        push rsi
        cmp [rip + tracer_a_filter], rdi
        jne .Lnot_a
        mov esi, TRACER_A
        call tracer_a
.Lnot_a:
        cmp [rip + tracer_b_filter], rdi
        jne .Lnot_b
        mov esi, TRACER_B
        call tracer_b
.Lnot_b:
        pop rsi
        ret
END ftrace_ops_list_func

.data
tracer_a_filter:
        .quad 0
tracer_b_filter:
        .quad 0
.endif

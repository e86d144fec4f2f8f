# Shadow stacks where stacks are unknown: an image has what stacks it likes and changes them as it
# likes. So each hooked call has a node of its own, in a table keyed by where its return address is;
# that is found again whichever stack the CPU is on meanwhile. How deep a call is, and whether it is in
# a function that is chosen, it has from the call it is in.

.include "linkage.inc"
.include "percpu.inc"
.include "trace/trace.inc"

.percpu ret_node_last, 8                # the node entered last that has not been left

.set CALL_DEPTH, 64                     # of calls that were left without a return, looked back over
.set RET_NODE_SHIFT, 7                  # RET_NODE_SIZE

# \to = the first node that may be that of \frame.
.macro RET_NODE_HASH to, frame
        movabs \to, GOLDEN_RATIO_PRIME_64
        imul \to, \frame
        shr \to, 64 - RET_NODE_BITS
        shl \to, RET_NODE_SHIFT
        add \to, [rip + ftrace_ret_stacks]
.endm

# ret_node_find(frame rdx): rcx = its node; the zero flag says whether there is one. Clobbers rax.
ENTRY ret_node_find
        RET_NODE_HASH rcx, rdx
        mov eax, RET_NODE_PROBES
1:
        cmp [rcx + RET_NODE_FRAME], rdx
        je 2f
        add rcx, RET_NODE_SIZE
        dec eax
        jnz 1b
        inc eax                         # no zero flag
2:
        ret
END ret_node_find

# ret_node_enter(frame rbp): rsi = a node for the call whose return address is at [rbp + 8], its depths
# those of the call it is in; carry: there is no room. Clobbers rax, rcx, rdx and r8.
ENTRY ret_node_enter
        pushfq
        cli                             # an interrupt's calls have nodes, too
        mov rdx, [rbp]
        add rdx, 8                      # who called has its return address there, if it has a frame
        call ret_node_find
        mov r8, rcx
        je 3f
        # Else whoever was entered last and is above us: on this stack, as far as one can tell.
        mov r8, gs:[ret_node_last]
        lea rdx, [rbp + 8]
        mov eax, CALL_DEPTH
1:
        test r8, r8
        jz 3f
        cmp [r8 + RET_NODE_FRAME], rdx
        ja 3f
        mov r8, [r8 + RET_NODE_UP]
        dec eax
        jnz 1b
        xor r8d, r8d
3:
        lea rdx, [rbp + 8]
        call ret_node_find
        mov rsi, rcx
        mov ecx, 0
        jne 4f
        mov rax, [rdx]
        cmp rax, return_to_handler
        jne 6f                          # who was here was left without a return: take its node
        mov rcx, rsi                    # a tail call: both return through this word, this one first
4:
        RET_NODE_HASH rsi, rdx
        mov eax, RET_NODE_PROBES
5:
        cmp qword ptr [rsi + RET_NODE_FRAME], 0
        je 6f
        add rsi, RET_NODE_SIZE
        dec eax
        jnz 5b
        popfq
        stc
        ret
6:
        mov [rsi + RET_NODE_HIDES], rcx
        test rcx, rcx
        jz 7f
        mov qword ptr [rcx + RET_NODE_FRAME], 1
        mov r8, rcx
7:
        mov [rsi + RET_NODE_FRAME], rdx
        mov [rsi + RET_NODE_UP], r8
        mov rax, gs:[PCPU_CPU]
        mov [rsi + RET_NODE_CPU], rax
        mov gs:[ret_node_last], rsi
        xor eax, eax
        mov [rsi + RET_STACK_DEPTH], rax        # and the graph depth
        mov [rsi + RET_STACK_SESSION], rax      # and the notrace depth
        test r8, r8
        jz 8f
        mov eax, [r8 + RET_STACK_GRAPH_DEPTH]
        mov [rsi + RET_STACK_GRAPH_DEPTH], eax
        mov rax, [r8 + RET_STACK_SESSION]
        mov [rsi + RET_STACK_SESSION], rax
8:
        popfq
        clc
        ret
END ret_node_enter

.data
        .p2align 3
image_memory:                           # what the image has without a hole, RAM included
        .quad 0
image_memory_size:
        .quad 0
image_stacks:                           # the stacks we give it, a slot of a power of two for each CPU
        .quad 0
image_stacks_size:
        .quad 0
image_stack_mask:
        .quad 0

# workload "leaf": tiny functions called in a loop, the worst case for a tracer.

.include "linkage.inc"
.include "percpu.inc"
.include "workload.inc"

.set LEAF_CALLS, 200

# leaf_step(task rdi)
        .p2align 8, 0xcc                # with leaf_mix in one page, or calls cost more than work
FUNC leaf_step
        push rbx
        push r12
        push r13
        push r14
        mov r12, rdi
        mov ebx, LEAF_CALLS
        mov r13, [r12 + TASK_CHECKSUM]
        xor r13, [r12 + TASK_RNG]       # so that no two CPUs compute the same
1:
        mov rdi, r13
        call leaf_mix
        mov r13, rax
        dec ebx
        jnz 1b
        mov [r12 + TASK_CHECKSUM], r13
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END leaf_step

# leaf_mix(x rdi): a leaf of a few instructions.
FUNC leaf_mix
        mov rax, rdi
        imul rax, rax, 3
        rol rax, 5
        xor rax, rdi
        inc rax
        RETURN
END leaf_mix

.set leaf_setup, 0

.rodata
.Lname_leaf:
        .asciz "leaf"
        .p2align 3
workload_list_leaf:
        WORKER leaf, 20
        .quad 0

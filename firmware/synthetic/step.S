# The workload of the kernels named synthetic:N: generated call trees, which lie behind this text
# (kernel/synthetic.py, whence SYNTHETIC_ROOTS and SYNTHETIC_TREES). An iteration is one round: each
# tree once, so each generated function once.

.include "linkage.inc"
.include "percpu.inc"
.include "workload.inc"

# synthetic_step(task rdi): the tree whose turn it is. Like a system call: one root, then all it calls.
FUNC synthetic_step
        push rbx
        push r12
        mov rbx, rdi
        mov rcx, [rbx + TASK_DATA]
        movabs rdx, SYNTHETIC_ROOTS
        mov rdi, [rbx + TASK_RNG]
        call [rdx + rcx * 8]
        mov [rbx + TASK_RNG], rax
        mov rcx, [rbx + TASK_DATA]
        inc rcx
        cmp rcx, SYNTHETIC_TREES
        jb 1f
        xor ecx, ecx
1:
        mov [rbx + TASK_DATA], rcx
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        pop r12
        pop rbx
        RETURN
END synthetic_step

.set synthetic_setup, 0

# late_work(): this kernel has no second wave.
FUNC_NOTRACE late_work
        RETURN
END late_work

.section cpu_initcalls                  # there are none, but init/main.S looks for them
        .p2align 3
.text

.rodata
.Lname_synthetic:
        .asciz "synthetic"
        .p2align 3
workload_list_default:
        WORKER synthetic, SYNTHETIC_TREES
        .quad 0

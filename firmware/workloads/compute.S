# workload "compute": a loop that rarely calls.

.include "linkage.inc"
.include "percpu.inc"
.include "workload.inc"

.set COMPUTE_ROUNDS, 800

# compute_step(task rdi): a few thousand instructions without a call.
FUNC compute_step
        push rbx
        mov rbx, rdi
        mov rax, [rbx + TASK_CHECKSUM]
        mov rdx, [rbx + TASK_RNG]
        mov ecx, COMPUTE_ROUNDS
1:
        imul rax, rax, 31
        add rax, rdx
        rol rdx, 7
        xor rdx, rax
        dec ecx
        jnz 1b
        mov [rbx + TASK_RNG], rdx
        mov [rbx + TASK_CHECKSUM], rax
        pop rbx
        RETURN
END compute_step

.set compute_setup, 0

.rodata
.Lname_compute:
        .asciz "compute"
        .p2align 3
workload_list_compute:
        WORKER compute, 10
        .quad 0

# The worker "crc": long loops without a call, as checksums and encryption are in any kernel.

.include "linkage.inc"
.include "percpu.inc"

.set CRC_BYTES, 1024

# crc_setup(task rdi): its buffer.
FUNC crc_setup
        mov esi, CRC_BYTES
        call steps_alloc
        RETURN
END crc_setup

# crc_fill(buffer rdi, seed rsi): CRC_BYTES of a xorshift sequence. rax = its last word.
FUNC crc_fill
        mov rax, rsi
        mov ecx, CRC_BYTES / 8
1:
        mov rdx, rax
        shr rdx, 12
        xor rax, rdx
        mov rdx, rax
        shl rdx, 25
        xor rax, rdx
        mov rdx, rax
        shr rdx, 27
        xor rax, rdx
        mov [rdi], rax
        add rdi, 8
        dec ecx
        jnz 1b
        RETURN
END crc_fill

# crc_step(task rdi): one buffer, summed byte by byte and four bytes at a time; both must agree.
FUNC crc_step
        push rbx
        push r12
        mov rbx, rdi
        mov rdi, [rbx + TASK_DATA]
        mov rsi, [rbx + TASK_RNG]
        call crc_fill
        mov [rbx + TASK_RNG], rax
        mov edi, 0xffffffff
        mov rsi, [rbx + TASK_DATA]
        mov edx, CRC_BYTES
        call crc32_le
        mov r12d, eax
        mov edi, 0xffffffff
        mov rsi, [rbx + TASK_DATA]
        mov edx, CRC_BYTES
        call crc32_le_slice4
        cmp eax, r12d
        jne 1f
        mov rdi, rbx
        mov esi, eax
        call checksum_fold
        pop r12
        pop rbx
        RETURN
1:
        ud2                             # the two disagree
END crc_step

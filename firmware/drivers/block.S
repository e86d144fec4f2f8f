# What the block drivers share: one open file's image of the disk (see BLOCK_DRIVER).

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

# block_clip(pos, count, bytes): how much of count lies on a disk of that many bytes; 0 behind it.
FUNC block_clip
        xor eax, eax
        sub rdx, rdi
        jbe 1f
        cmp rsi, rdx
        cmova rsi, rdx
        mov rax, rsi
1:      RETURN
END block_clip

# block_read(file, buf, count, ppos, bytes, transfer)
FUNC block_read
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov rbx, rdi
        mov r12, rsi
        mov r14, rcx
        mov r15, r9
        mov rdi, [r14]
        mov rsi, rdx
        mov rdx, r8
        call block_clip
        mov r13, rax
        test rax, rax
        jz 1f
        mov rdi, r12
        mov rsi, [rbx + F_PRIVATE]
        add rsi, [r14]
        mov rdx, r13
        mov rcx, [r14]
        call r15
        add [r14], r13
        mov rax, r13
1:      pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END block_read

# block_write(file, buf, count, ppos, bytes, transfer)
FUNC block_write
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
        mov r14, rcx
        mov r15, r9
        mov rdi, [r14]
        mov rsi, rdx
        mov rdx, r8
        call block_clip
        xchg r13, rax
        test rax, rax
        jz 1f                           # nothing to write
        test r13, r13
        mov rax, E_NOSPC
        jz 1f
        mov rdi, [rbx + F_PRIVATE]
        add rdi, [r14]
        mov rsi, r12
        mov rdx, r13
        mov rcx, [r14]
        call r15
        add [r14], r13
        mov rax, r13
1:      pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END block_write

# transfer_none(dst, src, len, pos)
FUNC transfer_none
        call memcpy
        RETURN
END transfer_none

# transfer_xor(dst, src, len, pos): the loop device's oldest cipher, its own inverse. The key repeats
# on the disk, whatever position a transfer begins at.
FUNC transfer_xor
        mov r8, 0x5a13b7c94ee2680f
        shl ecx, 3
        ror r8, cl                      # by pos modulo 8 bytes
1:      sub rdx, 8
        jb 2f
        mov rax, [rsi]
        xor rax, r8
        mov [rdi], rax
        add rsi, 8
        add rdi, 8
        jmp 1b
2:      add rdx, 8
        jz 4f
3:      mov al, [rsi]
        xor al, r8b
        mov [rdi], al
        ror r8, 8
        inc rsi
        inc rdi
        dec rdx
        jnz 3b
4:      RETURN
END transfer_xor

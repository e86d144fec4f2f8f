# lib/random32.S: pseudo-random numbers whose whole state is a word of the caller's.
#
# xorshift64*: the state must not be 0, or it stays 0.

.include "linkage.inc"

# u64 prandom_u64(u64 *state). Clobbers rcx.
FUNC prandom_u64
        mov rax, [rdi]
        mov rcx, rax
        shr rcx, 12
        xor rax, rcx
        mov rcx, rax
        shl rcx, 25
        xor rax, rcx
        mov rcx, rax
        shr rcx, 27
        xor rax, rcx
        mov [rdi], rax
        mov rcx, 0x2545f4914f6cdd1d
        imul rax, rcx
        RETURN
END prandom_u64

# u32 prandom_u32(u64 *state): the upper half, which is the better one.
FUNC prandom_u32
        call prandom_u64
        shr rax, 32
        RETURN
END prandom_u32

# u32 prandom_u32_max(u64 *state, u32 ceil): below ceil; 0 if ceil is 0. Keeps rsi.
FUNC prandom_u32_max
        call prandom_u32
        mov ecx, esi
        imul rax, rcx
        shr rax, 32
        RETURN
END prandom_u32_max

# void prandom_bytes(u64 *state, void *buf, size_t n): eight bytes from each number.
FUNC prandom_bytes
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
1:      cmp r13, 8
        jb 2f
        mov rdi, rbx
        call prandom_u64
        mov [r12], rax
        add r12, 8
        sub r13, 8
        jmp 1b
2:      test r13, r13
        je 4f
        mov rdi, rbx
        call prandom_u64
3:      mov [r12], al
        shr rax, 8
        inc r12
        dec r13
        jne 3b
4:      pop r13
        pop r12
        pop rbx
        RETURN
END prandom_bytes

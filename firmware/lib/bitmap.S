# lib/bitmap.S: bit operations on arrays of unsigned long, the non-atomic ones: no LOCK prefix,
# the caller keeps others away. C calling convention, any context.

.include "linkage.inc"

# void __set_bit(u64 nr, unsigned long *addr)
FUNC __set_bit
        bts [rsi], rdi
        RETURN
END __set_bit

# void __clear_bit(u64 nr, unsigned long *addr)
FUNC __clear_bit
        btr [rsi], rdi
        RETURN
END __clear_bit

# void __change_bit(u64 nr, unsigned long *addr)
FUNC __change_bit
        btc [rsi], rdi
        RETURN
END __change_bit

# int test_bit(u64 nr, const unsigned long *addr): 0 or 1.
FUNC test_bit
        xor eax, eax
        bt [rsi], rdi
        setc al
        RETURN
END test_bit

# int __test_and_set_bit(u64 nr, unsigned long *addr): what it was, 0 or 1.
FUNC __test_and_set_bit
        xor eax, eax
        bts [rsi], rdi
        setc al
        RETURN
END __test_and_set_bit

# int __test_and_clear_bit(u64 nr, unsigned long *addr): what it was, 0 or 1.
FUNC __test_and_clear_bit
        xor eax, eax
        btr [rsi], rdi
        setc al
        RETURN
END __test_and_clear_bit

# static u64 find_next(const unsigned long *addr, u64 bits, u64 from, u64 invert): the first bit
# >= from that is set in addr[] ^ invert, or bits. invert is 0 or ~0.
FUNC find_next
        cmp rdx, rsi
        jae 3f
        mov r8, rcx                     # invert
        mov ecx, edx
        mov r9, -1
        shl r9, cl                      # in the first word, nothing below from
        and rdx, -64
1:      mov rax, rdx
        shr rax, 3
        mov rax, [rdi+rax]
        xor rax, r8
        and rax, r9
        jne 2f
        mov r9, -1
        add rdx, 64
        cmp rdx, rsi
        jb 1b
        jmp 3f
2:      bsf rax, rax
        add rax, rdx
        cmp rax, rsi
        jb 4f                           # a bit behind the end does not count
3:      mov rax, rsi
4:      RETURN
END find_next

# u64 find_next_bit(const unsigned long *addr, u64 bits, u64 from): or bits if there is none.
FUNC find_next_bit
        xor ecx, ecx
        call find_next
        RETURN
END find_next_bit

# u64 find_next_zero_bit(const unsigned long *addr, u64 bits, u64 from)
FUNC find_next_zero_bit
        mov rcx, -1
        call find_next
        RETURN
END find_next_zero_bit

# u64 find_first_bit(const unsigned long *addr, u64 bits)
FUNC find_first_bit
        xor edx, edx
        call find_next_bit
        RETURN
END find_first_bit

# u64 find_first_zero_bit(const unsigned long *addr, u64 bits)
FUNC find_first_zero_bit
        xor edx, edx
        call find_next_zero_bit
        RETURN
END find_first_zero_bit

# unsigned hweight64(u64 w): bits set in w, without popcnt, which a CPU of 2008 need not have.
# Clobbers rax, rcx, rdx.
FUNC hweight64
        mov rcx, 0x5555555555555555
        mov rax, rdi
        shr rax, 1
        and rax, rcx
        sub rdi, rax                    # pairs
        mov rcx, 0x3333333333333333
        mov rax, rdi
        shr rdi, 2
        and rax, rcx
        and rdi, rcx
        add rax, rdi                    # nibbles
        mov rdx, rax
        shr rdx, 4
        add rax, rdx
        mov rcx, 0x0f0f0f0f0f0f0f0f
        and rax, rcx                    # bytes
        mov rcx, 0x0101010101010101
        imul rax, rcx
        shr rax, 56
        RETURN
END hweight64

# unsigned hweight32(u32 w)
FUNC hweight32
        mov edi, edi
        call hweight64
        RETURN
END hweight32

# u64 bitmap_weight(const unsigned long *addr, u64 bits): how many of the first bits are set.
FUNC bitmap_weight
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        xor r13d, r13d
1:      cmp r12, 64
        jb 2f
        mov rdi, [rbx]
        call hweight64
        add r13, rax
        add rbx, 8
        sub r12, 64
        jmp 1b
2:      test r12, r12
        je 3f
        mov ecx, r12d
        mov rdi, -1
        shl rdi, cl
        not rdi
        and rdi, [rbx]
        call hweight64
        add r13, rax
3:      mov rax, r13
        pop r13
        pop r12
        pop rbx
        RETURN
END bitmap_weight

# void bitmap_zero(unsigned long *addr, u64 bits): whole words.
FUNC bitmap_zero
        lea rdx, [rsi+63]
        shr rdx, 6
        shl rdx, 3
        xor esi, esi
        call memset
        RETURN
END bitmap_zero

# void bitmap_fill(unsigned long *addr, u64 bits): whole words.
FUNC bitmap_fill
        lea rdx, [rsi+63]
        shr rdx, 6
        shl rdx, 3
        mov esi, 0xff
        call memset
        RETURN
END bitmap_fill

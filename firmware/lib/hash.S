# lib/hash.S: hash functions. Pure: any context, C calling convention.

.include "linkage.inc"

.set GOLDEN_RATIO_PRIME_32, 0x9e370001
.set JHASH_GOLDEN_RATIO, 0x9e3779b9

# u64 hash_long(u64 value, unsigned bits): <linux/hash.h> of 2008; 1 <= bits <= 64.
FUNC hash_long
        mov rax, GOLDEN_RATIO_PRIME_64
        imul rax, rdi
        mov ecx, 64
        sub ecx, esi
        shr rax, cl
        RETURN
END hash_long

# u32 hash_32(u32 value, unsigned bits): 1 <= bits <= 32.
FUNC hash_32
        imul eax, edi, GOLDEN_RATIO_PRIME_32
        mov ecx, 32
        sub ecx, esi
        shr eax, cl
        RETURN
END hash_32

# __jhash_mix(eax, ecx, edx): Bob Jenkins's lookup2, as in <linux/jhash.h>.
.macro JHASH_STEP x, y, z, shift, count
        sub \x, \y
        sub \x, \z
        mov r8d, \z
        \shift r8d, \count
        xor \x, r8d
.endm
.macro JHASH_MIX
        JHASH_STEP eax, ecx, edx, shr, 13
        JHASH_STEP ecx, edx, eax, shl, 8
        JHASH_STEP edx, eax, ecx, shr, 13
        JHASH_STEP eax, ecx, edx, shr, 12
        JHASH_STEP ecx, edx, eax, shl, 16
        JHASH_STEP edx, eax, ecx, shr, 5
        JHASH_STEP eax, ecx, edx, shr, 3
        JHASH_STEP ecx, edx, eax, shl, 10
        JHASH_STEP edx, eax, ecx, shr, 15
.endm

# u32 jhash_3words(u32 a, u32 b, u32 c, u32 initval)
FUNC jhash_3words
        add edx, ecx
        mov eax, edi
        mov ecx, esi
        add eax, JHASH_GOLDEN_RATIO
        add ecx, JHASH_GOLDEN_RATIO
        JHASH_MIX
        mov eax, edx
        RETURN
END jhash_3words

# u32 jhash_2words(u32 a, u32 b, u32 initval)
FUNC jhash_2words
        mov ecx, edx
        xor edx, edx
        call jhash_3words
        RETURN
END jhash_2words

# u32 jhash(const void *key, u32 length, u32 initval)
#
# The bytes that are left behind the last dozen are laid out on the stack as jhash adds them:
# a and b take words 0 and 1, c takes its three bytes above the length.
FUNC jhash
        push rbx
        push r12
        mov r10d, esi                   # len, what is left
        mov r9d, esi
        mov r12, rdi
        mov eax, JHASH_GOLDEN_RATIO
        mov ecx, JHASH_GOLDEN_RATIO
1:      cmp r10d, 12
        jb 2f
        add eax, [r12]
        add ecx, [r12+4]
        add edx, [r12+8]
        JHASH_MIX
        add r12, 12
        sub r10d, 12
        jmp 1b
2:      sub rsp, 16
        mov qword ptr [rsp], 0
        mov qword ptr [rsp+8], 0
3:      sub r10d, 1
        jb 4f
        movzx ebx, byte ptr [r12+r10]
        lea r8d, [r10+1]
        cmp r10d, 8
        cmovb r8d, r10d                 # c's lowest byte is the length's
        mov [rsp+r8], bl
        jmp 3b
4:      add eax, [rsp]
        add ecx, [rsp+4]
        add edx, [rsp+8]
        add edx, r9d
        JHASH_MIX
        mov eax, edx
        add rsp, 16
        pop r12
        pop rbx
        RETURN
END jhash

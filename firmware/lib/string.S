# lib/string.S: the str* and mem* routines, with the prototypes of <linux/string.h>.
#
# All follow the C calling convention and keep no state: they run in any context that may touch
# the memory they are given. The direction flag stays clear throughout, also in memmove: an
# interrupt or NMI handler that lands inside must find the flag as the ABI promises it.
# What the prototypes call int comes back sign-extended to 64 bits.

.include "linkage.inc"

# void *memcpy(void *dest, const void *src, size_t count): the areas must not overlap.
FUNC memcpy
        mov rax, rdi
        mov rcx, rdx
        shr rcx, 3
        rep movsq
        mov ecx, edx
        and ecx, 7
        rep movsb
        RETURN
END memcpy

# void *memmove(void *dest, const void *src, size_t count): the areas may overlap.
FUNC memmove
        mov rax, rdi
        mov rcx, rdi
        sub rcx, rsi
        cmp rcx, rdx
        jb 1f                           # src < dest < src + count: copy from the end
        mov rcx, rdx
        rep movsb
        RETURN
1:      test rdx, rdx
        je 2f
        movzx ecx, byte ptr [rsi+rdx-1]
        mov [rdi+rdx-1], cl
        dec rdx
        jmp 1b
2:      RETURN
END memmove

# void *memset(void *s, int c, size_t count)
FUNC memset
        mov r8, rdi
        movzx eax, sil
        mov rcx, 0x0101010101010101
        imul rax, rcx
        mov rcx, rdx
        shr rcx, 3
        rep stosq
        mov ecx, edx
        and ecx, 7
        rep stosb
        mov rax, r8
        RETURN
END memset

# int memcmp(const void *a, const void *b, size_t count): the difference of the first bytes that
# differ.
FUNC memcmp
        xor eax, eax
        xor ecx, ecx
1:      cmp rcx, rdx
        jae 2f
        movzx eax, byte ptr [rdi+rcx]
        movzx r8d, byte ptr [rsi+rcx]
        inc rcx
        sub rax, r8
        je 1b
2:      RETURN
END memcmp

# void *memchr(const void *s, int c, size_t n): where c is, or NULL.
FUNC memchr
        add rdx, rdi
1:      cmp rdi, rdx
        jae 2f
        cmp [rdi], sil
        je 3f
        inc rdi
        jmp 1b
2:      xor edi, edi
3:      mov rax, rdi
        RETURN
END memchr

# void *memscan(void *addr, int c, size_t n): where c is, or addr + n.
FUNC memscan
        lea rax, [rdi+rdx]
1:      cmp rdi, rax
        jae 2f
        cmp [rdi], sil
        je 2f
        inc rdi
        jmp 1b
2:      mov rax, rdi
        RETURN
END memscan

# size_t strlen(const char *s)
FUNC strlen
        mov rax, rdi
1:      cmp byte ptr [rax], 0
        je 2f
        inc rax
        jmp 1b
2:      sub rax, rdi
        RETURN
END strlen

# size_t strnlen(const char *s, size_t count): never reads beyond s[count - 1].
FUNC strnlen
        xor eax, eax
1:      cmp rax, rsi
        jae 2f
        cmp byte ptr [rdi+rax], 0
        je 2f
        inc rax
        jmp 1b
2:      RETURN
END strnlen

# char *strcpy(char *dest, const char *src)
FUNC strcpy
        mov rax, rdi
1:      movzx ecx, byte ptr [rsi]
        mov [rdi], cl
        inc rsi
        inc rdi
        test cl, cl
        jne 1b
        RETURN
END strcpy

# char *strncpy(char *dest, const char *src, size_t count): fills up with NULs; no NUL is added
# when src has count bytes or more.
FUNC strncpy
        mov rax, rdi
        add rdx, rdi
1:      cmp rdi, rdx
        jae 2f
        movzx ecx, byte ptr [rsi]
        mov [rdi], cl
        inc rdi
        cmp cl, 1                       # carry: this was the NUL, stay on it
        sbb rsi, -1
        jmp 1b
2:      RETURN
END strncpy

# size_t strlcpy(char *dest, const char *src, size_t size): strlen(src). dest is always
# terminated, unless size is 0.
FUNC strlcpy
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
        mov rdi, rsi
        call strlen
        test r13, r13
        je 1f
        dec r13
        cmp r13, rax
        cmova r13, rax
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        mov r12, rax
        call memcpy
        mov byte ptr [rbx+r13], 0
        mov rax, r12
1:      pop r13
        pop r12
        pop rbx
        RETURN
END strlcpy

# char *strcat(char *dest, const char *src)
FUNC strcat
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        call strlen
        lea rdi, [rbx+rax]
        mov rsi, r12
        call strcpy
        mov rax, rbx
        pop r12
        pop rbx
        RETURN
END strcat

# size_t strlcat(char *dest, const char *src, size_t count): the length it tried to make.
# count is that of the whole of dest, which must hold a NUL within it.
FUNC strlcat
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
        call strlen
        mov r14, rax
        cmp r14, r13
        jae 1f                          # BUG_ON(dsize >= count)
        lea rdi, [rbx+r14]
        mov rsi, r12
        mov rdx, r13
        sub rdx, r14
        call strlcpy
        add rax, r14
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
1:      ud2
END strlcat

# int strcmp(const char *a, const char *b)
FUNC strcmp
1:      movzx eax, byte ptr [rdi]
        movzx ecx, byte ptr [rsi]
        inc rdi
        inc rsi
        sub rax, rcx
        jne 2f
        test ecx, ecx
        jne 1b
2:      RETURN
END strcmp

# int strncmp(const char *a, const char *b, size_t count)
FUNC strncmp
        xor eax, eax
1:      test rdx, rdx
        je 2f
        movzx eax, byte ptr [rdi]
        movzx ecx, byte ptr [rsi]
        inc rdi
        inc rsi
        dec rdx
        sub rax, rcx
        jne 2f
        test ecx, ecx
        jne 1b
2:      RETURN
END strncmp

# int strcasecmp(const char *a, const char *b)
FUNC strcasecmp
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
1:      movzx edi, byte ptr [rbx]
        call tolower
        mov r13d, eax
        movzx edi, byte ptr [r12]
        call tolower
        inc rbx
        inc r12
        sub r13, rax
        jne 2f
        test eax, eax
        jne 1b
2:      mov rax, r13
        pop r13
        pop r12
        pop rbx
        RETURN
END strcasecmp

# char *strchr(const char *s, int c): the first c, or NULL. c may be the NUL.
FUNC strchr
1:      movzx eax, byte ptr [rdi]
        cmp al, sil
        je 2f
        inc rdi
        test al, al
        jne 1b
        xor edi, edi
2:      mov rax, rdi
        RETURN
END strchr

# char *strrchr(const char *s, int c): the last c, or NULL. c may be the NUL.
FUNC strrchr
        xor eax, eax
1:      movzx ecx, byte ptr [rdi]
        cmp cl, sil
        cmove rax, rdi
        inc rdi
        test cl, cl
        jne 1b
        RETURN
END strrchr

# size_t strspn(const char *s, const char *accept): length of the prefix made of accept's bytes.
FUNC strspn
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdi
1:      movzx esi, byte ptr [r13]
        test esi, esi
        je 2f
        mov rdi, r12
        call strchr
        test rax, rax
        je 2f
        inc r13
        jmp 1b
2:      mov rax, r13
        sub rax, rbx
        pop r13
        pop r12
        pop rbx
        RETURN
END strspn

# char *strstr(const char *s1, const char *s2): where s2 begins in s1, or NULL.
FUNC strstr
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        call strlen
        mov r13, rax
        mov rdi, r12
        call strlen
        mov r14, rax
1:      cmp r13, r14
        jb 2f
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r14
        call memcmp
        test rax, rax
        je 3f
        inc rbx
        dec r13
        jmp 1b
2:      xor ebx, ebx
3:      mov rax, rbx
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END strstr

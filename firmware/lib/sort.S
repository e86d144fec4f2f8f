# lib/sort.S: sorting and searching arrays.
#
# int (*cmp)(const void *a, const void *b) returns below, equal to or above zero in eax;
# void (*swap)(void *a, void *b, size_t size) exchanges two elements. Nothing is allocated. The
# array is the caller's; whoever shares it must lock it.

.include "linkage.inc"

# void u32_swap(void *a, void *b, size_t size)
FUNC u32_swap
        mov eax, [rdi]
        mov ecx, [rsi]
        mov [rdi], ecx
        mov [rsi], eax
        RETURN
END u32_swap

# void u64_swap(void *a, void *b, size_t size)
FUNC u64_swap
        mov rax, [rdi]
        mov rcx, [rsi]
        mov [rdi], rcx
        mov [rsi], rax
        RETURN
END u64_swap

# void generic_swap(void *a, void *b, size_t size)
FUNC generic_swap
        xor r8d, r8d
1:      cmp r8, rdx
        jae 2f
        movzx eax, byte ptr [rdi+r8]
        movzx ecx, byte ptr [rsi+r8]
        mov [rdi+r8], cl
        mov [rsi+r8], al
        inc r8
        jmp 1b
2:      RETURN
END generic_swap

# int cmp_u32(const u32 *a, const u32 *b)
FUNC cmp_u32
        xor eax, eax
        mov ecx, [rdi]
        cmp ecx, [rsi]
        seta al
        sbb eax, 0                      # seta left the borrow alone
        RETURN
END cmp_u32

# int cmp_u64(const u64 *a, const u64 *b)
FUNC cmp_u64
        xor eax, eax
        mov rcx, [rdi]
        cmp rcx, [rsi]
        seta al
        sbb eax, 0
        RETURN
END cmp_u64

# swap_func_t default_swap(size_t size): the swap for elements of this size.
FUNC default_swap
        lea rax, [rip+generic_swap]
        lea rcx, [rip+u32_swap]
        cmp rdi, 4
        cmove rax, rcx
        lea rcx, [rip+u64_swap]
        cmp rdi, 8
        cmove rax, rcx
        RETURN
END default_swap

# static void sift_down(void *base, size_t r, size_t n, size_t size, cmp, swap): restore the heap
# of n bytes below its element at byte r, whose children are heaps already.
FUNC sift_down
        push rbx
        push r12
        push r13
        push r14
        push r15
        sub rsp, 24                     # [rsp] size, [rsp+8] swap
        mov rbx, rdi
        mov r12, rsi                    # r
        mov r13, rdx                    # n
        mov [rsp], rcx
        mov r14, r8
        mov [rsp+8], r9
1:      lea r15, [r12*2]
        add r15, [rsp]                  # c, the left child
        cmp r15, r13
        jae 3f
        mov rsi, r15
        add rsi, [rsp]
        cmp rsi, r13
        jae 2f                          # no right one
        lea rdi, [rbx+r15]
        add rsi, rbx
        call r14
        test eax, eax
        jns 2f
        add r15, [rsp]                  # the right one is larger
2:      lea rdi, [rbx+r12]
        lea rsi, [rbx+r15]
        call r14
        test eax, eax
        jns 3f
        lea rdi, [rbx+r12]
        lea rsi, [rbx+r15]
        mov rdx, [rsp]
        call [rsp+8]
        mov r12, r15
        jmp 1b
3:      add rsp, 24
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END sift_down

# void sort(void *base, size_t num, size_t size, cmp, swap): heapsort, as lib/sort.c does it: no
# recursion and no worst case. swap may be NULL.
FUNC sort
        push rbx
        push r12
        push r13
        push r14
        push r15
        sub rsp, 24                     # [rsp] swap, [rsp+8] n, num in bytes
        mov rbx, rdi
        mov r12, rdx                    # size
        mov r13, rcx                    # cmp
        mov [rsp], r8
        mov r14, rsi                    # i
        imul rsi, rdx
        mov [rsp+8], rsi
        cmp r14, 2
        jb 4f
        test r8, r8
        jne 1f
        mov rdi, rdx
        call default_swap
        mov [rsp], rax
1:      shr r14, 1                      # heapify, from the last parent down
        imul r14, r12
2:      sub r14, r12
        mov rdi, rbx
        mov rsi, r14
        mov rdx, [rsp+8]
        mov rcx, r12
        mov r8, r13
        mov r9, [rsp]
        call sift_down
        test r14, r14
        jne 2b
        mov r14, [rsp+8]                # sort: the largest goes behind the heap
3:      sub r14, r12
        je 4f
        mov rdi, rbx
        lea rsi, [rbx+r14]
        mov rdx, r12
        call [rsp]
        mov rdi, rbx
        xor esi, esi
        mov rdx, r14
        mov rcx, r12
        mov r8, r13
        mov r9, [rsp]
        call sift_down
        jmp 3b
4:      add rsp, 24
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END sort

# void insertion_sort(void *base, size_t num, size_t size, cmp, swap): stable; the faster one for a
# handful of elements. swap may be NULL.
FUNC insertion_sort
        push rbx
        push r12
        push r13
        push r14
        push r15
        sub rsp, 24                     # [rsp] swap, [rsp+8] base, [rsp+16] end
        mov [rsp+8], rdi
        mov r12, rdx                    # size
        mov r13, rcx                    # cmp
        mov [rsp], r8
        imul rsi, rdx
        add rsi, rdi
        mov [rsp+16], rsi
        mov rbx, rdi                    # what is below it is sorted
        test r8, r8
        jne 1f
        mov rdi, rdx
        call default_swap
        mov [rsp], rax
1:      add rbx, r12
        cmp rbx, [rsp+16]
        jae 3f
        mov r14, rbx                    # the element on its way down
2:      mov r15, r14
        sub r15, r12
        mov rdi, r15
        mov rsi, r14
        call r13
        test eax, eax
        jle 1b
        mov rdi, r15
        mov rsi, r14
        mov rdx, r12
        call [rsp]
        mov r14, r15
        cmp r14, [rsp+8]
        jne 2b
        jmp 1b
3:      add rsp, 24
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END insertion_sort

# void *bsearch(const void *key, const void *base, size_t num, size_t size, cmp): an element that
# cmp(key, element) finds equal, or NULL. base is sorted.
FUNC bsearch
        push rbx
        push r12
        push r13
        push r14
        push r15
        sub rsp, 8
        mov rbx, rdi
        mov r12, rsi                    # base of the part that is left
        mov r13, rdx                    # its elements
        mov r14, rcx
        mov [rsp], r8
1:      xor eax, eax
        test r13, r13
        je 3f
        mov r15, r13
        shr r15, 1
        imul r15, r14
        add r15, r12                    # the middle one
        mov rdi, rbx
        mov rsi, r15
        call [rsp]
        test eax, eax
        je 2f
        js 4f                           # num / 2 are left below, (num - 1) / 2 above
        lea r12, [r15+r14]
        dec r13
4:      shr r13, 1
        jmp 1b
2:      mov rax, r15
3:      add rsp, 8
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END bsearch

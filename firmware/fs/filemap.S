# The page cache of an inode, and reading and writing through it (mm/filemap.c).
# One page at a time is looked up and copied with preemption off, where Linux locks the page.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

# find_get_page(inode, index): rax = the page, or 0.
FUNC find_get_page
        xor eax, eax
        cmp rsi, PAGES_PER_INODE
        jae 1f
        mov rax, [rdi + rsi*8 + I_PAGES]
1:      RETURN
END find_get_page

# add_to_page_cache(page, inode, index): there is none at that index yet.
FUNC add_to_page_cache
        mov [rsi + rdx*8 + I_PAGES], rdi
        inc qword ptr [rsi + I_NRPAGES]
        RETURN
END add_to_page_cache

# remove_from_page_cache(inode, index): rax = the page that was there, or 0.
FUNC remove_from_page_cache
        mov rax, [rdi + rsi*8 + I_PAGES]
        test rax, rax
        jz 1f
        mov qword ptr [rdi + rsi*8 + I_PAGES], 0
        dec qword ptr [rdi + I_NRPAGES]
1:      RETURN
END remove_from_page_cache

# page_cache_alloc(inode, index): rax = a new zeroed page in the cache, -EFBIG or -ENOSPC.
FUNC page_cache_alloc
        push rbx
        push r12
        push r13
        mov r12, rdi
        mov r13, rsi
        mov rax, E_FBIG
        cmp rsi, PAGES_PER_INODE
        jae 1f
        call alloc_page
        mov rbx, rax
        test rax, rax
        mov rax, E_NOSPC
        jz 1f
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        call add_to_page_cache
        mov rax, rbx
1:      pop r13
        pop r12
        pop rbx
        RETURN
END page_cache_alloc

# truncate_partial_page(inode, from): zeroes the page that holds from, from there on, lest a file
# that grows again show what it held before.
FUNC truncate_partial_page
        push rbx
        mov rbx, rsi
        shr rsi, 12
        call find_get_page
        test rax, rax
        jz 1f
        and ebx, PAGE_SIZE - 1
        lea rdi, [rax + rbx]
        xor esi, esi
        mov edx, PAGE_SIZE
        sub edx, ebx
        call memset
1:      pop rbx
        RETURN
END truncate_partial_page

# truncate_inode_pages(inode, from): frees what lies wholly behind byte from.
FUNC truncate_inode_pages
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r13, rsi
        PREEMPT_DISABLE
        lea r12, [r13 + PAGE_SIZE - 1]
        shr r12, 12
        test r13d, PAGE_SIZE - 1
        jz 1f
        call truncate_partial_page
1:      cmp qword ptr [rbx + I_NRPAGES], 0
        je 3f
        cmp r12, PAGES_PER_INODE
        jae 3f
        mov rdi, rbx
        mov rsi, r12
        call remove_from_page_cache
        test rax, rax
        jz 2f
        mov rdi, rax
        call free_page
2:      inc r12
        jmp 1b
3:      PREEMPT_ENABLE
        pop r13
        pop r12
        pop rbx
        RETURN
END truncate_inode_pages

# vmtruncate(inode, new_size): 0, or -EFBIG. The file system frees the pages.
FUNC vmtruncate
        mov rax, E_FBIG
        cmp rsi, MAX_LFS_FILESIZE
        ja 2f
        PREEMPT_DISABLE                 # no reader between size and pages
        mov [rdi + I_SIZE], rsi
        mov rcx, [rdi + I_OP]
        mov rcx, [rcx + IOP_TRUNCATE]
        test rcx, rcx
        jz 1f
        call rcx
1:      PREEMPT_ENABLE
        xor eax, eax
2:      RETURN
END vmtruncate

# file_read_page(inode, buf, count, pos): copies from one page; rax = bytes, 0 at the end of the
# file, or an error. Preemption is off.
FUNC file_read_page
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r14, rcx
        xor eax, eax
        mov r13, [rbx + I_SIZE]
        sub r13, r14
        jbe 2f
        cmp r13, rdx
        cmova r13, rdx
        and ecx, PAGE_SIZE - 1
        mov eax, PAGE_SIZE
        sub eax, ecx
        cmp r13, rax
        cmova r13, rax                  # min(count, rest of the file, rest of the page)
        mov rsi, r14
        shr rsi, 12
        call find_get_page
        test rax, rax
        jnz 1f
        mov rdi, rbx                    # a hole
        mov rsi, r14
        shr rsi, 12
        mov rax, [rbx + I_AOP]
        call qword ptr [rax + AOP_READPAGE]
        JUMP_IF_ERR rax, 2f
1:      and r14d, PAGE_SIZE - 1
        lea rsi, [rax + r14]
        mov rdi, r12
        mov rdx, r13
        call memcpy
        mov rax, r13
2:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END file_read_page

# generic_file_read(file, buf, count, ppos)
FUNC generic_file_read
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov rbx, [rdi + F_DENTRY]
        mov rbx, [rbx + D_INODE]
        mov r12, rsi
        mov r13, rdx
        mov r14, rcx
        xor r15d, r15d
1:      xor eax, eax
        test r13, r13
        jz 2f
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        mov rcx, [r14]
        PREEMPT_DISABLE
        call file_read_page
        PREEMPT_ENABLE
        test rax, rax
        jle 2f
        add r12, rax
        sub r13, rax
        add r15, rax
        add [r14], rax
        call cond_resched
        jmp 1b
2:      test r15, r15
        cmovnz rax, r15                 # an error shows only if nothing was read
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END generic_file_read

# file_write_page(inode, buf, count, pos): copies into one page; rax = bytes or an error.
# Preemption is off.
FUNC file_write_page
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r14, rcx
        mov r13d, PAGE_SIZE
        and ecx, PAGE_SIZE - 1
        sub r13d, ecx
        cmp r13, rdx
        cmova r13, rdx                  # min(count, rest of the page)
        mov rsi, r14
        shr rsi, 12
        mov rax, [rbx + I_AOP]
        call qword ptr [rax + AOP_WRITE_BEGIN]
        JUMP_IF_ERR rax, 1f
        mov rcx, r14
        and ecx, PAGE_SIZE - 1
        lea rdi, [rax + rcx]
        mov rsi, r12
        mov rdx, r13
        call memcpy
        mov rdi, rbx
        mov rsi, r14
        mov rdx, r13
        mov rax, [rbx + I_AOP]
        call qword ptr [rax + AOP_WRITE_END]
        mov rax, r13
1:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END file_write_page

# generic_file_write(file, buf, count, ppos): with O_APPEND at the end, wherever that is now.
FUNC generic_file_write
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov rbx, [rdi + F_DENTRY]
        mov rbx, [rbx + D_INODE]
        mov r12, rsi
        mov r13, rdx
        mov r14, rcx
        xor r15d, r15d
        test dword ptr [rdi + F_FLAGS], O_APPEND
        jz 1f
        mov rax, [rbx + I_SIZE]
        mov [r14], rax
1:      xor eax, eax
        test r13, r13
        jz 2f
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        mov rcx, [r14]
        PREEMPT_DISABLE
        call file_write_page
        PREEMPT_ENABLE
        test rax, rax
        jle 2f
        add r12, rax
        sub r13, rax
        add r15, rax
        add [r14], rax
        call cond_resched
        jmp 1b
2:      test r15, r15
        cmovnz rax, r15                 # an error shows only if nothing was written
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END generic_file_write

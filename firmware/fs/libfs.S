# What simple in-memory file systems share.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

# simple_empty(dentry): 1 if the directory holds nothing.
FUNC simple_empty
        xor eax, eax
        cmp qword ptr [rdi + D_SUBDIRS], 0
        sete al
        RETURN
END simple_empty

# simple_unlink(dir, dentry): one link less, and the dentry is pinned no more. Its caller holds it.
FUNC simple_unlink
        mov rax, [rsi + D_INODE]
        dec qword ptr [rax + I_NLINK]
        mov rdi, rsi
        call dput
        xor eax, eax
        RETURN
END simple_unlink

# simple_rmdir(dir, dentry): -ENOTEMPTY if something is in it.
FUNC simple_rmdir
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rdi, rsi
        call simple_empty
        test eax, eax
        mov rax, E_NOTEMPTY
        jz 1f
        mov rax, [r12 + D_INODE]
        dec qword ptr [rax + I_NLINK]   # its own "."
        mov rdi, rbx
        mov rsi, r12
        call simple_unlink
        dec qword ptr [rbx + I_NLINK]   # its ".."
        xor eax, eax
1:      pop r12
        pop rbx
        RETURN
END simple_rmdir

# simple_get_page(inode, index): rax = the page, new and zero if there was none, or an error.
FUNC simple_get_page
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        call find_get_page
        test rax, rax
        jnz 1f
        mov rdi, rbx
        mov rsi, r12
        call page_cache_alloc
1:      pop r12
        pop rbx
        RETURN
END simple_get_page

.section .rodata
.p2align 3
simple_dir_operations:
        .quad 0, 0, 0, 0, 0, 0, 0

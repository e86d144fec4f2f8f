# open() and close().

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

# do_truncate(dentry, new_size): of a regular file.
FUNC do_truncate
        mov rdi, [rdi + D_INODE]
        call vmtruncate
        RETURN
END do_truncate

# __dentry_open(dentry, flags): rax = an open file, which takes over the reference to dentry, or
# an error: then the reference is dropped.
FUNC __dentry_open
        push rbx
        push r12
        push r13
        mov r12, rdi
        mov r13, rsi
        call get_empty_filp
        mov rbx, rax
        test rax, rax
        mov rax, E_NOMEM
        jz 3f
        mov [rbx + F_FLAGS], r13
        lea ecx, [r13 + 1]              # O_RDONLY, O_WRONLY, O_RDWR: read, write, both
        and ecx, O_ACCMODE
        mov [rbx + F_MODE], rcx
        mov [rbx + F_DENTRY], r12
        mov rdi, [r12 + D_INODE]
        mov rcx, [rdi + I_FOP]
        mov [rbx + F_OP], rcx
        mov rcx, [rcx + FOP_OPEN]
        test rcx, rcx
        jz 1f
        mov rsi, rbx
        call rcx
        test rax, rax
        jnz 2f
1:      mov rax, rbx
        jmp 4f
2:      mov r13, rax
        mov rdi, rbx
        call file_free
        mov rax, r13
3:      mov rbx, rax
        mov rdi, r12
        call dput
        mov rax, rbx
4:      pop r13
        pop r12
        pop rbx
        RETURN
END __dentry_open

# filp_open(path, flags, mode): rax = an open file or an error.
FUNC filp_open
        push rbx
        mov rbx, rsi
        call open_namei
        JUMP_IF_ERR rax, 1f
        mov rdi, rax
        mov rsi, rbx
        call __dentry_open
1:      pop rbx
        RETURN
END filp_open

# filp_close(file): what close() does to a file.
FUNC filp_close
        call fput
        xor eax, eax
        RETURN
END filp_close

# do_sys_open(path, flags, mode): rax = a descriptor or an error.
FUNC do_sys_open
        push rbx
        push r12
        push r13
        push r14
        mov r12, rdi
        mov r13, rsi
        mov r14, rdx
        call get_unused_fd
        JUMP_IF_ERR rax, 2f
        mov rbx, rax
        mov rdi, r12
        mov rsi, r13
        mov rdx, r14
        call filp_open
        JUMP_IF_ERR rax, 1f
        mov rdi, rbx
        mov rsi, rax
        call fd_install
        mov rax, rbx
        jmp 2f
1:      mov r12, rax
        mov rdi, rbx
        call put_unused_fd
        mov rax, r12
2:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END do_sys_open

# sys_open(path, flags, mode)
FUNC sys_open
        call do_sys_open
        RETURN
END sys_open

# sys_creat(path, mode)
FUNC sys_creat
        mov rdx, rsi
        mov esi, O_CREAT | O_WRONLY | O_TRUNC
        call sys_open
        RETURN
END sys_creat

# sys_close(fd)
FUNC sys_close
        push rbx
        push r12
        mov rbx, rdi
        call fcheck
        mov r12, rax
        test rax, rax
        mov rax, E_BADF
        jz 1f
        mov rdi, rbx
        xor esi, esi
        call fd_install
        mov rdi, rbx
        call put_unused_fd
        mov rdi, r12
        call filp_close
1:      pop r12
        pop rbx
        RETURN
END sys_close

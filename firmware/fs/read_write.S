# read(), write() and lseek(): from descriptor to file operation.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

# rw_verify_area(pos, count): 0, or -EINVAL for a count or a position that is negative.
FUNC rw_verify_area
        xor eax, eax
        or rdi, rsi
        jns 1f
        mov rax, E_INVAL
1:      RETURN
END rw_verify_area

# vfs_read(file, buf, count, ppos)
FUNC vfs_read
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
        mov r14, rcx
        mov rax, E_BADF
        test dword ptr [rbx + F_MODE], FMODE_READ
        jz 1f
        mov rax, E_INVAL
        mov rcx, [rbx + F_OP]
        cmp qword ptr [rcx + FOP_READ], 0
        je 1f
        mov rdi, [r14]
        mov rsi, r13
        call rw_verify_area
        test rax, rax
        jnz 1f
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        mov rcx, r14
        mov rax, [rbx + F_OP]
        call qword ptr [rax + FOP_READ]
1:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END vfs_read

# vfs_write(file, buf, count, ppos)
FUNC vfs_write
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
        mov r14, rcx
        mov rax, E_BADF
        test dword ptr [rbx + F_MODE], FMODE_WRITE
        jz 1f
        mov rax, E_INVAL
        mov rcx, [rbx + F_OP]
        cmp qword ptr [rcx + FOP_WRITE], 0
        je 1f
        mov rdi, [r14]
        mov rsi, r13
        call rw_verify_area
        test rax, rax
        jnz 1f
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        mov rcx, r14
        mov rax, [rbx + F_OP]
        call qword ptr [rax + FOP_WRITE]
1:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END vfs_write

# sys_read(fd, buf, count): the file's position moves by what was read.
FUNC sys_read
        push rbx
        push r12
        push r13
        sub rsp, 8                      # pos: the operation changes a copy
        mov r12, rsi
        mov r13, rdx
        call fget
        mov rbx, rax
        test rax, rax
        mov rax, E_BADF
        jz 1f
        mov rcx, [rbx + F_POS]
        mov [rsp], rcx
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        mov rcx, rsp
        call vfs_read
        mov r12, rax
        mov rcx, [rsp]
        mov [rbx + F_POS], rcx
        mov rdi, rbx
        call fput
        mov rax, r12
1:      add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
END sys_read

# sys_write(fd, buf, count)
FUNC sys_write
        push rbx
        push r12
        push r13
        sub rsp, 8
        mov r12, rsi
        mov r13, rdx
        call fget
        mov rbx, rax
        test rax, rax
        mov rax, E_BADF
        jz 1f
        mov rcx, [rbx + F_POS]
        mov [rsp], rcx
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        mov rcx, rsp
        call vfs_write
        mov r12, rax
        mov rcx, [rsp]
        mov [rbx + F_POS], rcx
        mov rdi, rbx
        call fput
        mov rax, r12
1:      add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
END sys_write

# generic_file_llseek(file, offset, whence): rax = the new position, anywhere up to the largest
# size of a file, or -EINVAL.
FUNC generic_file_llseek
        cmp rdx, SEEK_SET
        je 3f
        cmp rdx, SEEK_CUR
        je 1f
        cmp rdx, SEEK_END
        jne 4f
        mov rcx, [rdi + F_DENTRY]
        mov rcx, [rcx + D_INODE]
        add rsi, [rcx + I_SIZE]
        jmp 3f
1:      add rsi, [rdi + F_POS]
3:      cmp rsi, MAX_LFS_FILESIZE
        ja 4f                           # or negative
        mov [rdi + F_POS], rsi
        mov rax, rsi
        jmp 5f
4:      mov rax, E_INVAL
5:      RETURN
END generic_file_llseek

# no_llseek(file, offset, whence)
FUNC no_llseek
        mov rax, E_SPIPE
        RETURN
END no_llseek

# vfs_llseek(file, offset, whence)
FUNC vfs_llseek
        lea rax, [rip + no_llseek]
        mov rcx, [rdi + F_OP]
        mov rcx, [rcx + FOP_LLSEEK]
        test rcx, rcx
        cmovnz rax, rcx
        call rax
        RETURN
END vfs_llseek

# sys_lseek(fd, offset, whence)
FUNC sys_lseek
        push rbx
        push r12
        push r13
        mov r12, rsi
        mov r13, rdx
        call fget
        mov rbx, rax
        test rax, rax
        mov rax, E_BADF
        jz 1f
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        call vfs_llseek
        mov r12, rax
        mov rdi, rbx
        call fput
        mov rax, r12
1:      pop r13
        pop r12
        pop rbx
        RETURN
END sys_lseek

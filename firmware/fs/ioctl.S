# ioctl().

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

# vfs_ioctl(file, cmd, arg): -ENOTTY for a file that knows no ioctl.
FUNC vfs_ioctl
        mov r8, rdi
        mov rcx, rdx
        mov rdx, rsi
        mov rax, E_NOTTY
        mov r9, [r8 + F_OP]
        mov r9, [r9 + FOP_IOCTL]
        test r9, r9
        jz 1f
        mov rdi, [r8 + F_DENTRY]
        mov rdi, [rdi + D_INODE]
        mov rsi, r8
        call r9
1:      RETURN
END vfs_ioctl

# sys_ioctl(fd, cmd, arg)
FUNC sys_ioctl
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
        call vfs_ioctl
        mov r12, rax
        mov rdi, rbx
        call fput
        mov rax, r12
1:      pop r13
        pop r12
        pop rbx
        RETURN
END sys_ioctl

# ramfs: files live in the page cache, names in the dcache, and nowhere else. Each CPU has its own.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

.percpu root_dentry, 8                  # current->fs->root, for every task of this CPU

# ramfs_get_inode(mode, rdev): rax = an inode set up for what mode says it is, or 0.
FUNC ramfs_get_inode
        push rbx
        push r12
        push r13
        mov r12, rdi
        mov r13, rsi
        call new_inode
        test rax, rax
        jz 3f
        mov rbx, rax
        mov [rbx + I_MODE], r12
        lea rax, [rip + ramfs_aops]
        mov [rbx + I_AOP], rax
        mov eax, r12d
        and eax, S_IFMT
        cmp eax, S_IFDIR
        je 1f
        lea rcx, [rip + ramfs_file_inode_operations]
        mov [rbx + I_OP], rcx
        lea rcx, [rip + ramfs_file_operations]
        mov [rbx + I_FOP], rcx
        cmp eax, S_IFREG
        je 2f
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        call init_special_inode
        jmp 2f
1:      lea rcx, [rip + ramfs_dir_inode_operations]
        mov [rbx + I_OP], rcx
        lea rcx, [rip + simple_dir_operations]
        mov [rbx + I_FOP], rcx
        inc qword ptr [rbx + I_NLINK]   # directories begin with two: "."
2:      mov rax, rbx
3:      pop r13
        pop r12
        pop rbx
        RETURN
END ramfs_get_inode

# ramfs_mknod(dir, dentry, mode, rdev): 0 or -ENOSPC. The dentry gets an inode and is pinned.
FUNC ramfs_mknod
        push rbx
        mov rbx, rsi
        mov rdi, rdx
        mov rsi, rcx
        call ramfs_get_inode
        mov rsi, rax
        test rax, rax
        mov rax, E_NOSPC
        jz 1f
        mov rdi, rbx
        call d_instantiate
        mov rdi, rbx
        call dget
        mov rdi, rbx
        call d_rehash
        xor eax, eax
1:      pop rbx
        RETURN
END ramfs_mknod

# ramfs_create(dir, dentry, mode)
FUNC ramfs_create
        or edx, S_IFREG
        xor ecx, ecx
        call ramfs_mknod
        RETURN
END ramfs_create

# ramfs_mkdir(dir, dentry, mode)
FUNC ramfs_mkdir
        push rbx
        mov rbx, rdi
        or edx, S_IFDIR
        xor ecx, ecx
        call ramfs_mknod
        test rax, rax
        jnz 1f
        inc qword ptr [rbx + I_NLINK]   # the new directory's ".."
1:      pop rbx
        RETURN
END ramfs_mkdir

# ramfs_readpage(inode, index): a hole is made of zeroes.
FUNC ramfs_readpage
        call simple_get_page
        RETURN
END ramfs_readpage

# ramfs_write_begin(inode, index): rax = the page to write to, or an error.
FUNC ramfs_write_begin
        call simple_get_page
        RETURN
END ramfs_write_begin

# ramfs_write_end(inode, pos, copied): the file may have grown.
FUNC ramfs_write_end
        add rsi, rdx
        cmp [rdi + I_SIZE], rsi
        jae 1f
        mov [rdi + I_SIZE], rsi
1:      RETURN
END ramfs_write_end

# ramfs_truncate(inode): I_SIZE says what is left.
FUNC ramfs_truncate
        mov rsi, [rdi + I_SIZE]
        call truncate_inode_pages
        RETURN
END ramfs_truncate

# ramfs_fill_super(): rax = a new root, or 0.
FUNC ramfs_fill_super
        mov edi, S_IFDIR | 0x1ed
        xor esi, esi
        call ramfs_get_inode
        test rax, rax
        jz 1f
        mov rdi, rax
        call d_alloc_root
1:      RETURN
END ramfs_fill_super

# init_rootfs(): 0 or -ENOMEM.
FUNC init_rootfs
        call ramfs_fill_super
        mov rcx, rax
        test rcx, rcx
        mov rax, E_NOMEM
        jz 1f
        mov gs:[root_dentry], rcx
        xor eax, eax
1:      RETURN
END init_rootfs

# mnt_init(): mounts this CPU's root.
FUNC mnt_init
        call init_rootfs
        test rax, rax
        jz 1f
        lea rdi, [rip + .Lno_root]
        call panic
1:      RETURN
END mnt_init

# default_rootfs(): what an empty root begins with.
FUNC default_rootfs
        lea rdi, [rip + .Ldev_path]
        mov esi, 0x1ed
        call sys_mkdir
        RETURN
END default_rootfs

.section .rodata
.Lno_root: .asciz "VFS: Unable to mount root fs"
.Ldev_path: .asciz "/dev"
.p2align 3
ramfs_aops:
        .quad ramfs_readpage, ramfs_write_begin, ramfs_write_end
ramfs_file_operations:
        .quad generic_file_llseek, generic_file_read, generic_file_write, 0, 0, 0, 0
ramfs_file_inode_operations:
        .quad 0, 0, 0, 0, 0, ramfs_truncate
ramfs_dir_inode_operations:
        .quad ramfs_create, simple_unlink, ramfs_mkdir, simple_rmdir, ramfs_mknod, 0

# From path names to dentries, and what changes a directory. All paths begin at the root.
# A look-up and the change that follows from it happen with preemption off, where Linux holds the
# directory's i_mutex.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

# component_len(name): bytes up to the next slash or the end.
FUNC component_len
        mov rax, rdi
1:      cmp byte ptr [rax], 0
        je 2f
        cmp byte ptr [rax], '/'
        je 2f
        inc rax
        jmp 1b
2:      sub rax, rdi
        RETURN
END component_len

# skip_slashes(name): rax = what follows them.
FUNC skip_slashes
        mov rax, rdi
        jmp 2f
1:      inc rax
2:      cmp byte ptr [rax], '/'
        je 1b
        RETURN
END skip_slashes

# last_type(name, len): LAST_DOT, LAST_DOTDOT or LAST_NORM.
FUNC last_type
        mov eax, LAST_NORM
        cmp byte ptr [rdi], '.'
        jne 2f
        cmp rsi, 2
        ja 2f
        je 1f
        mov eax, LAST_DOT
        jmp 2f
1:      cmp byte ptr [rdi + 1], '.'
        jne 2f
        mov eax, LAST_DOTDOT
2:      RETURN
END last_type

# is_dir(dentry): 1 if it is a directory.
FUNC is_dir
        xor eax, eax
        mov rcx, [rdi + D_INODE]
        mov edx, [rcx + I_MODE]
        and edx, S_IFMT
        cmp edx, S_IFDIR
        sete al
        RETURN
END is_dir

# follow_dotdot(nd)
FUNC follow_dotdot
        push rbx
        mov rbx, rdi
        mov rdi, [rbx + ND_DENTRY]
        mov rdi, [rdi + D_PARENT]
        call dget
        mov rdi, [rbx + ND_DENTRY]
        mov [rbx + ND_DENTRY], rax
        call dput
        pop rbx
        RETURN
END follow_dotdot

# lookup_hash(nd): rax = the dentry that ND_LAST names in ND_DENTRY, with a reference, or 0.
FUNC lookup_hash
        mov rsi, [rdi + ND_LAST]
        mov rdx, [rdi + ND_LEN]
        mov rcx, [rdi + ND_HASH]
        mov rdi, [rdi + ND_DENTRY]
        call d_lookup
        RETURN
END lookup_hash

# do_lookup(nd): steps into the component that ND_LAST names; 0 or -ENOENT.
FUNC do_lookup
        push rbx
        mov rbx, rdi
        mov rax, [rbx + ND_LAST_TYPE]
        cmp rax, LAST_DOT
        je 2f
        cmp rax, LAST_DOTDOT
        je 1f
        call lookup_hash
        mov rdi, [rbx + ND_DENTRY]
        mov rcx, rax
        test rax, rax
        mov rax, E_NOENT
        jz 3f
        mov [rbx + ND_DENTRY], rcx
        call dput
        jmp 2f
1:      call follow_dotdot
2:      xor eax, eax
3:      pop rbx
        RETURN
END do_lookup

# set_last(nd, name): stores the component that begins at name; 0 or -ENAMETOOLONG.
FUNC set_last
        push rbx
        mov rbx, rdi
        mov [rbx + ND_LAST], rsi
        mov rdi, rsi
        call component_len
        mov [rbx + ND_LEN], rax
        cmp rax, NAME_MAX
        mov rax, E_NAMETOOLONG
        ja 1f
        mov rdi, [rbx + ND_LAST]
        mov rsi, [rbx + ND_LEN]
        call last_type
        mov [rbx + ND_LAST_TYPE], rax
        mov rdi, [rbx + ND_LAST]
        mov rsi, [rbx + ND_LEN]
        call full_name_hash
        mov [rbx + ND_HASH], rax
        xor eax, eax
1:      pop rbx
        RETURN
END set_last

# link_path_walk(name, nd, flags): walks from ND_DENTRY; 0 or an error. Either way ND_DENTRY holds
# a reference, to where the walk ended.
FUNC link_path_walk
        push rbx
        push r12
        push r13
        mov rbx, rsi
        mov r13, rdx
        mov qword ptr [rbx + ND_LAST_TYPE], LAST_ROOT
        call skip_slashes
        mov r12, rax
1:      cmp byte ptr [r12], 0
        je 2f
        mov rdi, [rbx + ND_DENTRY]
        call is_dir
        test eax, eax
        mov rax, E_NOTDIR
        jz 3f
        mov rdi, rbx
        mov rsi, r12
        call set_last
        test rax, rax
        jnz 3f
        add r12, [rbx + ND_LEN]
        mov rdi, r12
        call skip_slashes
        mov r12, rax
        cmp byte ptr [r12], 0
        jne 4f
        test r13d, LOOKUP_PARENT
        jnz 2f
4:      mov rdi, rbx
        call do_lookup
        test rax, rax
        jz 1b
        jmp 3f
2:      xor eax, eax
3:      pop r13
        pop r12
        pop rbx
        RETURN
END link_path_walk

# path_lookup(name, flags, nd): 0, then the caller drops the reference in ND_DENTRY, or an error.
FUNC path_lookup
        push rbx
        push r12
        mov rbx, rdx
        mov rax, E_NOENT
        cmp byte ptr [rdi], 0
        je 1f
        mov rdx, rsi
        mov rsi, rdi
        mov rdi, gs:[root_dentry]
        mov r12, rsi
        call dget
        mov [rbx + ND_DENTRY], rax
        mov rdi, r12
        mov rsi, rbx
        call link_path_walk
        test rax, rax
        jz 1f
        mov r12, rax
        mov rdi, rbx
        call path_put
        mov rax, r12
1:      pop r12
        pop rbx
        RETURN
END path_lookup

# path_put(nd): drops the reference in ND_DENTRY.
FUNC path_put
        mov rdi, [rdi + ND_DENTRY]
        call dput
        RETURN
END path_put

# may_open(dentry, flags): 0 or -EISDIR; a directory is only good for reading.
FUNC may_open
        push rbx
        mov rbx, rsi
        call is_dir
        test eax, eax
        mov eax, 0
        jz 1f
        test ebx, O_ACCMODE | O_CREAT | O_TRUNC
        jz 1f
        mov rax, E_ISDIR
1:      pop rbx
        RETURN
END may_open

# may_truncate(dentry, flags): 1 if open() is to empty the file.
FUNC may_truncate
        xor eax, eax
        test esi, O_TRUNC
        jz 1f
        test esi, O_ACCMODE
        jz 1f
        mov rcx, [rdi + D_INODE]
        mov ecx, [rcx + I_MODE]
        and ecx, S_IFMT
        cmp ecx, S_IFREG
        sete al
1:      RETURN
END may_truncate

# vfs_create(dir, dentry, mode)
FUNC vfs_create
        mov rax, E_ACCES
        mov rcx, [rdi + I_OP]
        mov rcx, [rcx + IOP_CREATE]
        test rcx, rcx
        jz 1f
        and edx, S_IRWXUGO
        call rcx
1:      RETURN
END vfs_create

# vfs_mkdir(dir, dentry, mode)
FUNC vfs_mkdir
        mov rax, E_PERM
        mov rcx, [rdi + I_OP]
        mov rcx, [rcx + IOP_MKDIR]
        test rcx, rcx
        jz 1f
        and edx, S_IRWXUGO
        call rcx
1:      RETURN
END vfs_mkdir

# vfs_mknod(dir, dentry, mode, rdev)
FUNC vfs_mknod
        mov rax, E_PERM
        mov r8, [rdi + I_OP]
        mov r8, [r8 + IOP_MKNOD]
        test r8, r8
        jz 1f
        call r8
1:      RETURN
END vfs_mknod

# vfs_unlink(dir, dentry)
FUNC vfs_unlink
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rdi, rsi
        call is_dir
        test eax, eax
        mov rax, E_ISDIR
        jnz 1f
        mov rdi, rbx
        mov rsi, r12
        mov rax, [rbx + I_OP]
        call qword ptr [rax + IOP_UNLINK]
        test rax, rax
        jnz 1f
        mov rdi, r12
        call d_delete
        xor eax, eax
1:      pop r12
        pop rbx
        RETURN
END vfs_unlink

# vfs_rmdir(dir, dentry)
FUNC vfs_rmdir
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rdi, rsi
        call is_dir
        test eax, eax
        mov rax, E_NOTDIR
        jz 1f
        mov rdi, rbx
        mov rsi, r12
        mov rax, [rbx + I_OP]
        call qword ptr [rax + IOP_RMDIR]
        test rax, rax
        jnz 1f
        mov rdi, r12
        call d_delete
        xor eax, eax
1:      pop r12
        pop rbx
        RETURN
END vfs_rmdir

# lookup_create(nd): rax = a fresh dentry for ND_LAST, which must not exist yet, or an error.
# Preemption is off, and stays so until the caller has filled it.
FUNC lookup_create
        push rbx
        mov rbx, rdi
        mov rax, E_EXIST
        cmp qword ptr [rbx + ND_LAST_TYPE], LAST_NORM
        jne 2f
        call lookup_hash
        test rax, rax
        jz 1f
        mov rdi, rax
        call dput
        mov rax, E_EXIST
        jmp 2f
1:      ND_DIR_INODE rcx, rbx
        mov rax, E_NOENT
        cmp qword ptr [rcx + I_NLINK], 0
        je 2f                           # someone removed the directory under us
        mov rdi, [rbx + ND_DENTRY]
        mov rsi, [rbx + ND_LAST]
        mov rdx, [rbx + ND_LEN]
        mov rcx, [rbx + ND_HASH]
        call d_alloc
        test rax, rax
        jnz 2f
        mov rax, E_NOMEM
2:      pop rbx
        RETURN
END lookup_create

# __open_namei_create(nd, mode): rax = a dentry for a new file, with a reference, or an error.
# Preemption is off.
FUNC __open_namei_create
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r13, rsi
        call lookup_create
        JUMP_IF_ERR rax, 1f
        mov r12, rax
        ND_DIR_INODE rdi, rbx
        mov rsi, r12
        mov rdx, r13
        call vfs_create
        test rax, rax
        cmovz rax, r12
        jz 1f
        mov rbx, rax
        mov rdi, r12
        call dput
        mov rax, rbx
1:      pop r13
        pop r12
        pop rbx
        RETURN
END __open_namei_create

# lookup_or_create(nd, flags, mode): the last step of open() with O_CREAT; rax = a dentry with a
# reference, or an error. nd gives up its own reference.
FUNC lookup_or_create
        push rbx
        push r12
        push r13
        mov rbx, rdi
        mov r12, rsi
        mov r13, rdx
        PREEMPT_DISABLE
        mov rax, E_ISDIR
        cmp qword ptr [rbx + ND_LAST_TYPE], LAST_NORM
        jne 2f
        call lookup_hash
        test rax, rax
        jnz 1f
        mov rdi, rbx
        mov rsi, r13
        call __open_namei_create
        jmp 2f
1:      test r12d, O_EXCL
        jz 2f
        mov rdi, rax
        call dput
        mov rax, E_EXIST
2:      PREEMPT_ENABLE
        mov r12, rax
        mov rdi, rbx
        call path_put
        mov rax, r12
        pop r13
        pop r12
        pop rbx
        RETURN
END lookup_or_create

# open_namei(path, flags, mode): rax = the dentry to open, with a reference, or an error. Creates
# and truncates as flags say.
FUNC open_namei
        push rbx
        push r12
        push r13
        sub rsp, SIZEOF_ND
        mov r12, rsi
        mov r13, rdx
        xor ecx, ecx
        mov esi, LOOKUP_PARENT
        test r12d, O_CREAT
        cmovz esi, ecx
        mov rdx, rsp
        call path_lookup
        test rax, rax
        jnz 4f
        mov rax, [rsp + ND_DENTRY]
        test r12d, O_CREAT
        jz 1f
        mov rdi, rsp
        mov rsi, r12
        mov rdx, r13
        call lookup_or_create
        JUMP_IF_ERR rax, 4f
1:      mov rbx, rax
        mov rdi, rbx
        mov rsi, r12
        call may_open
        test rax, rax
        jnz 3f
        mov rdi, rbx
        mov rsi, r12
        call may_truncate
        test eax, eax
        jz 2f
        mov rdi, rbx
        xor esi, esi
        call do_truncate
2:      mov rax, rbx
        jmp 4f
3:      mov r12, rax
        mov rdi, rbx
        call dput
        mov rax, r12
4:      add rsp, SIZEOF_ND
        pop r13
        pop r12
        pop rbx
        RETURN
END open_namei

# do_mknod(path, mode, rdev): makes a directory or a node; 0 or an error.
FUNC do_mknod
        push rbx
        push r12
        push r13
        sub rsp, SIZEOF_ND
        mov r12, rsi
        mov r13, rdx
        mov esi, LOOKUP_PARENT
        mov rdx, rsp
        call path_lookup
        test rax, rax
        jnz 5f
        PREEMPT_DISABLE
        mov rdi, rsp
        call lookup_create
        mov rbx, rax
        JUMP_IF_ERR rax, 4f
        ND_DIR_INODE rdi, rsp
        mov rsi, rbx
        mov rdx, r12
        mov rcx, r13
        mov eax, r12d
        and eax, S_IFMT
        cmp eax, S_IFDIR
        je 1f
        call vfs_mknod
        jmp 2f
1:      call vfs_mkdir
2:      mov r12, rax
        mov rdi, rbx
        call dput
        mov rax, r12
4:      PREEMPT_ENABLE
        mov r12, rax
        mov rdi, rsp
        call path_put
        mov rax, r12
5:      add rsp, SIZEOF_ND
        pop r13
        pop r12
        pop rbx
        RETURN
END do_mknod

# sys_mkdir(path, mode)
FUNC sys_mkdir
        or esi, S_IFDIR
        xor edx, edx
        call do_mknod
        RETURN
END sys_mkdir

# sys_mknod(path, mode, rdev): mode says S_IFCHR, S_IFBLK or S_IFREG.
FUNC sys_mknod
        call do_mknod
        RETURN
END sys_mknod

# do_unlink(path, vfs_function): vfs_unlink or vfs_rmdir; 0 or an error. The memory goes with the
# last reference, at the end.
FUNC do_unlink
        push rbx
        push r12
        sub rsp, SIZEOF_ND
        mov r12, rsi
        mov esi, LOOKUP_PARENT
        mov rdx, rsp
        call path_lookup
        test rax, rax
        jnz 3f
        PREEMPT_DISABLE
        xor ebx, ebx
        mov rax, E_INVAL
        cmp qword ptr [rsp + ND_LAST_TYPE], LAST_NORM
        jne 2f
        mov rdi, rsp
        call lookup_hash
        mov rbx, rax
        test rax, rax
        mov rax, E_NOENT
        jz 2f
        ND_DIR_INODE rdi, rsp
        mov rsi, rbx
        call r12
2:      mov r12, rax
        PREEMPT_ENABLE
        mov rdi, rbx
        call dput
        mov rdi, rsp
        call path_put
        mov rax, r12
3:      add rsp, SIZEOF_ND
        pop r12
        pop rbx
        RETURN
END do_unlink

# sys_unlink(path)
FUNC sys_unlink
        lea rsi, [rip + vfs_unlink]
        call do_unlink
        RETURN
END sys_unlink

# sys_rmdir(path)
FUNC sys_rmdir
        lea rsi, [rip + vfs_rmdir]
        call do_unlink
        RETURN
END sys_rmdir

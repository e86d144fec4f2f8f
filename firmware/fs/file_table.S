# Open files and descriptor tables. A task's table is touched by that task alone: no lock.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

.percpu filp_cachep, 8
.percpu files_cachep, 8
.percpu nr_files, 8

# files_init(): this CPU's caches.
FUNC files_init
        lea rdi, [rip + .Lfilp_name]
        mov esi, SIZEOF_FILE
        call kmem_cache_create
        mov rcx, rax
        mov gs:[filp_cachep], rcx
        lea rdi, [rip + .Lfiles_name]
        mov esi, SIZEOF_FILES
        call kmem_cache_create
        mov rcx, rax
        mov gs:[files_cachep], rcx
        RETURN
END files_init

# alloc_files(task): gives the task an empty descriptor table; 0 or -ENOMEM.
FUNC alloc_files
        push rbx
        push r12
        mov rbx, rdi
        mov rdi, gs:[files_cachep]
        call kmem_cache_alloc
        mov r12, rax
        mov rax, E_NOMEM
        test r12, r12
        jz 1f
        mov rdi, r12
        xor esi, esi
        mov edx, SIZEOF_FILES
        call memset
        mov [rbx + TASK_FILES], r12
        xor eax, eax
1:      pop r12
        pop rbx
        RETURN
END alloc_files

# close_files(files): closes what is still open.
FUNC close_files
        push rbx
        push r12
        mov r12, rdi
1:      bsf rbx, [r12 + FILES_OPEN_FDS]
        jz 3f
        btr qword ptr [r12 + FILES_OPEN_FDS], rbx
        mov rdi, [r12 + FILES_FD + rbx*8]
        mov qword ptr [r12 + FILES_FD + rbx*8], 0
        test rdi, rdi
        jz 1b
        call fput
        jmp 1b
3:      pop r12
        pop rbx
        RETURN
END close_files

# exit_files(task): for a task that ends.
FUNC exit_files
        push rbx
        mov rbx, [rdi + TASK_FILES]
        mov qword ptr [rdi + TASK_FILES], 0
        test rbx, rbx
        jz 1f
        mov rdi, rbx
        call close_files
        mov rdi, gs:[files_cachep]
        mov rsi, rbx
        call kmem_cache_free
1:      pop rbx
        RETURN
END exit_files

# current_files(): rax = the current task's table, made at first use; 0 if there is no memory.
FUNC current_files
        CURRENT rdi
        mov rax, [rdi + TASK_FILES]
        test rax, rax
        jnz 1f
        call alloc_files
        CURRENT rdi
        mov rax, [rdi + TASK_FILES]
1:      RETURN
END current_files

# get_unused_fd(): reserves the lowest free descriptor; -EMFILE if there is none.
FUNC get_unused_fd
        call current_files
        mov rdx, rax
        mov rax, E_NOMEM
        test rdx, rdx
        jz 1f
        mov rcx, [rdx + FILES_OPEN_FDS]
        not rcx
        mov rax, E_MFILE
        bsf rcx, rcx
        jz 1f
        cmp ecx, NR_OPEN
        jae 1f
        bts qword ptr [rdx + FILES_OPEN_FDS], rcx
        mov rax, rcx
1:      RETURN
END get_unused_fd

# put_unused_fd(fd): gives a reserved descriptor back.
FUNC put_unused_fd
        CURRENT rcx
        mov rcx, [rcx + TASK_FILES]
        btr qword ptr [rcx + FILES_OPEN_FDS], rdi
        RETURN
END put_unused_fd

# fd_install(fd, file): fd was reserved by get_unused_fd; the reference to file goes to the table.
FUNC fd_install
        CURRENT rcx
        mov rcx, [rcx + TASK_FILES]
        mov [rcx + FILES_FD + rdi*8], rsi
        RETURN
END fd_install

# fcheck(fd): rax = the file, without a reference, or 0.
FUNC fcheck
        xor eax, eax
        cmp rdi, NR_OPEN
        jae 1f
        CURRENT rcx
        mov rcx, [rcx + TASK_FILES]
        test rcx, rcx
        jz 1f
        mov rax, [rcx + FILES_FD + rdi*8]
1:      RETURN
END fcheck

# fget(fd): rax = the file with a reference, or 0.
FUNC fget
        call fcheck
        test rax, rax
        jz 1f
        inc qword ptr [rax + F_COUNT]
1:      RETURN
END fget

# get_empty_filp(): rax = a zeroed file that its caller holds, or 0.
FUNC get_empty_filp
        push rbx
        mov rdi, gs:[filp_cachep]
        call kmem_cache_alloc
        test rax, rax
        jz 1f
        mov rbx, rax
        mov rdi, rax
        xor esi, esi
        mov edx, SIZEOF_FILE
        call memset
        mov qword ptr [rbx + F_COUNT], 1
        inc qword ptr gs:[nr_files]
        mov rax, rbx
1:      pop rbx
        RETURN
END get_empty_filp

# file_free(file): the memory alone.
FUNC file_free
        dec qword ptr gs:[nr_files]
        mov rsi, rdi
        mov rdi, gs:[filp_cachep]
        call kmem_cache_free
        RETURN
END file_free

# fput(file): drops a reference; the last one closes the file.
FUNC fput
        dec qword ptr [rdi + F_COUNT]
        jnz 1f
        call __fput
1:      RETURN
END fput

# __fput(file): nobody holds it any more.
FUNC __fput
        push rbx
        push r12
        mov rbx, rdi
        mov r12, [rbx + F_DENTRY]
        mov rax, [rbx + F_OP]
        mov rax, [rax + FOP_RELEASE]
        test rax, rax
        jz 2f
        xor edi, edi
        test r12, r12
        jz 1f
        mov rdi, [r12 + D_INODE]
1:      mov rsi, rbx
        call rax
2:      mov rdi, rbx
        call file_free
        mov rdi, r12
        call dput
        pop r12
        pop rbx
        RETURN
END __fput

.section .rodata
.Lfilp_name: .asciz "filp"
.Lfiles_name: .asciz "files_cache"

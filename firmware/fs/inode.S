# Inodes: their life from new_inode() to iput(), and the hash that iget() finds them by.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

.set I_HASHMASK, 15
.percpu inode_hashtable, 128            # 16 chains, linked through I_HASH
.percpu inode_cachep, 8
.percpu last_ino, 8
.percpu nr_inodes, 8
.set FIRST_INO, 11                      # smaller numbers are for iget(), as in ext2

# inode_init(): this CPU's cache and numbers.
FUNC inode_init
        lea rdi, [rip + .Linode_name]
        mov esi, SIZEOF_INODE
        call kmem_cache_create
        mov rcx, rax
        mov gs:[inode_cachep], rcx
        mov qword ptr gs:[last_ino], FIRST_INO - 1
        RETURN
END inode_init

# alloc_inode(): rax = a zeroed inode with one reference and one link, or 0.
FUNC alloc_inode
        push rbx
        mov rdi, gs:[inode_cachep]
        call kmem_cache_alloc
        test rax, rax
        jz 1f
        mov rbx, rax
        mov rdi, rax
        xor esi, esi
        mov edx, SIZEOF_INODE
        call memset
        mov qword ptr [rbx + I_COUNT], 1
        mov qword ptr [rbx + I_NLINK], 1
        inc qword ptr gs:[nr_inodes]
        mov rax, rbx
1:      pop rbx
        RETURN
END alloc_inode

# destroy_inode(inode): the memory alone.
FUNC destroy_inode
        dec qword ptr gs:[nr_inodes]
        mov rsi, rdi
        mov rdi, gs:[inode_cachep]
        call kmem_cache_free
        RETURN
END destroy_inode

# new_inode(): rax = an inode with a number of its own, or 0.
FUNC new_inode
        call alloc_inode
        test rax, rax
        jz 1f
        PREEMPT_DISABLE
        inc qword ptr gs:[last_ino]
        mov rcx, gs:[last_ino]
        PREEMPT_ENABLE
        mov [rax + I_INO], rcx
1:      RETURN
END new_inode

# i_hash(ino): rax = where the chain begins, as an offset from GS.
FUNC i_hash
        mov rax, rdi
        shr rax, 4
        add rax, rdi
        and eax, I_HASHMASK
        lea rax, [rax*8 + inode_hashtable]
        RETURN
END i_hash

# insert_inode_hash(inode)
FUNC insert_inode_hash
        push rbx
        mov rbx, rdi
        mov rdi, [rbx + I_INO]
        call i_hash
        PREEMPT_DISABLE
        mov rcx, gs:[rax]
        mov [rbx + I_HASH], rcx
        mov gs:[rax], rbx
        or qword ptr [rbx + I_STATE], I_HASHED
        PREEMPT_ENABLE
        pop rbx
        RETURN
END insert_inode_hash

# remove_inode_hash(inode): does nothing if it is not hashed.
FUNC remove_inode_hash
        push rbx
        mov rbx, rdi
        mov rdi, [rbx + I_INO]
        call i_hash
        PREEMPT_DISABLE
        test dword ptr [rbx + I_STATE], I_HASHED
        jz 3f
        mov rdx, gs:[PCPU_SELF]
        lea rdx, [rdx + rax - I_HASH]
1:      mov rcx, [rdx + I_HASH]         # the head looks like an inode's link from here
        cmp rcx, rbx
        je 2f
        mov rdx, rcx
        jmp 1b
2:      mov rcx, [rbx + I_HASH]
        mov [rdx + I_HASH], rcx
        and qword ptr [rbx + I_STATE], ~I_HASHED
3:      PREEMPT_ENABLE
        pop rbx
        RETURN
END remove_inode_hash

# find_inode(ino): rax = the hashed inode, without a reference, or 0. Preemption is off.
FUNC find_inode
        push rbx
        mov rbx, rdi
        call i_hash
        mov rax, gs:[rax]
1:      test rax, rax
        jz 2f
        cmp [rax + I_INO], rbx
        je 2f
        mov rax, [rax + I_HASH]
        jmp 1b
2:      pop rbx
        RETURN
END find_inode

# __iget(inode): takes a reference.
FUNC __iget
        inc qword ptr [rdi + I_COUNT]
        RETURN
END __iget

# iget(ino): rax = the inode of that number with a reference, made if there is none yet; 0 if there
# is no memory. For inodes that no directory names, such as the journal's.
FUNC iget
        push rbx
        push r12
        mov r12, rdi
        PREEMPT_DISABLE
        call find_inode
        mov rbx, rax
        test rax, rax
        jz 1f
        mov rdi, rax
        call __iget
        jmp 2f
1:      call alloc_inode
        mov rbx, rax
        test rax, rax
        jz 2f
        mov [rbx + I_INO], r12
        mov rdi, rbx
        call insert_inode_hash
2:      PREEMPT_ENABLE
        mov rax, rbx
        pop r12
        pop rbx
        RETURN
END iget

# clear_inode(inode): nothing refers to it any more, its pages are gone.
FUNC clear_inode
        mov qword ptr [rdi + I_SIZE], 0
        call remove_inode_hash
        RETURN
END clear_inode

# generic_delete_inode(inode): the last link and the last reference have gone.
FUNC generic_delete_inode
        push rbx
        mov rbx, rdi
        xor esi, esi
        call truncate_inode_pages
        mov rdi, rbx
        call clear_inode
        mov rdi, rbx
        call destroy_inode
        pop rbx
        RETURN
END generic_delete_inode

# generic_drop_inode(inode): the last reference has gone. A linked inode stays cached in the hash.
FUNC generic_drop_inode
        cmp qword ptr [rdi + I_NLINK], 0
        je 1f
        test dword ptr [rdi + I_STATE], I_HASHED
        jnz 2f
1:      call generic_delete_inode
2:      RETURN
END generic_drop_inode

# iput(inode): drops a reference; 0 is allowed.
FUNC iput
        test rdi, rdi
        jz 1f
        dec qword ptr [rdi + I_COUNT]
        jnz 1f
        call generic_drop_inode
1:      RETURN
END iput

# init_special_inode(inode, mode, rdev): a device node; its driver is found when it is opened.
FUNC init_special_inode
        mov [rdi + I_MODE], rsi
        mov [rdi + I_RDEV], rdx
        and esi, S_IFMT
        lea rax, [rip + def_chr_fops]
        lea rcx, [rip + def_blk_fops]
        cmp esi, S_IFBLK
        cmove rax, rcx
        mov [rdi + I_FOP], rax
        RETURN
END init_special_inode

.section .rodata
.Linode_name: .asciz "inode_cache"

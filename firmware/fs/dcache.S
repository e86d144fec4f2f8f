# The directory cache. It is the only place where ramfs keeps its names: a hashed dentry is pinned.
# dcache_lock, as it were, is preemption: the cache belongs to one CPU.

.include "linkage.inc"
.include "percpu.inc"
.include "fs.inc"

.set D_HASHMASK, 63
.percpu dentry_hashtable, 512           # 64 chains, linked through D_HASH_NEXT
.percpu dentry_cachep, 8
.percpu nr_dentry, 8

# dcache_init(): this CPU's cache; the hash table is zero already.
FUNC dcache_init
        lea rdi, [rip + .Ldentry_name]
        mov esi, SIZEOF_DENTRY
        call kmem_cache_create
        mov rcx, rax
        mov gs:[dentry_cachep], rcx
        RETURN
END dcache_init

# vfs_caches_init(): the file system of this CPU, up to a root directory with /dev in it.
FUNC vfs_caches_init
        call dcache_init
        call inode_init
        call files_init
        call mnt_init
        call default_rootfs
        RETURN
END vfs_caches_init
CPU_INITCALL vfs_caches_init

# full_name_hash(name, len): hashes a component (partial_name_hash of linux/dcache.h).
FUNC full_name_hash
        xor eax, eax
        test rsi, rsi
        jz 2f
1:      movzx ecx, byte ptr [rdi]
        mov edx, ecx
        shl edx, 4
        shr ecx, 4
        add rax, rdx
        add rax, rcx
        imul rax, rax, 11
        inc rdi
        dec rsi
        jnz 1b
2:      mov eax, eax
        RETURN
END full_name_hash

# d_hash(parent, hash): rax = where the chain begins, as an offset from GS.
FUNC d_hash
        mov rax, rdi
        shr rax, 5
        add rax, rsi
        mov rcx, rax
        shr rcx, 6
        xor rax, rcx
        and eax, D_HASHMASK
        lea rax, [rax*8 + dentry_hashtable]
        RETURN
END d_hash

# dentry_cmp(dentry, parent, name, len, hash): 1 if it is the one.
FUNC dentry_cmp
        xor eax, eax
        cmp [rdi + D_HASH], r8
        jne 1f
        cmp [rdi + D_PARENT], rsi
        jne 1f
        cmp [rdi + D_LEN], rcx
        jne 1f
        add rdi, D_NAME
        mov rsi, rdx
        mov rdx, rcx
        call memcmp
        cmp eax, 1
        sbb eax, eax                    # -1 if memcmp returned 0
        neg eax
1:      RETURN
END dentry_cmp

# d_lookup(parent, name, len, hash): rax = the dentry with a reference, or 0.
FUNC d_lookup
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov r12, rdi
        mov r13, rsi
        mov r14, rdx
        mov r15, rcx
        mov rsi, rcx
        call d_hash
        PREEMPT_DISABLE
        mov rbx, gs:[rax]
1:      test rbx, rbx
        jz 3f
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        mov rcx, r14
        mov r8, r15
        call dentry_cmp
        test eax, eax
        jnz 2f
        mov rbx, [rbx + D_HASH_NEXT]
        jmp 1b
2:      inc qword ptr [rbx + D_COUNT]
3:      PREEMPT_ENABLE
        mov rax, rbx
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END d_lookup

# d_alloc(parent, name, len, hash): rax = a dentry that its caller holds and nobody finds yet, or 0.
# It holds its parent. len is NAME_MAX at most.
FUNC d_alloc
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov r12, rdi
        mov r13, rsi
        mov r14, rdx
        mov r15, rcx
        mov rdi, gs:[dentry_cachep]
        call kmem_cache_alloc
        test rax, rax
        jz 1f
        mov rbx, rax
        mov qword ptr [rbx + D_COUNT], 1
        mov qword ptr [rbx + D_INODE], 0
        mov [rbx + D_PARENT], r12
        mov qword ptr [rbx + D_HASH_NEXT], 0
        mov [rbx + D_HASH], r15
        mov [rbx + D_LEN], r14
        mov qword ptr [rbx + D_SUBDIRS], 0
        lea rdi, [rbx + D_NAME]
        mov rsi, r13
        mov rdx, r14
        call memcpy
        mov byte ptr [rbx + r14 + D_NAME], 0
        mov rdi, r12
        call dget
        inc qword ptr gs:[nr_dentry]
        mov rax, rbx
1:      pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END d_alloc

# d_alloc_root(inode): rax = a root for this inode, its own parent, or 0.
FUNC d_alloc_root
        push rbx
        push r12
        mov r12, rdi
        mov rdi, gs:[dentry_cachep]
        call kmem_cache_alloc
        test rax, rax
        jz 1f
        mov rbx, rax
        mov rdi, rax
        xor esi, esi
        mov edx, SIZEOF_DENTRY
        call memset
        mov qword ptr [rbx + D_COUNT], 1
        mov [rbx + D_PARENT], rbx
        mov rdi, rbx
        mov rsi, r12
        call d_instantiate
        inc qword ptr gs:[nr_dentry]
        mov rax, rbx
1:      pop r12
        pop rbx
        RETURN
END d_alloc_root

# d_instantiate(dentry, inode): the reference to inode goes to the dentry.
FUNC d_instantiate
        mov [rdi + D_INODE], rsi
        RETURN
END d_instantiate

# d_rehash(dentry): from now on d_lookup finds it.
FUNC d_rehash
        push rbx
        mov rbx, rdi
        mov rdi, [rbx + D_PARENT]
        mov rsi, [rbx + D_HASH]
        call d_hash
        PREEMPT_DISABLE
        mov rcx, gs:[rax]
        mov [rbx + D_HASH_NEXT], rcx
        mov gs:[rax], rbx
        mov rcx, [rbx + D_PARENT]
        inc qword ptr [rcx + D_SUBDIRS]
        PREEMPT_ENABLE
        pop rbx
        RETURN
END d_rehash

# d_drop(dentry): d_lookup finds it no more. It must be hashed.
FUNC d_drop
        push rbx
        mov rbx, rdi
        mov rdi, [rbx + D_PARENT]
        mov rsi, [rbx + D_HASH]
        call d_hash
        PREEMPT_DISABLE
        mov rdx, gs:[PCPU_SELF]
        lea rdx, [rdx + rax - D_HASH_NEXT]
1:      mov rcx, [rdx + D_HASH_NEXT]    # the head looks like a dentry's link from here
        cmp rcx, rbx
        je 2f
        mov rdx, rcx
        jmp 1b
2:      mov rcx, [rbx + D_HASH_NEXT]
        mov [rdx + D_HASH_NEXT], rcx
        mov rcx, [rbx + D_PARENT]
        dec qword ptr [rcx + D_SUBDIRS]
        PREEMPT_ENABLE
        pop rbx
        RETURN
END d_drop

# d_delete(dentry): its file was unlinked. Who holds it still may go on.
FUNC d_delete
        call d_drop
        RETURN
END d_delete

# dget(dentry): takes a reference; rax = dentry.
FUNC dget
        inc qword ptr [rdi + D_COUNT]
        mov rax, rdi
        RETURN
END dget

# d_kill(dentry): the last reference is gone. rax = its parent, whose reference the caller drops.
FUNC d_kill
        push rbx
        push r12
        mov rbx, rdi
        mov r12, [rbx + D_PARENT]
        mov rdi, [rbx + D_INODE]
        call iput
        mov rdi, gs:[dentry_cachep]
        mov rsi, rbx
        call kmem_cache_free
        dec qword ptr gs:[nr_dentry]
        mov rax, r12
        pop r12
        pop rbx
        RETURN
END d_kill

# dput(dentry): drops a reference; 0 is allowed. A dentry whose last one goes is unhashed already.
FUNC dput
1:      test rdi, rdi
        jz 2f
        dec qword ptr [rdi + D_COUNT]
        jnz 2f
        call d_kill
        mov rdi, rax
        jmp 1b
2:      RETURN
END dput

.section .rodata
.Ldentry_name: .asciz "dentry"

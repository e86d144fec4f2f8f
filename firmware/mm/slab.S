# mm/slab.S: the slab allocator, one instance a CPU.
#
# A slab is a page of equal objects. The indices of its free objects are chained in an array behind
# its descriptor, which lies in front of the objects, or, for large objects, in memory of its own
# (CFLGS_OFF_SLAB). Caches, slabs and objects belong to the CPU that made them. Whoever changes a
# cache disables preemption; not for interrupt handlers.

.include "linkage.inc"
.include "percpu.inc"

.set BUFCTL_END, 0xffffffff             # kmem_bufctl_t: nothing behind this free object
.set BUFCTL_ACTIVE, 0xfffffffd          # the object is allocated
.set OFF_SLAB_MIN, 512                  # objects of this size have their descriptor elsewhere
.set FREE_LIMIT, 1                      # empty slabs that a cache keeps

# struct slab
.set SLAB_LIST, 0                       # on one of its cache's lists
.set SLAB_MEM, 16                       # the first object
.set SLAB_INUSE, 24                     # allocated objects
.set SLAB_FREE, 28                      # index of the first free object
.set SLAB_BUFCTL, 32                    # kmem_bufctl_t[num]

# struct kmem_cache
.set CACHE_NAME, 0
.set CACHE_OBJSIZE, 8
.set CACHE_NUM, 16                      # objects in a slab
.set CACHE_OFFSET, 24                   # of the first object in its page; 0: CFLGS_OFF_SLAB
.set CACHE_FULL, 32                     # list_head: no object free
.set CACHE_PARTIAL, 48                  # list_head: some
.set CACHE_FREE, 64                     # list_head: all
.set CACHE_FREE_SLABS, 80               # length of that
.set CACHE_NEXT, 88                     # list_head, on cache_chain
.set CACHE_SIZE, 104

.set NR_MALLOC_SIZES, 7
.set MALLOC_MAX, 2048
.set SLABP_CLASS, 2                     # the class of descriptors that are off slab: 128 bytes

.percpu cache_cache, 104                # CACHE_SIZE: the struct kmem_cache of all others
.percpu cache_chain, 16                 # struct list_head
.percpu malloc_caches, 56               # struct kmem_cache *[NR_MALLOC_SIZES]

        .rodata
        .p2align 3
malloc_sizes:
        .quad 32, 64, 128, 256, 512, 1024, 2048
malloc_names:
        .quad .Lsize_32, .Lsize_64, .Lsize_128, .Lsize_256, .Lsize_512, .Lsize_1024, .Lsize_2048
.irp bytes, 32, 64, 128, 256, 512, 1024, 2048
.Lsize_\bytes:
        .asciz "size-\bytes"
.endr
.Lcache_cache_name:
        .asciz "kmem_cache"
        .text

# void kmem_cache_init_cpu(void): this CPU's cache of caches, then the general ones. Runs once,
# after page_alloc_init_cpu. The small classes come first: the large ones need them.
FUNC kmem_cache_init_cpu
        push rbx
        sub rsp, 8
        mov rax, gs:[PCPU_SELF]
        lea rdi, [rax+cache_chain]
        call INIT_LIST_HEAD
        mov rax, gs:[PCPU_SELF]
        lea rdi, [rax+cache_cache]
        lea rsi, [rip+.Lcache_cache_name]
        mov edx, CACHE_SIZE
        call setup_cache
        xor ebx, ebx
1:      mov rdi, [malloc_names+rbx*8]
        mov rsi, [malloc_sizes+rbx*8]
        call kmem_cache_create
        test rax, rax
        je 2f
        mov rcx, rax
        mov rax, gs:[PCPU_SELF]
        mov [rax+malloc_caches+rbx*8], rcx
        inc ebx
        cmp ebx, NR_MALLOC_SIZES
        jne 1b
        add rsp, 8
        pop rbx
        RETURN
2:      ud2                             # the zone is too small to boot
END kmem_cache_init_cpu
        CPU_INITCALL kmem_cache_init_cpu

# static u64 cache_estimate(u64 objsize): how many objects fit into a page with their descriptor.
# Returns the offset of the first one in rdx. Objects are aligned to 16 bytes if their size is.
FUNC cache_estimate
        lea rcx, [rdi+4]
        mov eax, PAGE_SIZE - SLAB_BUFCTL
        xor edx, edx
        div rcx
1:      lea rdx, [SLAB_BUFCTL+15+rax*4]
        and rdx, -16
        mov rcx, rax
        imul rcx, rdi
        add rcx, rdx
        cmp rcx, PAGE_SIZE
        jbe 2f
        dec rax                         # what aligning took
        jmp 1b
2:      RETURN
END cache_estimate

# static void setup_cache(struct kmem_cache *c, const char *name, u64 objsize): an empty cache, on
# the chain. objsize is a multiple of 8 and at most half a page.
FUNC setup_cache
        push rbx
        sub rsp, 8
        mov rbx, rdi
        mov [rbx+CACHE_NAME], rsi
        mov [rbx+CACHE_OBJSIZE], rdx
        mov qword ptr [rbx+CACHE_FREE_SLABS], 0
        mov rdi, rdx
        mov eax, PAGE_SIZE
        xor edx, edx
        div rdi
        xor edx, edx                    # off slab the objects have the page to themselves
        cmp rdi, OFF_SLAB_MIN
        jae 1f
        call cache_estimate
1:      mov [rbx+CACHE_NUM], rax
        mov [rbx+CACHE_OFFSET], rdx
.irp field, CACHE_FULL, CACHE_PARTIAL, CACHE_FREE
        lea rdi, [rbx+\field]
        call INIT_LIST_HEAD
.endr
        mov rax, gs:[PCPU_SELF]
        lea rsi, [rax+cache_chain]
        lea rdi, [rbx+CACHE_NEXT]
        PREEMPT_DISABLE
        call list_add_tail
        PREEMPT_ENABLE
        add rsp, 8
        pop rbx
        RETURN
END setup_cache

# struct kmem_cache *kmem_cache_create(const char *name, u64 objsize): for this CPU, or NULL: no
# memory, or objsize is 0 or above half a page. name stays the caller's and must last.
FUNC kmem_cache_create
        push rbx
        push r12
        push r13
        sub rsp, 8
        xor eax, eax
        mov rbx, rdi
        lea r12, [rsi+7]
        and r12, -8
        je 1f
        cmp r12, PAGE_SIZE / 2
        ja 1f
        mov rax, gs:[PCPU_SELF]
        lea rdi, [rax+cache_cache]
        call kmem_cache_alloc
        test rax, rax
        je 1f
        mov r13, rax
        mov rdi, rax
        mov rsi, rbx
        mov rdx, r12
        call setup_cache
        mov rax, r13
1:      add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
END kmem_cache_create

# u64 kmem_cache_size(struct kmem_cache *c): bytes of an object.
FUNC kmem_cache_size
        mov rax, [rdi+CACHE_OBJSIZE]
        RETURN
END kmem_cache_size

# static struct slab *alloc_slabmgmt(struct kmem_cache *c, void *page): where the descriptor of a
# new slab lies, or NULL. Its objects begin at slab->s_mem.
FUNC alloc_slabmgmt
        push rbx
        push r12
        mov rbx, rdi
        mov r12, rsi
        mov rax, rsi
        cmp qword ptr [rdi+CACHE_OFFSET], 0
        jne 1f
        mov rax, gs:[PCPU_SELF]
        mov rdi, [rax+malloc_caches+SLABP_CLASS*8]
        call kmem_cache_alloc
        test rax, rax
        je 2f
1:      add r12, [rbx+CACHE_OFFSET]
        mov [rax+SLAB_MEM], r12
2:      pop r12
        pop rbx
        RETURN
END alloc_slabmgmt

# static void cache_init_objs(struct kmem_cache *c, struct slab *slab): all objects are free.
FUNC cache_init_objs
        mov dword ptr [rsi+SLAB_INUSE], 0
        mov dword ptr [rsi+SLAB_FREE], 0
        mov rcx, [rdi+CACHE_NUM]
        dec rcx
        mov dword ptr [rsi+SLAB_BUFCTL+rcx*4], BUFCTL_END
1:      test rcx, rcx
        je 2f
        mov [rsi+SLAB_BUFCTL-4+rcx*4], ecx
        dec rcx
        jmp 1b
2:      RETURN
END cache_init_objs

# static struct slab *cache_grow(struct kmem_cache *c): a new slab on the free list, or NULL.
# Preemption is off.
FUNC cache_grow
        push rbx
        push r12
        push r13
        sub rsp, 8
        mov rbx, rdi
        call alloc_page
        test rax, rax
        je 2f
        mov r12, rax
        mov rdi, rbx
        mov rsi, rax
        call alloc_slabmgmt
        test rax, rax
        je 1f
        mov r13, rax
        mov rdi, r12
        call virt_to_page
        or qword ptr [rax+PAGE_FLAGS], PG_slab
        mov [rax+PAGE_CACHE], rbx
        mov [rax+PAGE_SLAB], r13
        mov rdi, rbx
        mov rsi, r13
        call cache_init_objs
        lea rdi, [r13+SLAB_LIST]
        lea rsi, [rbx+CACHE_FREE]
        call list_add
        inc qword ptr [rbx+CACHE_FREE_SLABS]
        mov rax, r13
        jmp 2f
1:      mov rdi, r12
        call free_page
        xor eax, eax
2:      add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
END cache_grow

# static void slab_destroy(struct kmem_cache *c, struct slab *slab): gives back its memory. It is
# on no list any more. Preemption is off.
FUNC slab_destroy
        push rbx
        push r12
        xor r12d, r12d
        mov rbx, [rsi+SLAB_MEM]
        and rbx, -PAGE_SIZE
        cmp qword ptr [rdi+CACHE_OFFSET], 0
        jne 1f
        mov r12, rsi
1:      mov rdi, rbx
        call virt_to_page
        and qword ptr [rax+PAGE_FLAGS], ~PG_slab
        mov rdi, rbx
        call free_page
        mov rdi, r12
        call kfree                      # NULL if the descriptor was in the page
        pop r12
        pop rbx
        RETURN
END slab_destroy

# static void *slab_get_obj(struct kmem_cache *c, struct slab *slab): its first free object; there
# is one. Preemption is off.
FUNC slab_get_obj
        mov ecx, [rsi+SLAB_FREE]
        mov eax, [rsi+SLAB_BUFCTL+rcx*4]
        mov [rsi+SLAB_FREE], eax
        mov dword ptr [rsi+SLAB_BUFCTL+rcx*4], BUFCTL_ACTIVE
        inc dword ptr [rsi+SLAB_INUSE]
        mov rax, [rdi+CACHE_OBJSIZE]
        imul rax, rcx
        add rax, [rsi+SLAB_MEM]
        RETURN
END slab_get_obj

# static void slab_put_obj(struct kmem_cache *c, struct slab *slab, void *obj): the object is free.
# Preemption is off. BUG if it is no allocated object of this slab.
FUNC slab_put_obj
        mov rax, rdx
        sub rax, [rsi+SLAB_MEM]
        xor edx, edx
        div qword ptr [rdi+CACHE_OBJSIZE]
        test rdx, rdx
        jne 1f
        cmp rax, [rdi+CACHE_NUM]
        jae 1f
        cmp dword ptr [rsi+SLAB_BUFCTL+rax*4], BUFCTL_ACTIVE
        jne 1f                          # double free
        mov ecx, [rsi+SLAB_FREE]
        mov [rsi+SLAB_BUFCTL+rax*4], ecx
        mov [rsi+SLAB_FREE], eax
        dec dword ptr [rsi+SLAB_INUSE]
        RETURN
1:      ud2
END slab_put_obj

# static struct slab *get_slab(struct kmem_cache *c): one with a free object: partial, free or new;
# or NULL. Preemption is off.
FUNC get_slab
        lea rcx, [rdi+CACHE_PARTIAL]
        mov rax, [rcx]
        cmp rax, rcx
        jne 2f
        lea rcx, [rdi+CACHE_FREE]
        mov rax, [rcx]
        cmp rax, rcx
        jne 1f
        push rdi
        sub rsp, 8
        call cache_grow
        add rsp, 8
        pop rdi
        test rax, rax
        je 2f
1:      dec qword ptr [rdi+CACHE_FREE_SLABS]    # the caller moves it
2:      RETURN
END get_slab

# void *kmem_cache_alloc(struct kmem_cache *c): an object with arbitrary contents, or NULL.
FUNC kmem_cache_alloc
        push rbx
        push r12
        push r13
        sub rsp, 8
        mov rbx, rdi
        xor r13d, r13d
        PREEMPT_DISABLE
        call get_slab
        test rax, rax
        je 2f
        mov r12, rax
        mov rdi, rbx
        mov rsi, rax
        call slab_get_obj
        mov r13, rax
        lea rsi, [rbx+CACHE_PARTIAL]
        cmp dword ptr [r12+SLAB_FREE], BUFCTL_END
        jne 1f
        lea rsi, [rbx+CACHE_FULL]
1:      lea rdi, [r12+SLAB_LIST]
        call list_move
2:      PREEMPT_ENABLE
        mov rax, r13
        add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
END kmem_cache_alloc

# void *kmem_cache_zalloc(struct kmem_cache *c): the same, zeroed.
FUNC kmem_cache_zalloc
        push rbx
        push r12
        mov rbx, rdi
        call kmem_cache_alloc
        test rax, rax
        je 1f
        mov rdi, rax
        xor esi, esi
        mov rdx, [rbx+CACHE_OBJSIZE]
        call memset
1:      pop r12
        pop rbx
        RETURN
END kmem_cache_zalloc

# void kmem_cache_free(struct kmem_cache *c, void *obj): obj came from c; anything else is a bug.
FUNC kmem_cache_free
        push rbx
        push r12
        push r13
        sub rsp, 8
        mov rbx, rdi
        mov r13, rsi
        mov rdi, rsi
        call virt_to_page
        test qword ptr [rax+PAGE_FLAGS], PG_slab
        je 4f
        cmp [rax+PAGE_CACHE], rbx
        jne 4f
        mov r12, [rax+PAGE_SLAB]
        PREEMPT_DISABLE
        mov rdi, rbx
        mov rsi, r12
        mov rdx, r13
        call slab_put_obj
        lea rdi, [r12+SLAB_LIST]
        cmp dword ptr [r12+SLAB_INUSE], 0
        je 1f
        lea rsi, [rbx+CACHE_PARTIAL]
        call list_move
        jmp 3f
1:      cmp qword ptr [rbx+CACHE_FREE_SLABS], FREE_LIMIT
        jae 2f
        inc qword ptr [rbx+CACHE_FREE_SLABS]
        lea rsi, [rbx+CACHE_FREE]
        call list_move
        jmp 3f
2:      call list_del
        mov rdi, rbx
        mov rsi, r12
        call slab_destroy
3:      PREEMPT_ENABLE
        add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
4:      ud2
END kmem_cache_free

# int kmem_cache_shrink(struct kmem_cache *c): gives back the empty slabs; how many there were.
FUNC kmem_cache_shrink
        push rbx
        push r12
        push r13
        sub rsp, 8
        mov rbx, rdi
        xor r13d, r13d
        PREEMPT_DISABLE
1:      lea rdi, [rbx+CACHE_FREE]
        call list_empty
        test eax, eax
        jne 2f
        mov r12, [rbx+CACHE_FREE]
        lea rdi, [r12+SLAB_LIST]
        call list_del
        mov rdi, rbx
        mov rsi, r12
        call slab_destroy
        inc r13
        jmp 1b
2:      mov qword ptr [rbx+CACHE_FREE_SLABS], 0
        PREEMPT_ENABLE
        mov rax, r13
        add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
END kmem_cache_shrink

# int kmem_cache_destroy(struct kmem_cache *c): 0, or -1 if objects of it are still allocated; it
# stays in use then.
FUNC kmem_cache_destroy
        push rbx
        sub rsp, 8
        mov rbx, rdi
        call kmem_cache_shrink
        lea rdi, [rbx+CACHE_FULL]
        cmp [rdi], rdi
        jne 1f
        lea rdi, [rbx+CACHE_PARTIAL]
        cmp [rdi], rdi
        jne 1f
        PREEMPT_DISABLE
        lea rdi, [rbx+CACHE_NEXT]
        call list_del
        PREEMPT_ENABLE
        mov rax, gs:[PCPU_SELF]
        lea rdi, [rax+cache_cache]
        mov rsi, rbx
        call kmem_cache_free
        xor eax, eax
        jmp 2f
1:      mov rax, -1
2:      add rsp, 8
        pop rbx
        RETURN
END kmem_cache_destroy

# static struct kmem_cache *kmem_find_general_cachep(u64 bytes): the smallest class that will do;
# bytes <= MALLOC_MAX.
FUNC kmem_find_general_cachep
        xor ecx, ecx
1:      cmp [malloc_sizes+rcx*8], rdi
        jae 2f
        inc ecx
        jmp 1b
2:      mov rax, gs:[PCPU_SELF]
        mov rax, [rax+malloc_caches+rcx*8]
        RETURN
END kmem_find_general_cachep

# void *kmalloc(u64 bytes): memory with arbitrary contents, or NULL: there is none, or bytes is
# above a page. Up to MALLOC_MAX it comes from a class, else it is a page.
FUNC kmalloc
        cmp rdi, MALLOC_MAX
        ja 1f
        call kmem_find_general_cachep
        mov rdi, rax
        call kmem_cache_alloc
        RETURN
1:      xor eax, eax
        cmp rdi, PAGE_SIZE
        ja 2f
        call alloc_page
2:      RETURN
END kmalloc

# void *kzalloc(u64 bytes): the same, zeroed.
FUNC kzalloc
        push rbx
        sub rsp, 8
        mov rbx, rdi
        call kmalloc
        test rax, rax
        je 1f
        mov rdi, rax
        xor esi, esi
        mov rdx, rbx
        call memset
1:      add rsp, 8
        pop rbx
        RETURN
END kzalloc

# void kfree(void *p): p is from kmalloc on this CPU, or NULL.
FUNC kfree
        test rdi, rdi
        je 2f
        push rdi
        sub rsp, 8
        call virt_to_page
        add rsp, 8
        pop rsi
        test qword ptr [rax+PAGE_FLAGS], PG_slab
        je 1f
        mov rdi, [rax+PAGE_CACHE]
        call kmem_cache_free
        RETURN
1:      mov rdi, rsi
        call free_page
2:      RETURN
END kfree

# u64 ksize(void *p): the bytes that p really has; 0 for NULL.
FUNC ksize
        xor eax, eax
        test rdi, rdi
        je 2f
        call virt_to_page
        test qword ptr [rax+PAGE_FLAGS], PG_slab
        je 1f
        mov rax, [rax+PAGE_CACHE]
        mov rax, [rax+CACHE_OBJSIZE]
        RETURN
1:      mov eax, PAGE_SIZE
2:      RETURN
END ksize

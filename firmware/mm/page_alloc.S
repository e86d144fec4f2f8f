# mm/page_alloc.S: each CPU's pages, from [zone_start, zone_end) of its per-CPU area.
#
# A zone belongs to one CPU, its tasks never migrate, so there is no lock: whoever changes the free
# list disables preemption. Not for interrupt handlers.

.include "linkage.inc"
.include "percpu.inc"

# struct page: one for each page of the zone, in zone_mem_map
.set PAGE_FLAGS, 0
.set PAGE_NEXT, 8                       # the next free page
.set PAGE_CACHE, 16                     # PG_slab: its kmem_cache
.set PAGE_SLAB, 24                      # PG_slab: its slab
.set PAGE_STRUCT_SHIFT, 5

.set PG_free, 1                         # on the free list
.set PG_slab, 2                         # the slab allocator's
.set PAGE_SHIFT, 12

.percpu zone_mem_map, 8                 # struct page[zone_spanned_pages]
.percpu zone_base, 8                    # address of the page that zone_mem_map[0] stands for
.percpu zone_spanned_pages, 8
.percpu zone_free_list, 8               # struct page *, or NULL
.percpu zone_free_pages, 8

# void page_alloc_init_cpu(void): this CPU's zone. Runs once, before anything allocates on it.
FUNC page_alloc_init_cpu
        mov rax, gs:[PCPU_ZONE_START]
        mov rdi, rax
        mov rax, gs:[PCPU_ZONE_END]
        mov rsi, rax
        call free_area_init
        RETURN
END page_alloc_init_cpu
        CPU_INITCALL page_alloc_init_cpu

# static void free_area_init(u64 start, u64 end): struct pages first, then the whole pages behind
# them, all free; the lowest one is handed out first.
FUNC free_area_init
        push rbx
        push r12
        add rdi, 31
        and rdi, -32
        mov rax, rsi
        sub rax, rdi
        shr rax, PAGE_SHIFT             # enough, if some more than there will be pages
        shl rax, PAGE_STRUCT_SHIFT
        lea rbx, [rdi+rax+PAGE_SIZE-1]
        and rbx, -PAGE_SIZE
        mov r12, rsi
        sub r12, rbx
        sar r12, PAGE_SHIFT
        mov gs:[zone_mem_map], rdi
        mov gs:[zone_base], rbx
        mov gs:[zone_spanned_pages], r12
        xor eax, eax
        mov gs:[zone_free_list], rax
        mov gs:[zone_free_pages], rax
        mov rbx, r12
        shl rbx, PAGE_STRUCT_SHIFT
        add rbx, rdi                    # behind the last struct page
1:      test r12, r12
        jle 2f
        sub rbx, 1 << PAGE_STRUCT_SHIFT
        dec r12
        mov qword ptr [rbx+PAGE_FLAGS], 0
        mov rdi, rbx
        call free_one_page
        jmp 1b
2:      pop r12
        pop rbx
        RETURN
END free_area_init

# struct page *virt_to_page(void *address): of any byte in a page of this CPU's zone; anything else
# is a bug of the caller's. Clobbers rax, rcx.
FUNC virt_to_page
        mov rcx, rdi
        mov rax, gs:[zone_base]
        sub rcx, rax
        shr rcx, PAGE_SHIFT
        mov rax, gs:[zone_spanned_pages]
        cmp rcx, rax
        jae 1f
        shl rcx, PAGE_STRUCT_SHIFT
        mov rax, gs:[zone_mem_map]
        add rax, rcx
        RETURN
1:      ud2
END virt_to_page

# void *page_address(struct page *page). Clobbers rax, rcx.
FUNC page_address
        mov rax, gs:[zone_mem_map]
        mov rcx, rdi
        sub rcx, rax
        shl rcx, PAGE_SHIFT - PAGE_STRUCT_SHIFT
        mov rax, gs:[zone_base]
        add rax, rcx
        RETURN
END page_address

# static void free_one_page(struct page *page): onto the free list. Preemption is off.
FUNC free_one_page
        test qword ptr [rdi+PAGE_FLAGS], PG_free
        jne 1f                          # bad_page: free already
        mov rax, gs:[zone_free_list]
        mov [rdi+PAGE_NEXT], rax
        mov qword ptr [rdi+PAGE_FLAGS], PG_free
        mov gs:[zone_free_list], rdi
        inc qword ptr gs:[zone_free_pages]
        RETURN
1:      ud2
END free_one_page

# static struct page *rmqueue(void): the first page of the free list, or NULL. Preemption is off.
FUNC rmqueue
        mov rax, gs:[zone_free_list]
        test rax, rax
        je 1f
        mov rcx, [rax+PAGE_NEXT]
        mov gs:[zone_free_list], rcx
        dec qword ptr gs:[zone_free_pages]
        mov qword ptr [rax+PAGE_FLAGS], 0
1:      RETURN
END rmqueue

# void clear_page(void *page)
FUNC clear_page
        mov ecx, PAGE_SIZE / 8
        xor eax, eax
        rep stosq
        RETURN
END clear_page

# void *alloc_page(void): a page of zeros, or NULL.
FUNC alloc_page
        push rbx
        sub rsp, 8
        PREEMPT_DISABLE
        call rmqueue
        PREEMPT_ENABLE
        test rax, rax
        je 1f
        mov rdi, rax
        call page_address
        mov rbx, rax
        mov rdi, rax
        call clear_page
        mov rax, rbx
1:      add rsp, 8
        pop rbx
        RETURN
END alloc_page

# void free_page(void *p): p is from alloc_page on this CPU.
FUNC free_page
        call virt_to_page
        mov rdi, rax
        PREEMPT_DISABLE
        call free_one_page
        PREEMPT_ENABLE
        RETURN
END free_page

# u64 nr_free_pages(void): of this CPU.
FUNC nr_free_pages
        mov rax, gs:[zone_free_pages]
        RETURN
END nr_free_pages

# workloads/lib_steps.S: worker steps that exercise lib/ and mm/.
#
# \name_setup(task) allocates the task's private state, on the CPU it will run on, and puts it in
# task->data. \name_step(task) does one step of work on it and folds what came out into
# task->checksum. Steps run in their task's own context, preemptible, and share nothing: each
# result follows from task->rng and the steps before, never from an address, the time or another
# task. A result that is wrong is a BUG.

.include "linkage.inc"
.include "percpu.inc"

# static void *steps_alloc(struct task_struct *task, u64 bytes): task->data = zeroed memory.
FUNC steps_alloc
        push rbx
        sub rsp, 8
        mov rbx, rdi
        mov rdi, rsi
        call kzalloc
        test rax, rax
        je 1f
        mov [rbx+TASK_DATA], rax
        add rsp, 8
        pop rbx
        RETURN
1:      ud2                             # no memory at boot
END steps_alloc

# --- sort: fill an array, sort it, find some of it again ---------------------------------------

# struct sort_state
.set SORT_ROUND, 0
.set SORT_ARRAY, 8
.set SORT_STATE_SIZE, 8 + 48            # the largest array of sort_rounds

        .rodata
        .p2align 3
# The rounds: element size, cmp, algorithm, elements. Each size has a swap of its own.
sort_rounds:
        .quad 4, cmp_u32, sort, 8
        .quad 8, cmp_u64, insertion_sort, 6
        .quad 12, cmp_u32, sort, 4      # swapped byte by byte: fewer
        .quad 4, cmp_u32, insertion_sort, 8
        .text

FUNC sort_setup
        mov esi, SORT_STATE_SIZE
        call steps_alloc
        RETURN
END sort_setup

# rbx = task, r12 = state, r13 = the round's row of sort_rounds
FUNC sort_step
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, [rdi+TASK_DATA]
        mov r13, [r12+SORT_ROUND]
        inc qword ptr [r12+SORT_ROUND]
        and r13d, 3
        shl r13, 5
        lea r13, [sort_rounds+r13]

        lea rdi, [rbx+TASK_RNG]
        lea rsi, [r12+SORT_ARRAY]
        mov rdx, [r13]
        imul rdx, [r13+24]
        call prandom_bytes

        lea rdi, [r12+SORT_ARRAY]
        mov rsi, [r13+24]
        mov rdx, [r13]
        mov rcx, [r13+8]
        xor r8d, r8d
        call [r13+16]

        mov r14d, [r13+24]
        dec r14d                        # the last one and every third in front of it
1:      mov rdi, r14
        imul rdi, [r13]
        lea rdi, [r12+SORT_ARRAY+rdi]
        lea rsi, [r12+SORT_ARRAY]
        mov rdx, [r13+24]
        mov rcx, [r13]
        mov r8, [r13+8]
        push rdi
        sub rsp, 8
        call bsearch
        add rsp, 8
        pop rdi
        test rax, rax
        je 3f                           # not where a sorted array has it
        movzx esi, word ptr [rax]
        mov rdi, rbx
        call checksum_fold
        sub r14d, 3
        jns 1b

        mov edi, -1
        lea rsi, [r12+SORT_ARRAY]
        mov rdx, [r13]
        imul rdx, [r13+24]
        call crc32_le_slice4
        mov rdi, rbx
        mov esi, eax
        call checksum_fold
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
3:      ud2
END sort_step

# --- hash: a table whose entries come and go with the slab allocator ---------------------------

# struct hash_state
.set HASH_TABLE, 0                      # struct hash_table
.set HASH_CACHE, HASH_TABLE + HTAB_SIZE # struct kmem_cache of struct hash_entry
.set HASH_ROUND, HASH_CACHE + 8
.set HASH_BUCKETS, HASH_ROUND + 8
.set HASH_BITS, 3
.set HASH_STATE_SIZE, HASH_BUCKETS + (8 << HASH_BITS)
.set HASH_KEYS, 48                      # possible keys: what bounds the table
.set HASH_OPS, 4

        .rodata
.Lhash_cache_name:
        .asciz "hash_entry"
        .text

FUNC hash_setup
        push rbx
        sub rsp, 8
        mov esi, HASH_STATE_SIZE
        call steps_alloc
        mov rbx, rax
        lea rdi, [rbx+HASH_TABLE]
        lea rsi, [rbx+HASH_BUCKETS]
        mov edx, HASH_BITS
        call hashtable_init
        lea rdi, [rip+.Lhash_cache_name]
        mov esi, HENT_SIZE
        call kmem_cache_create
        test rax, rax
        je 1f
        mov [rbx+HASH_CACHE], rax
        add rsp, 8
        pop rbx
        RETURN
1:      ud2
END hash_setup

# static u64 hash_toggle(struct hash_state *state, u32 key): adds key, or takes it out; returns the
# value it has or had.
FUNC hash_toggle
        push rbx
        push r12
        push r13
        sub rsp, 8
        mov rbx, rdi
        mov r12d, esi
        lea rdi, [rbx+HASH_TABLE]
        call hashtable_lookup
        mov r13, rax
        test rax, rax
        jne 1f

        mov rdi, [rbx+HASH_CACHE]
        call kmem_cache_alloc
        test rax, rax
        je 3f
        mov r13, rax
        mov [rax+HENT_KEY], r12
        mov edi, r12d
        mov esi, [rbx+HASH_ROUND]
        xor edx, edx
        call jhash_2words
        mov r12d, eax
        mov [r13+HENT_VALUE], r12
        lea rdi, [rbx+HASH_TABLE]
        mov rsi, r13
        call hashtable_add
        jmp 2f

1:      mov r12, [r13+HENT_VALUE]
        lea rdi, [rbx+HASH_TABLE]
        mov rsi, r13
        call hashtable_del
        mov rdi, [rbx+HASH_CACHE]
        mov rsi, r13
        call kmem_cache_free
2:      mov rax, r12
        add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
3:      ud2
END hash_toggle

# static void hash_sum(struct hash_entry *entry, u64 *sum): for hashtable_for_each.
FUNC hash_sum
        push rbx
        mov rbx, rsi
        mov rdi, [rdi+HENT_VALUE]
        mov esi, 16
        call hash_32
        add [rbx], rax
        pop rbx
        RETURN
END hash_sum

FUNC hash_step
        push rbx
        push r12
        push r13
        sub rsp, 8                      # [rsp] sum
        mov rbx, rdi
        mov r12, [rdi+TASK_DATA]
        inc qword ptr [r12+HASH_ROUND]
        mov r13d, HASH_OPS
1:      lea rdi, [rbx+TASK_RNG]
        mov esi, HASH_KEYS
        call prandom_u32_max
        mov rdi, r12
        mov esi, eax
        call hash_toggle
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        dec r13d
        jne 1b
        test qword ptr [r12+HASH_ROUND], 7
        jne 2f                          # the whole table only now and then
        mov [rsp], r13
        lea rdi, [r12+HASH_TABLE]
        lea rsi, [rip+hash_sum]
        mov rdx, rsp
        call hashtable_for_each
        cmp rax, [r12+HASH_TABLE+HTAB_COUNT]
        jne 3f
        mov rdi, rbx
        mov rsi, [rsp]
        call checksum_fold
2:      add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
3:      ud2
END hash_step

# --- string: format, parse back, search, copy, sum up ------------------------------------------

# struct string_state
.set STRING_ROUND, 0
.set STRING_TEXT, 8                     # char[STRING_TEXT_SIZE]
.set STRING_COPY, 72
.set STRING_TEXT_SIZE, 64
.set STRING_STATE_SIZE, 136
.set STRING_BIG, 3000                   # beyond the classes of kmalloc: a page

        .rodata
.Lstring_format:
        .asciz "rx: %s=%d 0x%x"
.Lstring_name:
        .asciz "bytes"
.Lstring_name_upper:
        .asciz "BYTES"
.Lstring_suffix:
        .asciz " up\n"
        .text

FUNC string_setup
        mov esi, STRING_STATE_SIZE
        call steps_alloc
        RETURN
END string_setup

# static u64 string_parse(const char *text): checks what string_step formatted; the sum of its
# numbers.
FUNC string_parse
        push rbx
        push r12
        mov rbx, rdi
        lea rsi, [rip+.Lstring_name]
        call strstr
        mov rdi, rax
        mov esi, 0x3d                   # '='
        call strchr
        lea rdi, [rax+1]
        xor esi, esi
        mov edx, 10
        call simple_strtol
        mov r12, rax
        mov rdi, rbx
        mov esi, 0x20                   # ' '
        call strrchr
        lea rdi, [rax+1]
        xor esi, esi
        xor edx, edx
        call simple_strtoul
        add rax, r12
        pop r12
        pop rbx
        RETURN
END string_parse

# static u32 string_in_page(const char *s, u64 len): the crc of a copy at an odd place of a page.
FUNC string_in_page
        push rbx
        push r12
        push r13
        sub rsp, 8
        mov r12, rdi
        mov r13, rsi
        mov edi, STRING_BIG
        call kmalloc
        test rax, rax
        je 1f
        mov rbx, rax
        lea rdi, [rax+5]
        mov rsi, r12
        mov rdx, r13
        call memcpy
        mov edi, -1
        lea rsi, [rbx+5]
        mov rdx, r13
        call crc32_le_slice4
        mov r12d, eax
        mov rdi, rbx
        call kfree
        mov eax, r12d
        add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
1:      ud2
END string_in_page

# static u64 string_copy(struct string_state *state): state->copy becomes the text without its "rx: ",
# and " up"; returns the length.
FUNC string_copy
        push rbx
        push r12
        mov rbx, rdi
        lea rdi, [rbx+STRING_COPY]
        lea rsi, [rbx+STRING_TEXT]
        mov edx, STRING_TEXT_SIZE
        call strlcpy
        lea rdi, [rbx+STRING_COPY]
        lea rsi, [rip+.Lstring_suffix]
        mov edx, STRING_TEXT_SIZE
        call strlcat
        mov r12, rax
        lea rdi, [rbx+STRING_COPY]
        lea rsi, [rdi+4]
        lea rdx, [r12-3]
        call memmove
        lea rdi, [rbx+STRING_COPY]
        lea rsi, [rip+.Lstring_name_upper]
        mov edx, 3
        call strncmp
        test eax, eax
        jle 1f                          # lower case comes behind upper case
        lea rax, [r12-4]
        pop r12
        pop rbx
        RETURN
1:      ud2
END string_copy

# rbx = task, r12 = state, r13 = two 32-bit random numbers. Odd rounds parse what was formatted,
# even ones copy and sum it up.
FUNC string_step
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, [rdi+TASK_DATA]
        inc qword ptr [r12+STRING_ROUND]
        lea rdi, [rbx+TASK_RNG]
        call prandom_u64
        mov r13, 0x00000fff00000fff     # short numbers: a step has its price
        and r13, rax

        lea rdi, [r12+STRING_TEXT]
        mov esi, STRING_TEXT_SIZE
        lea rdx, [rip+.Lstring_format]
        lea rcx, [rip+.Lstring_name]
        mov r8d, r13d
        mov r9, r13
        shr r9, 32
        call snprintf
        test byte ptr [r12+STRING_ROUND], 1
        je 1f

        lea rdi, [r12+STRING_TEXT]
        call string_parse
        mov ecx, r13d
        shr r13, 32
        add r13, rcx
        cmp rax, r13
        jne 3f                          # not what was formatted
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        jmp 2f

1:      mov rdi, r12
        call string_copy
        mov r14, rax
        mov edi, -1
        lea rsi, [r12+STRING_COPY]
        mov rdx, r14
        call crc32_le
        mov r13d, eax
        mov rdi, rbx
        mov esi, eax
        call checksum_fold
        lea rdi, [r12+STRING_COPY]
        mov rsi, r14
        call ip_compute_csum
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        test byte ptr [r12+STRING_ROUND], 7
        jne 2f
        lea rdi, [r12+STRING_COPY]
        mov rsi, r14
        call string_in_page
        cmp eax, r13d
        jne 3f
2:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
3:      ud2
END string_step

# --- tree: a red-black tree next to a bitmap of the same keys ----------------------------------

# struct tree_state
.set TREE_ROOT, 0                       # struct rb_root
.set TREE_COUNT, 8
.set TREE_ROUND, 16
.set TREE_BITMAP, 24                    # bit k: key k is in the tree
.set TREE_KEYS, 128
.set TREE_STATE_SIZE, TREE_BITMAP + TREE_KEYS / 8
.set TREE_OPS, 2

# struct tree_item
.set ITEM_NODE, 0                       # struct rb_node
.set ITEM_KEY, RB_NODE_SIZE
.set ITEM_SIZE, RB_NODE_SIZE + 8

FUNC tree_setup
        mov esi, TREE_STATE_SIZE
        call steps_alloc
        RETURN
END tree_setup

# static struct rb_node **tree_find(struct rb_root *root, u64 key): the link to key's node, or the
# one where it belongs; rdx = its parent.
FUNC tree_find
        xor edx, edx
        mov rax, rdi
1:      mov rcx, [rax]
        test rcx, rcx
        je 3f
        cmp rsi, [rcx+ITEM_KEY]
        je 3f
        mov rdx, rcx
        lea rax, [rcx+RB_LEFT]
        jb 2f
        lea rax, [rcx+RB_RIGHT]
2:      jmp 1b
3:      RETURN
END tree_find

# static void tree_insert(struct rb_root *root, u64 key): key is not in the tree.
FUNC tree_insert
        push rbx
        push r12
        push r13
        sub rsp, 8
        mov rbx, rdi
        mov r12, rsi
        mov edi, ITEM_SIZE
        call kmalloc
        test rax, rax
        je 1f
        mov r13, rax
        mov [rax+ITEM_KEY], r12
        mov rdi, rbx
        mov rsi, r12
        call tree_find
        mov rdi, r13
        mov rsi, rdx
        mov rdx, rax
        call rb_link_node
        mov rdi, r13
        mov rsi, rbx
        call rb_insert_color
        add rsp, 8
        pop r13
        pop r12
        pop rbx
        RETURN
1:      ud2
END tree_insert

# static void tree_erase(struct rb_root *root, u64 key): key is in the tree.
FUNC tree_erase
        push rbx
        push r12
        mov r12, rdi
        call tree_find
        mov rbx, [rax]
        test rbx, rbx
        je 1f
        mov rdi, rbx
        mov rsi, r12
        call rb_erase
        mov rdi, rbx
        call kfree
        pop r12
        pop rbx
        RETURN
1:      ud2
END tree_erase

# static u64 tree_check(struct tree_state *state): walks the tree along with the bitmap; a hash of
# its keys.
FUNC tree_check
        push rbx
        push r12
        push r13
        push r14
        mov r12, rdi
        xor r13d, r13d                  # where to look on in the bitmap
        xor r14d, r14d
        lea rdi, [r12+TREE_ROOT]
        call rb_first
        mov rbx, rax
1:      lea rdi, [r12+TREE_BITMAP]
        mov esi, TREE_KEYS
        mov rdx, r13
        call find_next_bit
        test rbx, rbx
        je 2f
        cmp rax, [rbx+ITEM_KEY]
        jne 3f
        lea r13, [rax+1]
        imul r14, r14, 31
        add r14, rax
        mov rdi, rbx
        call rb_next
        mov rbx, rax
        jmp 1b
2:      cmp rax, TREE_KEYS
        jne 3f
        mov rax, r14
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
3:      ud2
END tree_check

# rbx = task, r12 = state, r13 = key, r14d = what is left to do
FUNC tree_step
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, [rdi+TASK_DATA]
        inc qword ptr [r12+TREE_ROUND]
        mov r14d, TREE_OPS
1:      lea rdi, [rbx+TASK_RNG]
        mov esi, TREE_KEYS
        call prandom_u32_max
        mov r13d, eax
        mov rdi, r13
        lea rsi, [r12+TREE_BITMAP]
        call test_bit
        test eax, eax
        jne 2f
        mov rdi, r13
        lea rsi, [r12+TREE_BITMAP]
        call __set_bit
        inc qword ptr [r12+TREE_COUNT]
        lea rdi, [r12+TREE_ROOT]
        mov rsi, r13
        call tree_insert
        jmp 3f
2:      mov rdi, r13
        lea rsi, [r12+TREE_BITMAP]
        call __clear_bit
        dec qword ptr [r12+TREE_COUNT]
        lea rdi, [r12+TREE_ROOT]
        mov rsi, r13
        call tree_erase
3:      dec r14d
        jne 1b

        lea rdi, [r12+TREE_BITMAP]
        mov esi, TREE_KEYS
        call bitmap_weight
        cmp rax, [r12+TREE_COUNT]
        jne 5f
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
        lea rdi, [r12+TREE_BITMAP]
        mov esi, TREE_KEYS
        call find_first_zero_bit
        lea rsi, [rax+r13]
        mov rdi, rbx
        call checksum_fold
        test qword ptr [r12+TREE_ROUND], 7
        jne 4f                          # the whole tree only now and then
        mov rdi, r12
        call tree_check
        mov rdi, rbx
        mov rsi, rax
        call checksum_fold
4:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
5:      ud2
END tree_step

# --- list: two lists filled, joined and sorted -------------------------------------------------

# struct list_item
.set LITEM_LIST, 0                      # struct list_head
.set LITEM_KEY, 16
.set LITEM_SIZE, 24

# struct list_state
.set LSTATE_EVEN, 0                     # struct list_head
.set LSTATE_ODD, 16                     # struct list_head
.set LSTATE_ITEMS, 32                   # struct list_item[LIST_ITEMS]
.set LIST_ITEMS, 6
.set LSTATE_SIZE, LSTATE_ITEMS + LIST_ITEMS * LITEM_SIZE

FUNC list_setup
        push rbx
        sub rsp, 8
        mov esi, LSTATE_SIZE
        call steps_alloc
        mov rbx, rax
        lea rdi, [rbx+LSTATE_EVEN]
        call INIT_LIST_HEAD
        lea rdi, [rbx+LSTATE_ODD]
        call INIT_LIST_HEAD
        add rsp, 8
        pop rbx
        RETURN
END list_setup

# static int list_item_cmp(void *priv, struct list_head *a, struct list_head *b)
FUNC list_item_cmp
        lea rdi, [rsi+LITEM_KEY]
        lea rsi, [rdx+LITEM_KEY]
        call cmp_u64
        RETURN
END list_item_cmp

# static void list_fill(struct list_state *state, u64 *rng): each item gets a key and goes on one
# of the lists.
FUNC list_fill
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
        lea r13, [rdi+LSTATE_ITEMS]
        mov r14d, LIST_ITEMS
1:      mov rdi, r12
        call prandom_u32
        mov [r13+LITEM_KEY], rax
        mov rdi, r13
        test al, 1
        jne 2f
        lea rsi, [rbx+LSTATE_EVEN]
        call list_add
        jmp 3f
2:      lea rsi, [rbx+LSTATE_ODD]
        call list_add_tail
3:      add r13, LITEM_SIZE
        dec r14d
        jne 1b
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END list_fill

# rbx = task, r12 = state, r13 = the key before, r14d = items seen
FUNC list_step
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, [rdi+TASK_DATA]
        mov rdi, r12
        lea rsi, [rbx+TASK_RNG]
        call list_fill
        lea rdi, [r12+LSTATE_ODD]
        lea rsi, [r12+LSTATE_EVEN]
        call list_splice_init
        xor edi, edi
        lea rsi, [r12+LSTATE_EVEN]
        lea rdx, [rip+list_item_cmp]
        call list_sort
        xor r13d, r13d
        xor r14d, r14d
1:      lea rdi, [r12+LSTATE_EVEN]
        call list_empty
        test eax, eax
        jne 2f
        mov rdi, [r12+LSTATE_EVEN]
        mov rsi, [rdi+LITEM_KEY]
        cmp rsi, r13
        jb 3f                           # not in order
        mov r13, rsi
        inc r14d
        call list_del
        mov rdi, rbx
        mov rsi, r13
        call checksum_fold
        jmp 1b
2:      cmp r14d, LIST_ITEMS
        jne 3f                          # one was lost
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
3:      ud2
END list_step

# lib/hashtable.S: hlists, and a hash table of them with 64-bit keys.
#
# Nothing is allocated: buckets and entries are the caller's, and so is the lock.
#
#   struct hlist_node { struct hlist_node *next, **pprev; };
#   struct hlist_head { struct hlist_node *first; };

.include "linkage.inc"

.set HLIST_NEXT, 0
.set HLIST_PPREV, 8                     # 0: on no list

# struct hash_table
.set HTAB_BUCKETS, 0                    # struct hlist_head[1 << bits]
.set HTAB_BITS, 8
.set HTAB_COUNT, 16                     # entries
.set HTAB_SIZE, 24

# struct hash_entry
.set HENT_NODE, 0                       # struct hlist_node
.set HENT_KEY, 16
.set HENT_VALUE, 24
.set HENT_SIZE, 32

# void hlist_add_head(struct hlist_node *n, struct hlist_head *h)
FUNC hlist_add_head
        mov rax, [rsi]
        mov [rdi+HLIST_NEXT], rax
        test rax, rax
        je 1f
        mov [rax+HLIST_PPREV], rdi      # &n->next is n
1:      mov [rsi], rdi
        mov [rdi+HLIST_PPREV], rsi
        RETURN
END hlist_add_head

# void hlist_del_init(struct hlist_node *n): does nothing if it is on no list.
FUNC hlist_del_init
        mov rcx, [rdi+HLIST_PPREV]
        test rcx, rcx
        je 2f
        mov rax, [rdi+HLIST_NEXT]
        mov [rcx], rax
        test rax, rax
        je 1f
        mov [rax+HLIST_PPREV], rcx
1:      xor eax, eax
        mov [rdi+HLIST_NEXT], rax
        mov [rdi+HLIST_PPREV], rax
2:      RETURN
END hlist_del_init

# bool hlist_unhashed(const struct hlist_node *n)
FUNC hlist_unhashed
        xor eax, eax
        cmp qword ptr [rdi+HLIST_PPREV], 0
        sete al
        RETURN
END hlist_unhashed

# void hashtable_init(struct hash_table *t, struct hlist_head *buckets, unsigned bits): empties
# the buckets; bits >= 1.
FUNC hashtable_init
        mov [rdi+HTAB_BUCKETS], rsi
        mov [rdi+HTAB_BITS], rdx
        mov qword ptr [rdi+HTAB_COUNT], 0
        mov ecx, edx
        mov edx, 8
        shl rdx, cl
        mov rdi, rsi
        xor esi, esi
        call memset
        RETURN
END hashtable_init

# struct hlist_head *hashtable_bucket(struct hash_table *t, u64 key)
FUNC hashtable_bucket
        push rbx
        mov rbx, rdi
        mov rdi, rsi
        mov esi, [rbx+HTAB_BITS]
        call hash_long
        shl rax, 3
        add rax, [rbx+HTAB_BUCKETS]
        pop rbx
        RETURN
END hashtable_bucket

# void hashtable_add(struct hash_table *t, struct hash_entry *e): e->key may be there already; the
# newer one is found first.
FUNC hashtable_add
        push rbx
        mov rbx, rsi
        inc qword ptr [rdi+HTAB_COUNT]
        mov rsi, [rbx+HENT_KEY]
        call hashtable_bucket
        mov rdi, rbx
        mov rsi, rax
        call hlist_add_head
        pop rbx
        RETURN
END hashtable_add

# struct hash_entry *hashtable_lookup(struct hash_table *t, u64 key): or NULL.
FUNC hashtable_lookup
        push rbx
        mov rbx, rsi
        call hashtable_bucket
        mov rax, [rax]
1:      test rax, rax
        je 2f
        cmp [rax+HENT_KEY], rbx
        je 2f
        mov rax, [rax+HLIST_NEXT]
        jmp 1b
2:      pop rbx
        RETURN
END hashtable_lookup

# void hashtable_del(struct hash_table *t, struct hash_entry *e): e is in t.
FUNC hashtable_del
        dec qword ptr [rdi+HTAB_COUNT]
        mov rdi, rsi
        call hlist_del_init
        RETURN
END hashtable_del

# u64 hashtable_for_each(struct hash_table *t, fn, void *data): void fn(struct hash_entry *, void
# *data) for every entry, bucket by bucket; fn may delete the one it gets. How many there were.
FUNC hashtable_for_each
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov r12, rsi
        mov r13, rdx
        mov rbx, [rdi+HTAB_BUCKETS]
        mov ecx, [rdi+HTAB_BITS]
        mov r14d, 8
        shl r14, cl
        add r14, rbx
        push 0                          # entries so far
        jmp 4f
1:      mov rdi, [rbx]
2:      test rdi, rdi
        je 3f
        mov r15, [rdi+HLIST_NEXT]
        mov rsi, r13
        inc qword ptr [rsp]
        call r12
        mov rdi, r15
        jmp 2b
3:      add rbx, 8
4:      cmp rbx, r14
        jb 1b
        pop rax
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END hashtable_for_each

# lib/list.S: doubly linked circular lists, <linux/list.h> and lib/list_sort.c.
#
#   struct list_head { struct list_head *next, *prev; };
#
# The lock is the caller's.

.include "linkage.inc"

.set LIST_NEXT, 0
.set LIST_PREV, 8
.set MAX_LIST_LENGTH_BITS, 12

# What a deleted entry points to: not canonical, so that its use faults.
.set LIST_POISON1, 0xdead000000100100
.set LIST_POISON2, 0xdead000000200200

# void INIT_LIST_HEAD(struct list_head *list)
FUNC INIT_LIST_HEAD
        mov [rdi+LIST_NEXT], rdi
        mov [rdi+LIST_PREV], rdi
        RETURN
END INIT_LIST_HEAD

# static void __list_add(struct list_head *new, struct list_head *prev, struct list_head *next)
FUNC __list_add
        mov [rdx+LIST_PREV], rdi
        mov [rdi+LIST_NEXT], rdx
        mov [rdi+LIST_PREV], rsi
        mov [rsi+LIST_NEXT], rdi
        RETURN
END __list_add

# void list_add(struct list_head *new, struct list_head *head): behind the head.
FUNC list_add
        mov rdx, [rsi+LIST_NEXT]
        call __list_add
        RETURN
END list_add

# void list_add_tail(struct list_head *new, struct list_head *head): in front of the head.
FUNC list_add_tail
        mov rdx, rsi
        mov rsi, [rsi+LIST_PREV]
        call __list_add
        RETURN
END list_add_tail

# void __list_del(struct list_head *prev, struct list_head *next)
FUNC __list_del
        mov [rsi+LIST_PREV], rdi
        mov [rdi+LIST_NEXT], rsi
        RETURN
END __list_del

# void list_del(struct list_head *entry): entry's own pointers become poison. Keeps rdi.
FUNC list_del
        push rdi
        mov rsi, [rdi+LIST_NEXT]
        mov rdi, [rdi+LIST_PREV]
        call __list_del
        pop rdi
        mov rax, LIST_POISON1
        mov [rdi+LIST_NEXT], rax
        mov rax, LIST_POISON2
        mov [rdi+LIST_PREV], rax
        RETURN
END list_del

# void list_move(struct list_head *entry, struct list_head *head): from its list to behind head.
FUNC list_move
        push rsi
        call list_del
        pop rsi
        call list_add
        RETURN
END list_move

# bool list_empty(const struct list_head *head)
FUNC list_empty
        xor eax, eax
        cmp [rdi+LIST_NEXT], rdi
        sete al
        RETURN
END list_empty

# void list_splice_init(struct list_head *list, struct list_head *head): list's entries go behind
# head, in their order; list is empty then.
FUNC list_splice_init
        push rbx
        mov rbx, rdi
        push rsi
        call list_empty
        pop rsi
        test eax, eax
        jne 1f
        mov rax, [rbx+LIST_NEXT]        # first
        mov rcx, [rbx+LIST_PREV]        # last
        mov rdx, [rsi+LIST_NEXT]        # at
        mov [rax+LIST_PREV], rsi
        mov [rsi+LIST_NEXT], rax
        mov [rcx+LIST_NEXT], rdx
        mov [rdx+LIST_PREV], rcx
        mov rdi, rbx
        call INIT_LIST_HEAD
1:      pop rbx
        RETURN
END list_splice_init

# static struct list_head *merge(void *priv, cmp, struct list_head *a, struct list_head *b): two
# sorted chains, ended by NULL, become one. Only ->next is kept.
FUNC merge
        push rbx
        push r12
        push r13
        push r14
        push r15
        sub rsp, 24                     # [rsp] priv, [rsp+8] the head of the result
        mov [rsp], rdi
        mov r12, rsi
        mov r13, rdx
        mov r14, rcx
        lea r15, [rsp+8]                # its tail: where the next pointer goes
1:      mov rbx, r14
        test r13, r13
        je 4f
        mov rbx, r13
        test r14, r14
        je 4f
        mov rdi, [rsp]
        mov rsi, r13
        mov rdx, r14
        call r12
        test eax, eax
        jg 2f                           # equal: a stays in front, the sort is stable
        mov r13, [r13+LIST_NEXT]
        jmp 3f
2:      mov rbx, r14
        mov r14, [r14+LIST_NEXT]
3:      mov [r15], rbx
        lea r15, [rbx+LIST_NEXT]
        jmp 1b
4:      mov [r15], rbx                  # the rest of the other
        mov rax, [rsp+8]
        add rsp, 24
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END merge

# static void restore_back_links(struct list_head *head, struct list_head *chain): head gets the
# chain, as a circle that goes both ways.
FUNC restore_back_links
        mov rax, rdi
1:      mov [rax+LIST_NEXT], rsi
        test rsi, rsi
        je 2f
        mov [rsi+LIST_PREV], rax
        mov rax, rsi
        mov rsi, [rsi+LIST_NEXT]
        jmp 1b
2:      mov [rax+LIST_NEXT], rdi
        mov [rdi+LIST_PREV], rax
        RETURN
END restore_back_links

# void list_sort(void *priv, struct list_head *head, cmp): a stable merge sort.
# int cmp(void *priv, struct list_head *a, struct list_head *b): above zero if b comes first.
#
# part[k] is a sorted chain of 2^k entries, or NULL: an entry is added like one to a binary number.
# Beyond 2^MAX_LIST_LENGTH_BITS entries the last part just grows.
FUNC list_sort
        push rbx
        push r12
        push r13
        push r14
        push r15
        sub rsp, 8*MAX_LIST_LENGTH_BITS+8
        mov r12, rdi
        mov r13, rsi
        mov r14, rdx
        mov rdi, rsp
        xor esi, esi
        mov edx, 8*MAX_LIST_LENGTH_BITS
        call memset
        mov rax, [r13+LIST_PREV]
        mov qword ptr [rax+LIST_NEXT], 0
        mov r15, [r13+LIST_NEXT]        # what is left to sort
        test r15, r15
        je 5f                           # empty: the store hit the head itself
1:      mov rcx, r15                    # cur
        mov r15, [rcx+LIST_NEXT]
        mov qword ptr [rcx+LIST_NEXT], 0
        xor ebx, ebx
2:      mov rdx, [rsp+rbx*8]
        test rdx, rdx
        je 3f
        mov qword ptr [rsp+rbx*8], 0
        mov rdi, r12
        mov rsi, r14
        call merge
        mov rcx, rax
        cmp ebx, MAX_LIST_LENGTH_BITS-1
        je 3f
        inc ebx
        jmp 2b
3:      mov [rsp+rbx*8], rcx
        test r15, r15
        jne 1b
        xor ebx, ebx                    # r15 = NULL: the result so far
4:      mov rdx, [rsp+rbx*8]
        inc ebx
        test rdx, rdx
        je 6f
        mov rdi, r12
        mov rsi, r14
        mov rcx, r15                    # rdx's entries came earlier: they stay in front
        call merge
        mov r15, rax
6:      cmp ebx, MAX_LIST_LENGTH_BITS
        jne 4b
5:      mov rdi, r13
        mov rsi, r15
        call restore_back_links
        add rsp, 8*MAX_LIST_LENGTH_BITS+8
        pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END list_sort

# lib/rbtree.S: red-black trees, with the interface of <linux/rbtree.h>.
#
#   struct rb_node { unsigned long rb_parent_color; struct rb_node *rb_right, *rb_left; };
#   struct rb_root { struct rb_node *rb_node; };
#
# Nodes are 8-byte aligned: bit 0 of rb_parent_color is the colour. NULL counts as black. Who
# searches or links a node knows the keys; here are only shapes and colours. The lock is the
# caller's.

.include "linkage.inc"

.set RB_PARENT_COLOR, 0
.set RB_RIGHT, 8
.set RB_LEFT, 16
.set RB_NODE_SIZE, 24
.set RB_BLACK, 1                        # red is 0

# \parent = rb_parent(\node)
.macro RB_PARENT parent, node
        mov \parent, [\node+RB_PARENT_COLOR]
        and \parent, -4
.endm

# rb_set_parent(\node, \parent)
.macro RB_SET_PARENT node, parent
        and qword ptr [\node+RB_PARENT_COLOR], RB_BLACK
        or [\node+RB_PARENT_COLOR], \parent
.endm

.macro RB_SET_BLACK node
        or qword ptr [\node+RB_PARENT_COLOR], RB_BLACK
.endm

.macro RB_SET_RED node
        and qword ptr [\node+RB_PARENT_COLOR], -4
.endm

# Go to \label if \node is red, else fall through.
.macro RB_IF_RED node, label
        test \node, \node
        je .Lrb_black\@
        test byte ptr [\node+RB_PARENT_COLOR], RB_BLACK
        je \label
.Lrb_black\@:
.endm

# void rb_link_node(struct rb_node *node, struct rb_node *parent, struct rb_node **rb_link): a red
# leaf; rb_insert_color comes next.
FUNC rb_link_node
        xor eax, eax
        mov [rdi+RB_PARENT_COLOR], rsi
        mov [rdi+RB_RIGHT], rax
        mov [rdi+RB_LEFT], rax
        mov [rdx], rdi
        RETURN
END rb_link_node

# static void rb_change_child(struct rb_node *parent, old, new, struct rb_root *root): what points
# to old from above points to new. parent NULL: old was the root. Clobbers nothing but flags.
FUNC rb_change_child
        test rdi, rdi
        je 2f
        cmp [rdi+RB_LEFT], rsi
        jne 1f
        mov [rdi+RB_LEFT], rdx
        RETURN
1:      mov [rdi+RB_RIGHT], rdx
        RETURN
2:      mov [rcx], rdx
        RETURN
END rb_change_child

# static void \name(struct rb_node *node, struct rb_root *root): the \up child takes node's place,
# node becomes its \down child.
.macro RB_ROTATE name, up, down
FUNC \name
        mov r8, rdi                     # node
        mov rcx, rsi
        mov rdx, [r8+\up]               # the child
        mov rax, [rdx+\down]
        mov [r8+\up], rax
        test rax, rax
        je 1f
        RB_SET_PARENT rax, r8
1:      mov [rdx+\down], r8
        RB_PARENT rdi, r8
        RB_SET_PARENT rdx, rdi
        RB_SET_PARENT r8, rdx
        mov rsi, r8
        call rb_change_child
        RETURN
END \name
.endm

        RB_ROTATE __rb_rotate_left, RB_RIGHT, RB_LEFT
        RB_ROTATE __rb_rotate_right, RB_LEFT, RB_RIGHT

# A step of rb_insert_color, where rbx = node and its parent r13 are red, and r13 is the \near
# child of r14. Goes on at .Lrb_insert with the next node, or is done at .Lrb_insert_done.
.macro RB_INSERT_STEP near, far, rotate_near, rotate_far
        mov rax, [r14+\far]             # uncle
        RB_IF_RED rax, .Lrb_recolor\@
        cmp rbx, [r13+\far]
        jne .Lrb_outer\@
        mov rdi, r13
        mov rsi, r12
        call \rotate_near
        mov r13, rbx                    # they have changed places
.Lrb_outer\@:
        RB_SET_BLACK r13
        RB_SET_RED r14
        mov rdi, r14
        mov rsi, r12
        call \rotate_far
        jmp .Lrb_insert_done
.Lrb_recolor\@:
        RB_SET_BLACK rax
        RB_SET_BLACK r13
        RB_SET_RED r14
        mov rbx, r14
        jmp .Lrb_insert
.endm

# void rb_insert_color(struct rb_node *node, struct rb_root *root): rebalance after rb_link_node.
FUNC rb_insert_color
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r12, rsi
.Lrb_insert:
        RB_PARENT r13, rbx
        RB_IF_RED r13, 1f
        jmp .Lrb_insert_done
1:      RB_PARENT r14, r13              # there is one: a red node is not the root
        cmp r13, [r14+RB_LEFT]
        jne 2f
        RB_INSERT_STEP RB_LEFT, RB_RIGHT, __rb_rotate_left, __rb_rotate_right
2:      RB_INSERT_STEP RB_RIGHT, RB_LEFT, __rb_rotate_right, __rb_rotate_left
.Lrb_insert_done:
        mov rax, [r12]
        RB_SET_BLACK rax
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END rb_insert_color

# A step of __rb_erase_color, where rbx, the \near child of r13, lacks one black node. Goes on at
# .Lrb_erase, or is done at .Lrb_erase_done.
.macro RB_ERASE_STEP near, far, rotate_near, rotate_far
        mov r14, [r13+\far]             # other: there is one, or the \far side had no black
        test byte ptr [r14+RB_PARENT_COLOR], RB_BLACK
        jne .Lrb_other_black\@
        RB_SET_BLACK r14
        RB_SET_RED r13
        mov rdi, r13
        mov rsi, r12
        call \rotate_near
        mov r14, [r13+\far]
.Lrb_other_black\@:
        mov rax, [r14+\far]
        RB_IF_RED rax, .Lrb_far_red\@
        mov rax, [r14+\near]
        RB_IF_RED rax, .Lrb_near_red\@
        RB_SET_RED r14
        mov rbx, r13
        RB_PARENT r13, rbx
        jmp .Lrb_erase
.Lrb_near_red\@:
        RB_SET_BLACK rax
        RB_SET_RED r14
        mov rdi, r14
        mov rsi, r12
        call \rotate_far
        mov r14, [r13+\far]
.Lrb_far_red\@:
        mov rax, [r13+RB_PARENT_COLOR]  # other takes the parent's colour
        and eax, RB_BLACK
        RB_SET_RED r14
        or [r14+RB_PARENT_COLOR], rax
        RB_SET_BLACK r13
        mov rax, [r14+\far]
        RB_SET_BLACK rax
        mov rdi, r13
        mov rsi, r12
        call \rotate_near
        mov rbx, [r12]
        jmp .Lrb_erase_done
.endm

# static void __rb_erase_color(struct rb_node *node, struct rb_node *parent, struct rb_root *root):
# rebalance: the paths through node (which may be NULL) lack one black node.
FUNC __rb_erase_color
        push rbx
        push r12
        push r13
        push r14
        mov rbx, rdi
        mov r13, rsi
        mov r12, rdx
.Lrb_erase:
        RB_IF_RED rbx, .Lrb_erase_done
        cmp rbx, [r12]
        je .Lrb_erase_done
        cmp rbx, [r13+RB_LEFT]
        jne 1f
        RB_ERASE_STEP RB_LEFT, RB_RIGHT, __rb_rotate_left, __rb_rotate_right
1:      RB_ERASE_STEP RB_RIGHT, RB_LEFT, __rb_rotate_right, __rb_rotate_left
.Lrb_erase_done:
        test rbx, rbx
        je 2f
        RB_SET_BLACK rbx
2:      pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END __rb_erase_color

# void rb_erase(struct rb_node *node, struct rb_root *root)
#
# rbx = node, r12 = root; what leaves its place has r13 = the parent there, r14 = its only child
# or NULL, and the colour r15b.
FUNC rb_erase
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov rbx, rdi
        mov r12, rsi
        mov r14, [rbx+RB_RIGHT]
        mov rax, [rbx+RB_LEFT]
        test rax, rax
        je 1f
        test r14, r14
        jne 3f
        mov r14, rax
1:      mov r15, [rbx+RB_PARENT_COLOR]  # one child at most: it moves up
        RB_PARENT r13, rbx
        test r14, r14
        je 2f
        RB_SET_PARENT r14, r13
2:      mov rdi, r13
        mov rsi, rbx
        mov rdx, r14
        mov rcx, r12
        call rb_change_child
        jmp 7f

3:      mov rdi, rbx                    # two: the successor leaves its place for node's
        call rb_next
        mov r14, [rax+RB_RIGHT]
        mov r15, [rax+RB_PARENT_COLOR]
        RB_PARENT r13, rax
        cmp r13, rbx
        jne 4f
        mov r13, rax                    # it is node's own child, and keeps its right side
        test r14, r14
        je 6f
        RB_SET_PARENT r14, rax
        jmp 6f
4:      mov [r13+RB_LEFT], r14
        test r14, r14
        je 5f
        RB_SET_PARENT r14, r13
5:      mov rcx, [rbx+RB_RIGHT]
        mov [rax+RB_RIGHT], rcx
        RB_SET_PARENT rcx, rax
6:      mov rcx, [rbx+RB_LEFT]
        mov [rax+RB_LEFT], rcx
        RB_SET_PARENT rcx, rax
        mov rcx, [rbx+RB_PARENT_COLOR]
        mov [rax+RB_PARENT_COLOR], rcx
        RB_PARENT rdi, rbx
        mov rsi, rbx
        mov rdx, rax
        mov rcx, r12
        call rb_change_child

7:      test r15, RB_BLACK
        je 8f
        mov rdi, r14
        mov rsi, r13
        mov rdx, r12
        call __rb_erase_color
8:      pop r15
        pop r14
        pop r13
        pop r12
        pop rbx
        RETURN
END rb_erase

# struct rb_node *\name(struct rb_root *root): the outermost node on the \side, or NULL.
.macro RB_OUTERMOST name, side
FUNC \name
        mov rcx, [rdi]
        xor eax, eax
        jmp 2f
1:      mov rax, rcx
        mov rcx, [rcx+\side]
2:      test rcx, rcx
        jne 1b
        RETURN
END \name
.endm

        RB_OUTERMOST rb_first, RB_LEFT
        RB_OUTERMOST rb_last, RB_RIGHT

# struct rb_node *\name(struct rb_node *node): its neighbour on the \side, or NULL. Clobbers rcx.
.macro RB_NEIGHBOUR name, side, opposite
FUNC \name
        mov rax, [rdi+\side]
        test rax, rax
        je 2f
1:      mov rcx, [rax+\opposite]        # the outermost below it on the other side
        test rcx, rcx
        je 3f
        mov rax, rcx
        jmp 1b
2:      mov rcx, rdi                    # or the first ancestor that is not left behind
        RB_PARENT rax, rcx
        mov rdi, rax
        test rax, rax
        je 3f
        cmp rcx, [rax+\side]
        je 2b
3:      RETURN
END \name
.endm

        RB_NEIGHBOUR rb_next, RB_RIGHT, RB_LEFT
        RB_NEIGHBOUR rb_prev, RB_LEFT, RB_RIGHT

# void rb_replace_node(struct rb_node *victim, struct rb_node *new, struct rb_root *root): new gets
# victim's place and colour, without rebalancing.
FUNC rb_replace_node
        mov rcx, rdx
        mov rdx, rsi
        mov rsi, rdi
        mov rax, [rsi+RB_PARENT_COLOR]
        mov [rdx+RB_PARENT_COLOR], rax
.irp side, RB_LEFT, RB_RIGHT
        mov rax, [rsi+\side]
        mov [rdx+\side], rax
        test rax, rax
        je 1f
        RB_SET_PARENT rax, rdx
1:
.endr
        RB_PARENT rdi, rsi
        call rb_change_child
        RETURN
END rb_replace_node

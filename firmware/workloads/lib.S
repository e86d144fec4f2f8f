# workload "lib": the routines of lib/ that "default" leaves alone.

.include "linkage.inc"
.include "percpu.inc"
.include "workload.inc"

.rodata
.Lname_string:
        .asciz "string"
.Lname_tree:
        .asciz "tree"
.Lname_list:
        .asciz "list"
        .p2align 3
workload_list_lib:
        WORKER string, 8
        WORKER tree, 8
        WORKER list, 8
        .quad 0

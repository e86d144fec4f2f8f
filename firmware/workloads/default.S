# workload "default": a kernel's day: files, a pipe, drivers, and what lib/ and mm/ are for. An
# iteration is about 60,000 instructions without the calls to mcount.

.include "linkage.inc"
.include "percpu.inc"
.include "workload.inc"

.rodata
.Lname_fs:
        .asciz "fs"
.Lname_pipe_writer:
        .asciz "pipe_writer"
.Lname_pipe_reader:
        .asciz "pipe_reader"
.Lname_driver:
        .asciz "driver"
.Lname_sort:
        .asciz "sort"
.Lname_hash:
        .asciz "hash"
.Lname_string:
        .asciz "string"
.Lname_tree:
        .asciz "tree"
.Lname_list:
        .asciz "list"
        .p2align 3
workload_list_default:
        WORKER fs, 3
        WORKER pipe_writer, 3
        WORKER pipe_reader, 3
        WORKER driver, 3
        WORKER sort, 3
        WORKER hash, 3
        WORKER string, 3
        WORKER tree, 3
        WORKER list, 3
        .quad 0

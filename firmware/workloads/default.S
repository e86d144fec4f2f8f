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
        WORKER fs, 6
        WORKER pipe_writer, 6
        WORKER pipe_reader, 6
        WORKER driver, 6
        WORKER sort, 6
        WORKER hash, 6
        WORKER string, 6
        WORKER tree, 6
        WORKER list, 6
        .quad 0

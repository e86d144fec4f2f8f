# loop: a disk within a file, enciphered with transfer_xor.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

BLOCK_DRIVER loop, "loop0", LOOP_MAJOR << 8, 256, transfer_xor

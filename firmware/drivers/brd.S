# brd: a disk in memory.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"

BLOCK_DRIVER brd, "ram0", RAMDISK_MAJOR << 8, 256, transfer_none

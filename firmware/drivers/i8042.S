# i8042: the keyboard controller. Command 0xd2 makes it echo what it is sent, as if it were typed.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"
.include "kfifo.inc"

FIFO_DRIVER i8042, "kbd", misc_register, MISC_MAJOR << 8 | 11, 32, 0

# psmouse: a PS/2 mouse in wrap mode (command 0xee), in which it returns each byte.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"
.include "kfifo.inc"

FIFO_DRIVER psmouse, "psaux", misc_register, MISC_MAJOR << 8 | 1, 32, 2

# serial8250: the UART, in loop-back mode (MCR bit 4). It sends bursts of 16 bytes.

.include "linkage.inc"
.include "percpu.inc"
.include "driver.inc"
.include "kfifo.inc"

FIFO_DRIVER serial8250, "ttyS0", cdev_add, TTY_MAJOR << 8 | 64, 64, 4

/* What an executable has beside the C: where it starts, and an mcount that the linker is content with.
 * dynftrace-emu's own takes its place. */

	.section .note.GNU-stack, "", @progbits
	.text
	.globl	_start, mcount, __fentry__
	.type	_start, @function
_start:
	jmp	main
	.size	_start, . - _start

	.type	mcount, @function
	.type	__fentry__, @function
mcount:
__fentry__:
	ret
	.size	mcount, . - mcount
	.size	__fentry__, . - __fentry__

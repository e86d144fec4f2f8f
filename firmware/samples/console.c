/* Where text goes: the debug console of Bochs and QEMU at port 0xe9, or, on Linux, standard output. */

#include "sample.h"

#ifdef HOSTED
#include <unistd.h>

void console_putc(char c)
{
	if (write(1, &c, 1) != 1)
		_exit(1);
}
#else
void console_putc(char c)
{
	__asm__ volatile("outb %0, $0xe9" : : "a"(c));
}
#endif

void console_puts(const char *text)
{
	while (*text)
		console_putc(*text++);
}

/* label=value, in decimal, and a newline. */
void console_number(const char *label, uint64_t value)
{
	char digits[21];
	int at = sizeof(digits);

	digits[--at] = '\0';
	do {
		digits[--at] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	console_puts(label);
	console_putc('=');
	console_puts(digits + at);
	console_putc('\n');
}

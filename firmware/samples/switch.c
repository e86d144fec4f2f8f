/* Two threads with small stacks of their own, side by side in one array, that hand the CPU to each
 * other: what a tracer must not confuse. */

#include <stdint.h>

#define THREADS 2
#define STACK_WORDS 256
#define ROUNDS 5

static uint64_t stacks[THREADS][STACK_WORDS] __attribute__((aligned(16)));
static void *saved[THREADS + 1]; /* the last is who called main */
static int running = THREADS;
static int counts[THREADS];

void switch_stack(void **from, void *to);
__asm__(".text\n"
	".type switch_stack, @function\n"
	"switch_stack:\n"
	"	push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
	"	mov %rsp, (%rdi)\n"
	"	mov %rsi, %rsp\n"
	"	pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
	"	ret\n"
	".size switch_stack, . - switch_stack\n");

__attribute__((noinline)) static void switch_to(int next)
{
	int before = running;

	running = next;
	switch_stack(&saved[before], saved[next]);
}

__attribute__((noinline)) static int step(int thread, int round)
{
	counts[thread] += round + thread;
	if (round & 1)
		switch_to(1 - thread); /* in the middle of a call */
	return counts[thread];
}

static void body(void)
{
	int me = running;

	for (int round = 0; round < ROUNDS; round++) {
		step(me, round);
		switch_to(1 - me);
	}
	switch_to(me == 0 ? 1 : THREADS);
	for (;;)
		__asm__ volatile("hlt");
}

static void prepare(int thread)
{
	uint64_t *top = &stacks[thread][STACK_WORDS - 2];

	*top = (uint64_t)body;
	saved[thread] = top - 6;
}

int main(void)
{
	for (int thread = 0; thread < THREADS; thread++)
		prepare(thread);
	switch_to(0);
	return counts[0] * 100 + counts[1];
}

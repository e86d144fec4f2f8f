/* Every CPU adds to a sum that all share, under a lock; CPU 0 waits for the others. */

#include <stdint.h>

#define STEPS 50

static volatile int lock;
static volatile uint64_t sum;
static volatile int finished;

static void take(void)
{
	while (__sync_lock_test_and_set(&lock, 1))
		__asm__ volatile("pause");
}

static void give(void)
{
	__sync_lock_release(&lock);
}

static void add(uint64_t value)
{
	take();
	sum += value;
	give();
}

static void work(int cpu)
{
	for (int step = 0; step < STEPS; step++)
		add((uint64_t)cpu + 1);
	__sync_fetch_and_add(&finished, 1);
}

void secondary_start(int cpu)
{
	work(cpu);
}

/* nr_cpus comes from --call; a plain start has none. */
uint64_t run_cpus(int nr_cpus)
{
	work(0);
	while (finished < nr_cpus)
		__asm__ volatile("pause");
	return sum;
}

int main(void)
{
	return (int)run_cpus(1);
}

/* Uses all of it, prints what it comes to, and returns that modulo 128. */

#include "sample.h"

#define MACHINES 3

static const char *const expressions[] = {
	"1 + 2 * 3", "(1 + 2) * 3", "-(4 - 10) * 7 % 5", "100 / (5 - 5)", "2 * (3 + (4 * (5 + 6)))", "7 +",
};

struct parsing {
	unsigned next;
	uint32_t result;
};

static int parsing_step(void *data)
{
	struct parsing *parsing = data;
	int64_t value;

	if (parse(expressions[parsing->next], &value))
		value = -1;
	parsing->result = fold(parsing->result, (uint32_t)value);
	return ++parsing->next < sizeof(expressions) / sizeof(expressions[0]);
}

/* A constructor: .init_array has its address. */
static uint32_t start_value;

static void __attribute__((constructor)) before_main(void)
{
	start_value = 2166136261u;
}

static uint32_t run_all(void)
{
	struct machine *machines[MACHINES];
	struct parsing parsing = { 0, start_value };
	uint32_t result = start_value;

	sched_add(parsing_step, &parsing, 2);
	for (unsigned i = 0; i < MACHINES; i++) {
		machines[i] = machine_new(i + 1);
		sched_add(machine_step, machines[i], (int)i);
	}
	console_number("steps", sched_run());
	for (unsigned i = 0; i < MACHINES; i++) {
		result = fold(result, machine_result(machines[i]));
		machine_delete(machines[i]);
	}
	return fold(result, parsing.result);
}

int main(void)
{
	uint32_t result;
	size_t before;

	heap_init();
	sched_init();
	before = heap_available();
	result = run_all();
	console_number("result", result);
	console_number("leaked", before - heap_available());
	return (int)(result % 128);
}

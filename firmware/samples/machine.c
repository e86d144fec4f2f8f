/* A state machine: a connection that a noisy peer opens, uses and closes. One function a state. */

#include "sample.h"

#define EVENTS 60

enum event { EVENT_OPEN, EVENT_DATA, EVENT_ACK, EVENT_CLOSE, EVENT_NOISE, NR_EVENTS };

struct machine;
typedef void (*state)(struct machine *machine, enum event event);

struct machine {
	state state;
	uint32_t random;
	uint32_t result;
	unsigned events;
};

static void closed(struct machine *machine, enum event event);
static void opening(struct machine *machine, enum event event);
static void established(struct machine *machine, enum event event);
static void closing(struct machine *machine, enum event event);

static uint32_t next_random(struct machine *machine)
{
	machine->random = machine->random * 1103515245u + 12345u;
	return machine->random >> 16;
}

static void enter(struct machine *machine, state next, uint32_t code)
{
	machine->state = next;
	machine->result = fold(machine->result, code);
}

static void closed(struct machine *machine, enum event event)
{
	if (event == EVENT_OPEN)
		enter(machine, opening, 1);
}

static void opening(struct machine *machine, enum event event)
{
	if (event == EVENT_ACK)
		enter(machine, established, 2);
	else if (event == EVENT_CLOSE)
		enter(machine, closed, 3);
}

static void established(struct machine *machine, enum event event)
{
	if (event == EVENT_DATA)
		machine->result = fold(machine->result, next_random(machine));
	else if (event == EVENT_CLOSE)
		enter(machine, closing, 4);
}

static void closing(struct machine *machine, enum event event)
{
	if (event == EVENT_ACK)
		enter(machine, closed, 5);
}

struct machine *machine_new(uint32_t seed)
{
	struct machine *machine = heap_alloc(sizeof(*machine));

	if (machine) {
		machine->state = closed;
		machine->random = seed;
		machine->result = seed;
		machine->events = 0;
	}
	return machine;
}

/* A task's step: one event. */
int machine_step(void *data)
{
	struct machine *machine = data;

	machine->state(machine, (enum event)(next_random(machine) % NR_EVENTS));
	return ++machine->events < EVENTS;
}

uint32_t machine_result(const struct machine *machine)
{
	return machine->result;
}

void machine_delete(struct machine *machine)
{
	heap_free(machine);
}

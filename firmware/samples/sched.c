/* A cooperative scheduler: of the tasks that have not finished, the one with the highest priority makes
 * a step; among equals, whoever has waited longest. */

#include "sample.h"

struct task {
	task_step step;
	void *data;
	int priority;
	unsigned last_run; /* when it made its last step */
	struct task *next;
};

static struct task *tasks;
static unsigned clock;

void sched_init(void)
{
	tasks = NULL;
	clock = 0;
}

int sched_add(task_step step, void *data, int priority)
{
	struct task *task = heap_alloc(sizeof(*task));

	if (!task)
		return -1;
	task->step = step;
	task->data = data;
	task->priority = priority;
	task->last_run = 0;
	task->next = tasks;
	tasks = task;
	return 0;
}

/* A task's priority grows while it waits, so that none starves. */
static int effective_priority(const struct task *task)
{
	return task->priority + (int)((clock - task->last_run) / 8);
}

static int goes_before(const struct task *a, const struct task *b)
{
	int difference = effective_priority(a) - effective_priority(b);

	if (difference)
		return difference > 0;
	return a->last_run < b->last_run;
}

static struct task *pick_next(void)
{
	struct task *best = tasks;

	for (struct task *task = tasks; task; task = task->next)
		if (goes_before(task, best))
			best = task;
	return best;
}

static void sched_remove(struct task *gone)
{
	struct task **link = &tasks;

	while (*link != gone)
		link = &(*link)->next;
	*link = gone->next;
	heap_free(gone);
}

/* Until every task has finished; returns how many steps that took. */
unsigned sched_run(void)
{
	struct task *task;

	while ((task = pick_next()) != NULL) {
		task->last_run = ++clock;
		if (!task->step(task->data))
			sched_remove(task);
	}
	return clock;
}

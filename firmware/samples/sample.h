/* A small firmware: a heap, a scheduler, a parser and a state machine, on no library at all. */

#ifndef SAMPLE_H
#define SAMPLE_H

#include <stddef.h>
#include <stdint.h>

/* console.c */
void console_putc(char c);
void console_puts(const char *text);
void console_number(const char *label, uint64_t value);

/* heap.c */
void heap_init(void);
void *heap_alloc(size_t size);
void heap_free(void *block);
size_t heap_available(void);

/* sched.c */
typedef int (*task_step)(void *data); /* 0: it has finished */
void sched_init(void);
int sched_add(task_step step, void *data, int priority);
unsigned sched_run(void);

/* parser.c */
int parse(const char *text, int64_t *value);

/* machine.c */
struct machine;
struct machine *machine_new(uint32_t seed);
int machine_step(void *machine);
uint32_t machine_result(const struct machine *machine);
void machine_delete(struct machine *machine);

/* fold.c */
uint32_t fold(uint32_t hash, uint32_t value);

int main(void);

#endif

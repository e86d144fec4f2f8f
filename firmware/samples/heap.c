/* First fit over one array; free neighbours are joined when a block is given back. */

#include "sample.h"

#define HEAP_SIZE 16384
#define ALIGNMENT 16

struct block {
	size_t size; /* of the whole block, this header included */
	int is_free;
	struct block *next;
};

static unsigned char arena[HEAP_SIZE] __attribute__((aligned(ALIGNMENT)));
static struct block *first;

static size_t round_up(size_t size)
{
	return (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
}

static size_t header_size(void)
{
	return round_up(sizeof(struct block));
}

void heap_init(void)
{
	first = (struct block *)arena;
	first->size = HEAP_SIZE;
	first->is_free = 1;
	first->next = NULL;
}

static struct block *find_fit(size_t size)
{
	for (struct block *block = first; block; block = block->next)
		if (block->is_free && block->size >= size)
			return block;
	return NULL;
}

/* Leave size bytes to block, and make a block of its own of the rest. */
static void split(struct block *block, size_t size)
{
	struct block *rest;

	if (block->size < size + header_size() + ALIGNMENT)
		return;
	rest = (struct block *)((unsigned char *)block + size);
	rest->size = block->size - size;
	rest->is_free = 1;
	rest->next = block->next;
	block->size = size;
	block->next = rest;
}

void *heap_alloc(size_t size)
{
	size_t needed = round_up(size) + header_size();
	struct block *block = find_fit(needed);

	if (!block)
		return NULL;
	split(block, needed);
	block->is_free = 0;
	return (unsigned char *)block + header_size();
}

static void join_free_neighbours(void)
{
	struct block *block = first;

	while (block && block->next) {
		if (block->is_free && block->next->is_free) {
			block->size += block->next->size;
			block->next = block->next->next;
		} else {
			block = block->next;
		}
	}
}

void heap_free(void *memory)
{
	struct block *block;

	if (!memory)
		return;
	block = (struct block *)((unsigned char *)memory - header_size());
	block->is_free = 1;
	join_free_neighbours();
}

size_t heap_available(void)
{
	size_t sum = 0;

	for (struct block *block = first; block; block = block->next)
		if (block->is_free)
			sum += block->size;
	return sum;
}

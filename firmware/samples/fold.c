/* FNV-1a over the bytes of a word: what results are folded into one number with. */

#include "sample.h"

#define FNV_PRIME 16777619u

static uint32_t fold_byte(uint32_t hash, uint8_t byte)
{
	return (hash ^ byte) * FNV_PRIME;
}

uint32_t fold(uint32_t hash, uint32_t value)
{
	for (int shift = 0; shift < 32; shift += 8)
		hash = fold_byte(hash, (uint8_t)(value >> shift));
	return hash;
}

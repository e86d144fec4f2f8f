/* Arithmetic by recursive descent: + - * / %, parentheses, a minus in front, decimal numbers. */

#include "sample.h"

struct cursor {
	const char *at;
	int failed;
};

static int64_t expression(struct cursor *cursor);

static char peek(struct cursor *cursor)
{
	while (*cursor->at == ' ')
		cursor->at++;
	return *cursor->at;
}

static int accept(struct cursor *cursor, char wanted)
{
	if (peek(cursor) != wanted)
		return 0;
	cursor->at++;
	return 1;
}

static int is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static int64_t number(struct cursor *cursor)
{
	int64_t value = 0;

	if (!is_digit(peek(cursor))) {
		cursor->failed = 1;
		return 0;
	}
	while (is_digit(*cursor->at))
		value = value * 10 + (*cursor->at++ - '0');
	return value;
}

static int64_t factor(struct cursor *cursor)
{
	int64_t value;

	if (accept(cursor, '-'))
		return -factor(cursor);
	if (!accept(cursor, '('))
		return number(cursor);
	value = expression(cursor);
	if (!accept(cursor, ')'))
		cursor->failed = 1;
	return value;
}

static int64_t divide(struct cursor *cursor, int64_t value, int64_t by, int remainder)
{
	if (by == 0) {
		cursor->failed = 1;
		return 0;
	}
	return remainder ? value % by : value / by;
}

static int64_t term(struct cursor *cursor)
{
	int64_t value = factor(cursor);

	for (;;) {
		if (accept(cursor, '*'))
			value *= factor(cursor);
		else if (accept(cursor, '/'))
			value = divide(cursor, value, factor(cursor), 0);
		else if (accept(cursor, '%'))
			value = divide(cursor, value, factor(cursor), 1);
		else
			return value;
	}
}

static int64_t expression(struct cursor *cursor)
{
	int64_t value = term(cursor);

	for (;;) {
		if (accept(cursor, '+'))
			value += term(cursor);
		else if (accept(cursor, '-'))
			value -= term(cursor);
		else
			return value;
	}
}

/* 0 and the value, or -1 for what is no expression. */
int parse(const char *text, int64_t *value)
{
	struct cursor cursor = { text, 0 };

	*value = expression(&cursor);
	if (peek(&cursor) != '\0')
		cursor.failed = 1;
	return cursor.failed ? -1 : 0;
}

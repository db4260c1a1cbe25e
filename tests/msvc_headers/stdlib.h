#pragma once

#include <stddef.h>

void free(void * p);
void * malloc(size_t size);
char * getenv(const char * name);

#pragma once

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define isfinite(x) __builtin_isfinite(x)
#define isnan(x) __builtin_isnan(x)

float expf(float x);
float fabsf(float x);
float fmaxf(float x, float y);
float fminf(float x, float y);
float ldexpf(float x, int exponent);
float logf(float x);
float powf(float x, float y);
float rintf(float x);
float roundf(float x);
float tanhf(float x);

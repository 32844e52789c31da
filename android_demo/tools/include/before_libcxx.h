/* What libc++ 14 asks of Android's C library and musl's headers do not declare; Android has both since API 21. */
#pragma once
#include <locale.h>

#ifdef __cplusplus
extern "C" {
#endif
long long strtoll_l(const char* text, char** end, int base, locale_t locale);
unsigned long long strtoull_l(const char* text, char** end, int base, locale_t locale);
#ifdef __cplusplus
}
#endif

/* The stand-in libc.so: jumps.s jumps through `slots` to the functions named in names.h, and here are the variables. */
#include "names.h"

__attribute__((visibility("hidden"))) void *slots[sizeof names / sizeof *names];

void fill(const char *const *names, void **slots, unsigned count);
void *variable(const char *name);
extern char *streams;

void *stdin, *stdout, *stderr, *environ;
char __sF[768];
long timezone;
char *tzname[2] = {"UTC", "UTC"};

__attribute__((constructor)) static void start(void) {
    fill(names, slots, sizeof names / sizeof *names);
    stdin = variable("stdin");
    stdout = variable("stdout");
    stderr = variable("stderr");
    environ = variable("environ");
    streams = __sF;
}

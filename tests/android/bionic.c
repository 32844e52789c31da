/* What Android's C library does otherwise than glibc, or alone: each function of it here as bionic_NAME. `fill` gives
 * the stand-in libc.so (libc.c) its table: of these, else of glibc's; a function that neither has ends the process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void absent(void) {
    fputs("a library called a function that the stand-in for Android's C library does not have\n", stderr);
    abort();
}

void fill(const char *const *names, void **slots, unsigned count) {
    void *of_glibc[] = {dlopen("libc.so.6", RTLD_NOW), dlopen("libm.so.6", RTLD_NOW), dlopen("libz.so.1", RTLD_NOW)};
    void *of_bionic = dlopen("libbionic.so", RTLD_NOW);
    for (unsigned at = 0; at < count; at++) {
        char own[256];
        snprintf(own, sizeof own, "bionic_%s", names[at]);
        slots[at] = dlsym(of_bionic, own);
        for (int which = 0; which < 3 && !slots[at]; which++)
            if (of_glibc[which]) slots[at] = dlsym(of_glibc[which], names[at]);
        if (!slots[at]) slots[at] = absent;
    }
}

void *variable(const char *name) { return *(void **)dlsym(dlopen("libc.so.6", RTLD_NOW), name); }

int *bionic___errno(void) { return &errno; }

/* Other numbers for the same questions. */
long bionic_sysconf(int name) {
    switch (name) {
        case 6: return sysconf(_SC_CLK_TCK);
        case 39:
        case 40: return sysconf(_SC_PAGESIZE);
        case 96: return sysconf(_SC_NPROCESSORS_CONF);
        case 97: return sysconf(_SC_NPROCESSORS_ONLN);
        case 98: return sysconf(_SC_PHYS_PAGES);
        case 99: return sysconf(_SC_AVPHYS_PAGES);
        default: return -1;
    }
}

/* Its sigset_t and struct sigaction are smaller: signals stay as the JVM has them. */
int bionic_sigaction(int signal, const void *action, void *old) { return 0; }
int bionic_sigaddset(void *set, int signal) { return 0; }
int bionic_sigemptyset(void *set) { return 0; }
int bionic_sigfillset(void *set) { return 0; }
int bionic_sigprocmask(int how, const void *set, void *old) { return 0; }
int bionic_pthread_sigmask(int how, const void *set, void *old) { return 0; }

/* Its mutexes and attributes of threads are smaller than glibc's on arm64. */
int bionic_pthread_mutex_init(void *mutex, const pthread_mutexattr_t *attributes) {
    pthread_mutex_t made;
    int failed = pthread_mutex_init(&made, attributes);
    memcpy(mutex, &made, 40);
    return failed;
}
int bionic_pthread_attr_init(void *attributes) { return 0; }
int bionic_pthread_attr_destroy(void *attributes) { return 0; }
int bionic_pthread_attr_setdetachstate(void *attributes, int state) { return 0; }
int bionic_pthread_attr_setstacksize(void *attributes, size_t size) { return 0; }
int bionic_pthread_create(pthread_t *thread, const void *attributes, void *(*start)(void *), void *argument) {
    return pthread_create(thread, NULL, start, argument);
}

/* Its standard streams are an array that glibc's functions do not know. */
extern char *streams;
char *streams;
int bionic_fflush(FILE *file) {
    char *at = (char *)file;
    return fflush(streams && at >= streams && at < streams + 768 ? NULL : file);
}

int __xpg_strerror_r(int error, char *text, size_t size);
int bionic_strerror_r(int error, char *text, size_t size) { return __xpg_strerror_r(error, text, size); }
char *bionic___gnu_strerror_r(int error, char *text, size_t size) {
    __xpg_strerror_r(error, text, size);
    return text;
}

char *bionic___strchr_chk(const char *text, int wanted, size_t size) { return strchr(text, wanted); }
char *bionic___strrchr_chk(const char *text, int wanted, size_t size) { return strrchr(text, wanted); }
size_t bionic___strlen_chk(const char *text, size_t size) { return strlen(text); }
char *bionic___strncpy_chk2(char *to, const char *from, size_t count, size_t a, size_t b) {
    return strncpy(to, from, count);
}
ssize_t bionic___write_chk(int file, const void *data, size_t count, size_t size) { return write(file, data, count); }

void bionic___assert2(const char *file, int line, const char *function, const char *what) {
    fprintf(stderr, "%s:%d: %s: %s\n", file, line, function, what);
    abort();
}
void bionic_android_set_abort_message(const char *message) { fprintf(stderr, "%s\n", message); }
int bionic___android_log_vprint(int priority, const char *tag, const char *format, va_list values) {
    vfprintf(stderr, format, values);
    return fputc('\n', stderr);
}
int bionic___android_log_print(int priority, const char *tag, const char *format, ...) {
    va_list values;
    va_start(values, format);
    int printed = bionic___android_log_vprint(priority, tag, format, values);
    va_end(values);
    return printed;
}
int bionic___android_log_write(int priority, const char *tag, const char *text) {
    return bionic___android_log_print(priority, tag, "%s", text);
}

/* A phone without properties and without graphics memory to share. */
const void *bionic___system_property_find(const char *name) { return NULL; }
int bionic___system_property_get(const char *name, char *value) {
    value[0] = 0;
    return 0;
}
int bionic_AHardwareBuffer_isSupported(const void *buffer) { return 0; }

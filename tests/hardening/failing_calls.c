/* Preloaded into a process: the k-th system call on a file below one folder fails, or a signal arrives before it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { FILES = 4096 };
static char below[4096], ours[FILES];
static long calls, fatal;
static int how, lasting;

/* folder: absolute; k: which call; fault: an errno, or minus a signal; forever: every later write, too, as on a full disk */
void arm(const char *folder, long k, int fault, int forever) {
    strncpy(below, folder, sizeof below - 1);
    calls = 0, fatal = k, how = fault, lasting = forever;
}
long counted(void) { return calls; }

static int is_below(const char *path) {
    return *below && path && (*path != '/' || !strncmp(path, below, strlen(below)));
}
static int is_ours(int file) { return *below && file >= 0 && file < FILES && ours[file]; }

/* whether this call fails; `grows`: whether it is one that needs room */
static int fails(int concerned, int grows) {
    if (!concerned) return 0;
    calls++;
    if (how < 0 && calls == fatal) kill(getpid(), -how);
    if (how <= 0 || !(calls == fatal || (lasting && grows && calls > fatal))) return 0;
    errno = how;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPEN(name, parameters, ...)                                                        \
    int name parameters {                                                                  \
        va_list rest; va_start(rest, flags);                                               \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; va_end(rest);            \
        if (fails(is_below(path), flags & O_CREAT)) return -1;                             \
        int file = REAL(name)(__VA_ARGS__);                                                \
        if (file >= 0 && file < FILES) ours[file] = is_below(path);                        \
        return file;                                                                       \
    }
OPEN(open, (const char *path, int flags, ...), path, flags, mode)
OPEN(open64, (const char *path, int flags, ...), path, flags, mode)
OPEN(openat, (int at, const char *path, int flags, ...), at, path, flags, mode)
OPEN(openat64, (int at, const char *path, int flags, ...), at, path, flags, mode)

int close(int file) {
    int failed = fails(is_ours(file), 0), saved = errno;
    if (file >= 0 && file < FILES) ours[file] = 0;
    int done = REAL(close)(file);
    return failed ? (errno = saved, -1) : done;
}

/* a disk that fills up takes a part of what is written */
#define WRITE(name, parameters, ...)                                                       \
    ssize_t name parameters {                                                              \
        int filling = lasting && calls + 1 == fatal && size > 1;                           \
        if (fails(is_ours(file), 1)) {                                                     \
            if (!filling) return -1;                                                       \
            size /= 2;                                                                     \
        }                                                                                  \
        return REAL(name)(__VA_ARGS__);                                                    \
    }
WRITE(write, (int file, const void *from, size_t size), file, from, size)
WRITE(pwrite, (int file, const void *from, size_t size, off_t at), file, from, size, at)
WRITE(pwrite64, (int file, const void *from, size_t size, off64_t at), file, from, size, at)

#define CALL(type, name, parameters, concerned, grows, ...)                                \
    type name parameters { return fails(concerned, grows) ? -1 : REAL(name)(__VA_ARGS__); }
CALL(ssize_t, read, (int file, void *to, size_t size), is_ours(file), 0, file, to, size)
CALL(ssize_t, pread, (int file, void *to, size_t size, off_t at), is_ours(file), 0, file, to, size, at)
CALL(ssize_t, pread64, (int file, void *to, size_t size, off64_t at), is_ours(file), 0, file, to, size, at)
CALL(int, fsync, (int file), is_ours(file), 1, file)
CALL(int, fdatasync, (int file), is_ours(file), 1, file)
CALL(int, ftruncate, (int file, off_t size), is_ours(file), 0, file, size)
CALL(int, ftruncate64, (int file, off64_t size), is_ours(file), 0, file, size)
CALL(int, flock, (int file, int way), is_ours(file), 0, file, way)
CALL(int, rename, (const char *path, const char *to), is_below(path), 0, path, to)
CALL(int, unlink, (const char *path), is_below(path), 0, path)
CALL(int, mkdir, (const char *path, mode_t mode), is_below(path), 1, path, mode)
CALL(int, rmdir, (const char *path), is_below(path), 0, path)
